"""Images in: a file's bytes to 8-bit greyscale, with limits on all that is untrusted; near duplicates.

`films.open_film` is the one way in, for archives, uploads and files on disk.
"""
