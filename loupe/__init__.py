"""Loupe: what the scripts at the top level share. docs/architecture.md draws it.

Four wings that never import each other: gateway (HTTP), modelserver (TensorFlow Serving's manners), training, export.
What they share: engines (compute a SavedModel), images (bytes to pixels), card (what a model says of itself), cardless
(a card for models that have none), prediction (what is said of a picture), gradcam (where the network looked),
familiarity (what it knows), errors, cli, files, checksums, malloc (memory given back) and tfrecord.
"""

__version__ = "0.1.0"
