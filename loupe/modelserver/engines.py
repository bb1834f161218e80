"""The two engines behind one interface, and which of them serves a model.

    open_engine = engines.chooser("auto", engines.Options())
    engine = open_engine(savedmodel.read(folder))
    engine.run("serving_default", {"image": pixels}, ["probabilities"])

`openvino` reads the SavedModel without TensorFlow, is about twice as fast and runs on ARM; `tensorflow` is a
`tf.compat.v1.Session`, which is how TensorFlow Serving loads. `auto` takes openvino where it is installed, loads the
model and gets through one batch of zeros with it, and otherwise tensorflow where that is installed. It does not compare
the two engines' answers: importing TensorFlow for it would cost seconds and half a gigabyte at every start. (That they
agree is checked when a model is exported, and by the tests.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol

from loupe.errors import UserError
from loupe.modelserver.refused import Refused, say
from loupe.modelserver.savedmodel import Array, SavedModel


class Engine(Protocol):
    name: str

    def run(self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Refused if it cannot. Called by many threads at once."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Options:
    threads: int = 0  # for one operation; 0: as many as there are CPUs
    streams: int = 0  # operations, or whole calls, at once; 0: the engine's own choice
    mixed_precision: str = ""  # "bfloat16" or nothing


Opener = Callable[[SavedModel], Engine]
SYNC = {"openvino": "pipenv sync --categories modelserver", "tensorflow": "pipenv sync --categories training"}
CHOICES = ("auto", *SYNC)


def chooser(choice: str, options: Options) -> Opener:
    """UserError where what was chosen is not installed."""
    names = [name for name in (SYNC if choice == "auto" else [choice]) if find_spec(name)]
    if not names:
        wanted = "openvino" if choice == "auto" else choice
        raise UserError(f"the engine {wanted} is not installed; `{SYNC[wanted]}` installs it")
    return lambda model: _open_first(names, model, options)


def _open_first(names: Sequence[str], model: SavedModel, options: Options) -> Engine:
    for name in names[:-1]:
        try:
            return _open(name, model, options)
        except Refused as error:
            say(f"{name} does not take {model.folder}: {error}; trying {names[-1]}")
    return _open(names[-1], model, options)


def _open(name: str, model: SavedModel, options: Options) -> Engine:
    """Imported only here: a process with one engine never holds the other."""
    engine: Engine = import_module(f"loupe.modelserver.engine_{name}").open_model(model, options)
    return engine
