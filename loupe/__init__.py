"""Loupe: what the scripts at the top level share. docs/architecture.md draws it.

Four wings that never import each other: gateway (HTTP), modelserver (TensorFlow Serving's manners), training, export.
What they share: engines (compute a SavedModel), images (bytes to pixels), card (what a model says of itself), gradcam
(where it looked), familiarity (what it knows), errors, cli, files, checksums, malloc (memory given back) and tfrecord.
"""

__version__ = "0.1.0"
