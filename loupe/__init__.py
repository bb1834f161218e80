"""Loupe: what the scripts at the top level share, and what `import loupe` gives. docs/architecture.md draws it.

    model = loupe.load("models/tires")                      # loupe/client says the rest
    model = loupe.connect("http://localhost:9696")
    model.predict("photo.jpg").label

Five wings that never import each other: gateway (HTTP), modelserver (TensorFlow Serving's manners), training, export,
client (asks any of them). What they share: engines (compute a SavedModel), images (bytes to pixels), card (what a model
says of itself), cardless (a card for models that have none), prediction (what is said of a picture), gradcam (where the
network looked), familiarity (what it knows), proto (TensorFlow Serving's wire format), errors, cli, files, checksums,
malloc (memory given back), quiet (without TensorFlow's own log lines) and tfrecord.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loupe.client.connect import connect, load
    from loupe.client.model import Model
    from loupe.client.result import Result

__version__ = "1.0.0"
__all__ = ["Model", "Result", "connect", "load"]

_HOMES = {"connect": "connect", "load": "connect", "Model": "model", "Result": "result"}


def __getattr__(name: str) -> Any:
    """Import the client with its first use: the scripts and servers import this package, and most never need it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'loupe' has no attribute {name!r}")
    return getattr(import_module(f"loupe.client.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "__doc__", "__file__", "__name__", "__path__"])
