"""Decode a picture's bytes to RGB pixels.

Training and serving share this one path, so that a model is served the same pixels as it was trained on.

In: a picture's bytes, which may be hostile, and a size. Out: uint8 [height, width, 3], or an ImageError.

api → decode (formats, sizes, orientation, colour) → limits (cap what a file holds beside its pixels), jpeg (the fast
path for JPEG), resize.
AVIF and HEIC: api → sandbox → sandbox_child (a separate process) → decode.
"""
