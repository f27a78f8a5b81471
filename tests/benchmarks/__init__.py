"""What this repository costs against the plain way: scripts for a person; `recipes` holds what they share."""
