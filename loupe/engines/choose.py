"""Choose the engine that serves a model, and open the model with it.

    open_engine = chooser("auto", Options())
    engine = open_engine(savedmodel.read(folder))
    engine.run("serving_default", {"image": pixels}, ["probabilities"])

`openvino` reads the SavedModel without TensorFlow, is about twice as fast and runs on ARM. `tensorflow` is a
`tf.compat.v1.Session`, which is how TensorFlow Serving loads. `auto` takes openvino where it is installed, loads the
model and gets through one batch of zeros with it; otherwise tensorflow where that is installed. It does not compare the
two engines' answers: importing TensorFlow would cost seconds and half a gigabyte at every start. That they agree is
checked when a model is exported, and by the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from loupe.engines.refused import say
from loupe.errors import UserError

if TYPE_CHECKING:  # these load numpy, and the flags need CHOICES alone
    from loupe.engines.engine import Engine, Opener, Options
    from loupe.engines.savedmodel import SavedModel

INSTALL = {"openvino": "pipenv sync --categories modelserver", "tensorflow": "pipenv sync --categories training"}
CHOICES = ("auto", *INSTALL)


def chooser(choice: str, options: Options) -> Opener:
    """Return a function that opens a model with the chosen engine. Raises UserError if that is not installed."""
    names = [name for name in (INSTALL if choice == "auto" else [choice]) if find_spec(name)]
    if not names:
        wanted = "openvino" if choice == "auto" else choice
        raise UserError(f"the engine {wanted} is not installed; `{INSTALL[wanted]}` installs it")
    return lambda model: _open_first(names, model, options)


def _open_first(names: Sequence[str], model: SavedModel, options: Options) -> Engine:
    for name in names[:-1]:
        try:
            return _open(name, model, options)
        except Exception as error:  # whatever it is, the other engine may do
            say(f"{name} does not take {model.folder}: {error}; trying {names[-1]}")
    return _open(names[-1], model, options)


def _open(name: str, model: SavedModel, options: Options) -> Engine:
    """Open the model with one engine. The engine is imported here: most processes never need the other."""
    from loupe.engines.pieces import PiecewiseEngine

    engine: Engine = import_module(f"loupe.engines.{name}_engine").open_model(model, options)
    return PiecewiseEngine(engine) if model.card else engine
