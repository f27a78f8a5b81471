"""What the figures look like."""
