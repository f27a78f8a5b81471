"""Two revisions side by side: which figures moved by more than chance."""
