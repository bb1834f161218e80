"""Decode a picture's bytes to RGB pixels.

Training and serving share this one path, so that a model is served the same pixels as it was trained on.

In: a picture's bytes, which may be hostile, and a size. Out: uint8 [height, width, 3], or an ImageError.

api → decode (formats, sizes, orientation, colour) → limits (cap a picture's size, and what a file holds beside its
pixels), weight (what decoding it takes), allowance (may it?), jpeg (the fast path for JPEG), resize.
AVIF, HEIC and lossless WebP: api → sandbox → sandbox_child (a separate process) → decode.
room: what threads share and wait for, first come, first served.
"""
