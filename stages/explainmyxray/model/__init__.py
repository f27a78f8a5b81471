"""Base, adapter, batches, loss, training, generation; this room knows no finding."""
