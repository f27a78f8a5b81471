"""The writer and the labeler: they share the names of the findings and nothing else."""
