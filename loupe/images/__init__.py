"""Bytes to RGB pixels: the one path, for training and for serving, so that a model sees at work what it learnt from.

In: a picture's bytes, which may be hostile, and a size. Out: uint8 [height, width, 3], or an ImageError.

api → limits (what a file may hold beside its pixels) → decode (formats, sizes, orientation, colour)
    → jpeg (the fast way for JPEG) → resize
AVIF and HEIC go api → sandbox → sandbox_child, a process of its own, → decode.
"""
