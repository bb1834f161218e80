"""Train a network in one stage, keep its best state, and survive a kill at any moment.

    stage = Stage("head", epochs=100, lr=1e-4, …)
    outcome = fit(model, stage, batches, validation, state=run.staging / "head.npz")
    outcome.history, outcome.finished       # the model now has its best weights; finished: False after Ctrl-C

The best state is the one with the smallest loss on the validation pictures. Everything a resumed run needs (weights,
optimiser, best weights, history) goes into one file that is renamed into place, so a state is never half written.
Random draws of an epoch depend on the seed and the epoch alone, so a resumed run does what it would have done.
"""

from __future__ import annotations

import json
import math
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from loupe.errors import UserError
from loupe.progress import bar, clock
from loupe.training.fit.batches import Batches
from loupe.training.fit.optimizer import make, plateaus
from loupe.training.fit.state import write

SAVE_INTERVAL = 5.0  # seconds, at least, between two savings of the state
SAVE_COST_FACTOR = 20  # and at least this many times the seconds that a saving takes


@dataclass(frozen=True)
class Stage:
    name: str
    epochs: int
    lr: float  # the highest; a cosine rises to it in the first tenth of the steps
    seed: int
    optimizer: str = "adamw"
    decay: float = 1e-3
    schedule: str = "cosine"
    patience: int | None = None
    ema: float = 0.0


@dataclass
class Outcome:
    history: list[dict[str, Any]] = field(default_factory=list)
    best_loss: float = math.inf  # the smallest validation loss
    finished: bool = False


def fit(
    model: keras.Model,
    stage: Stage,
    batches: Batches,
    validation: Batches,
    state: Path,
    baseline_loss: float = math.inf,
) -> Outcome:
    """Train `model` for the epochs of `stage` and leave its best weights in it. Only states with a validation loss
    below `baseline_loss`, which an earlier stage reached, count as best."""
    # Compile the model, and resume if there is a state.
    model.compile(
        optimizer=_optimizer(stage, len(batches)),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
        jit_compile=False,  # on a CPU it takes longer to compile and is no faster after
    )
    callback = CheckpointCallback(model, stage, batches, state, baseline_loss)
    epochs_done = callback.restore()
    # Train the epochs that are left, unless the stage is over.
    if not callback.is_over(epochs_done):
        try:
            model.fit(
                batches,
                validation_data=validation,
                initial_epoch=epochs_done,
                epochs=stage.epochs,
                # Validation measures the averages, if there are any. The swap back comes after our callback.
                callbacks=[callback, *([keras.callbacks.SwapEMAWeights()] if stage.ema else [])],
                shuffle=False,  # Batches orders them itself, the same in each run
                verbose=0,
            )
        except KeyboardInterrupt:
            callback.load_best()
            return Outcome(callback.history, callback.best_loss, finished=False)
    # Mark the stage as finished, so that a resumed run skips it.
    callback.finish()
    return Outcome(callback.history, callback.best_loss, finished=True)


def _optimizer(stage: Stage, steps_per_epoch: int) -> Any:
    # The rate is a number, or rises and falls with a cosine.
    rate: Any = stage.lr
    if stage.schedule == "cosine":
        steps = stage.epochs * steps_per_epoch
        rate = keras.optimizers.schedules.CosineDecay(
            stage.lr / 100, steps - steps // 10, alpha=0.01, warmup_target=stage.lr, warmup_steps=max(1, steps // 10)
        )
    return make(stage.optimizer, rate, stage.decay, stage.ema)


class CheckpointCallback(keras.callbacks.Callback):  # type: ignore[misc]  # keras ships no types
    """A callback that keeps the best weights, saves the state, prints each epoch, and stops when patience runs out."""

    def __init__(self, model: keras.Model, stage: Stage, batches: Batches, state: Path, baseline_loss: float) -> None:
        super().__init__()
        self.network, self.stage, self.batches, self.state = model, stage, batches, state
        self.best_loss = baseline_loss
        self.history: list[dict[str, Any]] = []
        self.best_weights: list[Any] = _values(model.weights)
        self.epochs_since_best = 0
        self.last_saved, self.save_seconds = -math.inf, 0.0

    # ------------------------------------------------------------------ called by Keras

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch_started = time.monotonic()
        self.batches.begin(epoch)
        if self.stage.schedule == "plateau":
            self.network.optimizer.learning_rate.assign(
                self.stage.lr * 0.5 ** plateaus(row["val_loss"] for row in self.history)
            )
        for layer in self.network.layers:
            if hasattr(layer, "seed_generator"):  # dropout must draw the same in a resumed run
                layer.seed_generator.state.assign([self.stage.seed, epoch])
        self.bar = bar(f"{self.stage.name} {epoch + 1}/{self.stage.epochs}", self.params["steps"])
        self.advance = self.bar.__enter__()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.advance(1)

    def on_test_end(self, logs: Any = None) -> None:
        self.validated_weights = _values(self.network.weights)  # the averaged ones if the stage keeps averages

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.bar.__exit__(None, None, None)
        # The epoch's row of history.
        row: dict[str, Any] = {
            "stage": self.stage.name,
            "epoch": epoch + 1,
            **{name: round(float(value), 6) for name, value in (logs or {}).items()},
        }
        row["lr"] = float(f"{float(keras.ops.convert_to_numpy(self.network.optimizer.learning_rate)):.4g}")
        row["seconds"] = round(time.monotonic() - self.epoch_started, 2)
        # Keep the weights if they are the best so far.
        is_best = row["val_loss"] < self.best_loss
        if is_best:
            self.best_loss, self.best_weights = row["val_loss"], self.validated_weights
        self.epochs_since_best = 0 if is_best else self.epochs_since_best + 1
        self.history.append(row)
        self._print_epoch(row, is_best)
        # Stop on a loss that is no number, or when the stage is over. Save from time to time.
        if not math.isfinite(row["loss"]) or self.is_over(epoch + 1):
            self.network.stop_training = True
        if time.monotonic() - self.last_saved > max(SAVE_INTERVAL, SAVE_COST_FACTOR * self.save_seconds):
            self.save()

    # ------------------------------------------------------------------ the state on the disk

    def save(self, is_over: bool = False) -> None:
        """Write the state to the disk. A stage that is over needs only its best weights."""
        started = time.monotonic()
        # Collect what a resumed run needs.
        metadata = {
            "stage": self.stage.name,
            "epoch": len(self.history),
            "loss": None if math.isinf(self.best_loss) else self.best_loss,
            "waited": self.epochs_since_best,
            "over": is_over,
            "history": self.history,
        }
        groups = {"best": self.best_weights}
        if not is_over:
            groups |= {"now": _values(self.network.weights), "optimizer": _values(self.network.optimizer.variables)}
        arrays = {f"{group}{number}": value for group, values in groups.items() for number, value in enumerate(values)}
        write(self.state, about=np.array(json.dumps(metadata)), **arrays)
        # Saving must not take more than a small share of the time.
        self.last_saved = time.monotonic()
        self.save_seconds = self.last_saved - started

    def restore(self) -> int:
        """Load the state, if there is one, and return the number of epochs done."""
        if not self.state.exists():
            return 0
        try:
            with np.load(self.state) as saved:
                metadata = json.loads(str(saved["about"]))
                self.best_weights = _group(saved, "best", self.best_weights)
                if not metadata["over"]:
                    optimizer = self.network.optimizer
                    optimizer.build(self.network.trainable_variables)
                    _assign(self.network.weights, _group(saved, "now", self.network.weights))
                    _assign(optimizer.variables, _group(saved, "optimizer", optimizer.variables))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.state} cannot be read ({error}). Start over with --fresh.") from error
        self.best_loss = math.inf if metadata["loss"] is None else metadata["loss"]
        self.history, self.epochs_since_best = metadata["history"], metadata["waited"]
        return self.stage.epochs if metadata["over"] else int(metadata["epoch"])

    def is_over(self, epochs_done: int) -> bool:
        return epochs_done >= self.stage.epochs or (
            self.stage.patience is not None and self.epochs_since_best >= self.stage.patience
        )

    def finish(self) -> None:
        self.load_best()
        self.save(is_over=True)

    def load_best(self) -> None:
        _assign(self.network.weights, self.best_weights)

    # ------------------------------------------------------------------ helpers

    def _print_epoch(self, row: dict[str, Any], is_best: bool) -> None:
        recent_seconds = [past["seconds"] for past in self.history[-5:] if past["epoch"] > 1] or [
            row["seconds"]
        ]  # the first epoch also traces the graph
        seconds_left = sum(recent_seconds) / len(recent_seconds) * (self.stage.epochs - row["epoch"])
        print(
            f"{self.stage.name:<9} {row['epoch']:>3}/{self.stage.epochs}  loss {row['loss']:.4f}  accuracy "
            f"{row['accuracy']:.1%}  validation {row['val_loss']:.4f}  {row['val_accuracy']:.1%}"
            f"{' best' if is_best else '     '}  {clock(seconds_left)} left",
            flush=True,
        )


def _values(variables: Any) -> list[Any]:
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def _group(saved: Any, name: str, expected_arrays: Any) -> list[Any]:
    """Return the arrays of one group of the state, or raise ValueError if their shapes do not fit."""
    values = [saved[f"{name}{number}"] for number in range(len(expected_arrays))]
    for value, expected in zip(values, expected_arrays, strict=True):
        if tuple(value.shape) != tuple(expected.shape):
            raise ValueError("it is of another network")
    return values


def _assign(variables: Any, values: Any) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
