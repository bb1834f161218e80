"""Scale pixels of 0…255 for a network, by the well-known names: those of keras.applications' models, and
keras-image-helper's.

    scaling = scaling_of("inception_v3")
    scaling.layers(image)                     # in the graph
    scaling.of(pixels)                        # in numpy, as keras.applications does it: the graph must do the same
    choices("xception")                       # all names, and what they make of pixels, in words
    known_network(model)                      # "inceptionv3", if the model or one in it bears such a name
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers
from keras.applications.imagenet_utils import preprocess_input

from loupe.errors import UserError

SCALING_LAYER = "scaling"  # the name of the layer that scales
MEANS = (103.939, 116.779, 123.68)  # blue, green, red: ImageNet's, as used to train Caffe's networks
TORCH_MEANS, TORCH_SPREADS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # red, green, blue, for pixels of 0…1

NAMES = {
    "tf": "xception inceptionv3 inceptionresnetv2 mobilenet mobilenetv2 nasnet nasnetmobile nasnetlarge "
    "resnetv2 resnet50v2 resnet101v2 resnet152v2",
    "caffe": "resnet resnet50 resnet101 resnet152 vgg16 vgg19",
    "torch": "densenet densenet121 densenet169 densenet201",
    "none": "none efficientnet efficientnetb0 efficientnetb1 efficientnetb2 efficientnetb3 efficientnetb4 "
    "efficientnetb5 efficientnetb6 efficientnetb7 efficientnetv2 efficientnetv2b0 efficientnetv2b1 efficientnetv2b2 "
    "efficientnetv2b3 efficientnetv2s efficientnetv2m efficientnetv2l mobilenetv3 mobilenetv3small mobilenetv3large "
    "convnext convnexttiny convnextsmall convnextbase convnextlarge convnextxlarge",
    "rescale": "rescale",
}
MEANINGS = (  # of the modes, in words
    ("rescale", "0…1"),
    ("tf", "−1…1"),
    ("none", "0…255"),
    ("caffe", "blue, green and red less ImageNet's means"),
    ("torch", "0…1 less ImageNet's means, divided by its spreads"),
)
MODES = {name: mode for mode, names in NAMES.items() for name in names.split()}


@dataclass(frozen=True)
class Scaling:
    name: str
    mode: str

    def layers(self, image: Any) -> Any:
        """Scale a Keras or TensorFlow tensor of float32."""
        if self.mode == "tf":
            return layers.Rescaling(1 / 127.5, -1.0, name=SCALING_LAYER)(image)
        if self.mode == "rescale":
            return layers.Rescaling(1 / 255, name=SCALING_LAYER)(image)
        if self.mode == "caffe":
            return layers.Rescaling(1.0, [-mean for mean in MEANS], name=SCALING_LAYER)(keras.ops.flip(image, axis=-1))
        if self.mode == "torch":
            spreads = [1 / (255 * spread) for spread in TORCH_SPREADS]
            offsets = [-mean / spread for mean, spread in zip(TORCH_MEANS, TORCH_SPREADS, strict=True)]
            return layers.Rescaling(spreads, offsets, name=SCALING_LAYER)(image)
        return image

    def of(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        scaled = pixels.astype(np.float32)
        if self.mode == "none":
            return scaled
        if self.mode == "rescale":
            return scaled / 255
        return np.asarray(preprocess_input(scaled, mode=self.mode))


UNSCALED = Scaling("none", "none")
ONE_OF_EACH = (  # of each mode
    Scaling("rescale", "rescale"),
    Scaling("xception", "tf"),
    UNSCALED,
    Scaling("resnet50", "caffe"),
    Scaling("densenet", "torch"),
)


def scaling_of(name: str) -> Scaling:
    """Return the scaling of that name. `mobilenet_v2`, `MobileNetV2` and `mobilenetv2` are the same."""
    key = re.sub(r"[^a-z0-9]", "", name.lower())
    if key not in MODES:
        near = difflib.get_close_matches(key, MODES, 1, 0.6)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"--preprocess is one of {', '.join(_families())}, not {name!r}{hint}")
    return Scaling(key, MODES[key])


def choices(network: str | None) -> str:
    """Return all names and what they make of pixels; first the network's own, if that is known."""
    families = _families()
    groups = [f"{', '.join(name for name in families if MODES[name] == mode)} for {text}" for mode, text in MEANINGS]
    own = f"{network} where its preprocess_input was used, as it is built on {network}; " if network else ""
    return own + "; ".join(groups)


def known_network(model: Any) -> str | None:
    """Return the name of the keras.applications network that the model is or holds, of Keras 2 or 3; None if no name in
    it is one. `mobilenetv2_1.00_224` is mobilenetv2."""
    name = re.sub(r"[^a-z0-9]", "", re.sub(r"_\d\.\d+_\d+$", "", str(model.name)).lower())
    if name in MODES and name not in ("none", "rescale"):
        return name
    nested = (known_network(layer) for layer in getattr(model, "layers", ()))
    return next(filter(None, nested), None)


def _families() -> list[str]:
    """Return the names without a family's sizes: efficientnet, but not its seventeen sizes."""
    sizes = re.compile(
        r"(efficientnet.*[bsml]|efficientnet.*b\d|mobilenetv3.+|convnext.+|densenet\d+|nasnet.+|resnet1.*)"
    )
    return [name for name in MODES if not sizes.fullmatch(name)]
