"""Tuning the adapter: batches, loss, memory, trainer, checkpoints, processes; this room knows no finding."""
