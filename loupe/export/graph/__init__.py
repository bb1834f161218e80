"""Build the serving graph.

In: a Keras network and its card. Out: a SavedModel's folder that stock TensorFlow Serving loads.

simplify (fold what is constant, before freezing) → savedmodel (signatures, flat and frozen)
    → warmup (requests that a server replays before it serves the version)
"""
