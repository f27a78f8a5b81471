"""Images in: JPEG, PNG and DICOM decoded to greyscale, with limits on all that is untrusted; near duplicates."""
