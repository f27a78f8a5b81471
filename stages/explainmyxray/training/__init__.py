"""Tuning the adapter: batches, loss, memory, trainer, checkpoints; this room knows no finding."""
