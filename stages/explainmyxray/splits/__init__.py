"""Train, validation and test: no patient, no image and no near duplicate in two of them."""
