"""What the five stages share, a room per subject."""
