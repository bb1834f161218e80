"""The networks that are trained.

In: a name, a size and weights. Out: a flat Keras model from pixels of 0…255 to logits.

backbones (a backbone, its scaling and its head) → plain (networks that are trained from nothing), weights (downloaded,
of a file or of an earlier run). devices is what there is to compute on.
"""
