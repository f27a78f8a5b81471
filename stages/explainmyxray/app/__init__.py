"""The local page: an X-ray dropped on it, beside its report and where the model looked."""
