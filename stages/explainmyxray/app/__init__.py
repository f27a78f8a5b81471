"""The local page: an image dropped on it, beside its report and where the model looked."""
