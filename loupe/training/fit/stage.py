"""Train a network in one stage, keep its best state, and survive a kill at any moment.

    stage = Stage("head", epochs=100, lr=1e-4, …)
    outcome = fit(model, stage, batches, validation, state=run.part / "head.npz")
    outcome.history, outcome.finished       # the model now has its best weights; finished: False after Ctrl-C

The best state is the one of the smallest loss on the validation pictures. All that is needed to go on (weights,
optimiser, best weights, history) goes into one file that is renamed into place, so there is never half a state. What
is drawn at random in an epoch depends on the seed and the epoch alone: a resumed run does what it would have done.
"""

from __future__ import annotations

import json
import math
import os
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from loupe.errors import UserError
from loupe.training.fit.batches import Batches
from loupe.training.progress import bar, clock

PAUSE = 5.0  # seconds between two savings, at least
SAVING_SHARE = 20  # and as many times what a saving takes
PLATEAU = 4  # epochs without a better loss before the schedule `plateau` halves the rate


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
    best: float = math.inf  # validation loss
    finished: bool = False


def fit(
    model: keras.Model, stage: Stage, batches: Batches, validation: Batches, state: Path, enough: float = math.inf
) -> Outcome:
    """`enough`: a validation loss that an earlier stage reached: only better states count as best."""
    model.compile(
        optimizer=_optimizer(stage, len(batches)),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
        jit_compile=False,  # on a CPU it takes longer to compile and is no faster after
    )
    keeper = Keeper(model, stage, batches, state, enough)
    done = keeper.restore()
    if not keeper.over(done):
        try:
            model.fit(
                batches,
                validation_data=validation,
                initial_epoch=done,
                epochs=stage.epochs,
                callbacks=[keeper],
                shuffle=False,  # batches come in an order of their own, the same in each run
                verbose=0,
            )
        except KeyboardInterrupt:
            keeper.take_best()
            return Outcome(keeper.history, keeper.loss, finished=False)
    keeper.finish()
    return Outcome(keeper.history, keeper.loss, finished=True)


def _optimizer(stage: Stage, steps_an_epoch: int) -> Any:
    rate: Any = stage.lr
    if stage.schedule == "cosine":
        steps = stage.epochs * steps_an_epoch
        rate = keras.optimizers.schedules.CosineDecay(
            stage.lr / 100, steps - steps // 10, alpha=0.01, warmup_target=stage.lr, warmup_steps=max(1, steps // 10)
        )
    more: dict[str, Any] = {"weight_decay": stage.decay} if stage.decay else {}
    if stage.ema:
        more |= {"use_ema": True, "ema_momentum": stage.ema}
    if stage.optimizer in ("sgd", "rmsprop"):
        more["momentum"] = 0.9
    if stage.optimizer == "sgd":
        more["nesterov"] = True
    makers = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "rmsprop": "RMSprop"}
    if stage.optimizer == "adamw":
        more.setdefault("weight_decay", 0.0)
    optimizer = getattr(keras.optimizers, makers[stage.optimizer])(rate, **more)
    optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])  # these must not shrink
    return optimizer


class Keeper(keras.callbacks.Callback):  # type: ignore[misc]  # keras ships no types
    """Watches every epoch: keeps the best weights, saves the state, tells the terminal, ends what gets no better."""

    def __init__(self, model: keras.Model, stage: Stage, batches: Batches, state: Path, enough: float) -> None:
        super().__init__()
        self.network, self.stage, self.batches, self.state = model, stage, batches, state
        self.loss = enough
        self.history: list[dict[str, Any]] = []
        self.best: list[Any] = _values(model.weights)
        self.waited = 0
        self.saved, self.saving = -math.inf, 0.0

    # ------------------------------------------------------------------ what Keras calls

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.began = time.monotonic()
        self.batches.begin(epoch)
        if self.stage.schedule == "plateau":
            self.network.optimizer.learning_rate.assign(self.stage.lr * 0.5 ** self._plateaus())
        for layer in self.network.layers:
            if hasattr(layer, "seed_generator"):  # dropout draws what this epoch draws, resumed or not
                layer.seed_generator.state.assign([self.stage.seed, epoch])
        self.bar = bar(f"{self.stage.name} {epoch + 1}/{self.stage.epochs}", self.params["steps"])
        self.step = self.bar.__enter__()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.step(1)

    def on_test_begin(self, logs: Any = None) -> None:
        self._swap()

    def on_test_end(self, logs: Any = None) -> None:
        self.measured = _values(self.network.weights)  # the averaged ones, if there are such
        self._swap()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.bar.__exit__(None, None, None)
        row: dict[str, Any] = {
            "stage": self.stage.name,
            "epoch": epoch + 1,
            **{k: round(float(v), 6) for k, v in (logs or {}).items()},
        }
        row["lr"] = float(f"{float(keras.ops.convert_to_numpy(self.network.optimizer.learning_rate)):.4g}")
        row["seconds"] = round(time.monotonic() - self.began, 2)
        better = row["val_loss"] < self.loss
        if better:
            self.loss, self.best = row["val_loss"], self.measured
        self.waited = 0 if better else self.waited + 1
        self.history.append(row)
        self._tell(row, better)
        if not math.isfinite(row["loss"]) or self.over(epoch + 1):
            self.network.stop_training = True
        if time.monotonic() - self.saved > max(PAUSE, SAVING_SHARE * self.saving):
            self.save()

    # ------------------------------------------------------------------ the state on the disk

    def save(self, over: bool = False) -> None:
        began = time.monotonic()
        about = {
            "stage": self.stage.name,
            "epoch": len(self.history),
            "loss": None if math.isinf(self.loss) else self.loss,
            "waited": self.waited,
            "over": over,
            "history": self.history,
        }
        groups = {"best": self.best}
        if not over:
            groups |= {"now": _values(self.network.weights), "optimizer": _values(self.network.optimizer.variables)}
        arrays = {f"{group}{number}": value for group, values in groups.items() for number, value in enumerate(values)}
        part = self.state.with_suffix(".part")
        try:
            with part.open("wb") as file:
                np.savez(file, about=np.array(json.dumps(about)), **arrays)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.state)
        except OSError as error:
            raise UserError(
                f"The state cannot be saved to {self.state.parent} ({error.strerror}). Free it, then --resume."
            ) from error
        self.saved = time.monotonic()
        self.saving = self.saved - began

    def restore(self) -> int:
        """How many epochs are done."""
        if not self.state.exists():
            return 0
        try:
            with np.load(self.state) as saved:
                about = json.loads(str(saved["about"]))
                self.best = _group(saved, "best", self.best)
                if not about["over"]:
                    optimizer = self.network.optimizer
                    optimizer.build(self.network.trainable_variables)
                    _assign(self.network.weights, _group(saved, "now", self.network.weights))
                    _assign(optimizer.variables, _group(saved, "optimizer", optimizer.variables))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.state} cannot be read ({error}). Start over with --fresh.") from error
        self.loss = math.inf if about["loss"] is None else about["loss"]
        self.history, self.waited = about["history"], about["waited"]
        return self.stage.epochs if about["over"] else int(about["epoch"])

    def over(self, done: int) -> bool:
        return done >= self.stage.epochs or (self.stage.patience is not None and self.waited >= self.stage.patience)

    def finish(self) -> None:
        self.take_best()
        self.save(over=True)

    def take_best(self) -> None:
        _assign(self.network.weights, self.best)

    # ------------------------------------------------------------------ inside

    def _plateaus(self) -> int:
        best, since, halved = math.inf, 0, 0
        for row in self.history:
            best, since = (row["val_loss"], 0) if row["val_loss"] < best else (best, since + 1)
            if since == PLATEAU:
                halved, since = halved + 1, 0
        return halved

    def _swap(self) -> None:
        """The weights and their moving averages change places: validation measures the averages."""
        if not self.stage.ema:
            return
        optimizer = getattr(self.network.optimizer, "inner_optimizer", self.network.optimizer)  # of float16's scaling
        pairs = zip(optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True)
        for weight, average in pairs:
            now = keras.ops.convert_to_numpy(weight)
            weight.assign(average)
            average.assign(now)

    def _tell(self, row: dict[str, Any], better: bool) -> None:
        usual = [r["seconds"] for r in self.history[-5:] if r["epoch"] > 1] or [row["seconds"]]  # the first also traces
        left = sum(usual) / len(usual) * (self.stage.epochs - row["epoch"])
        print(
            f"{self.stage.name:<9} {row['epoch']:>3}/{self.stage.epochs}  loss {row['loss']:.4f}  accuracy "
            f"{row['accuracy']:.1%}  validation {row['val_loss']:.4f}  {row['val_accuracy']:.1%}"
            f"{' best' if better else '     '}  {clock(left)} left",
            flush=True,
        )


def _values(variables: Any) -> list[Any]:
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def _group(saved: Any, name: str, like: Any) -> list[Any]:
    values = [saved[f"{name}{number}"] for number in range(len(like))]
    for value, expected in zip(values, like, strict=True):
        if tuple(value.shape) != tuple(expected.shape):
            raise ValueError("it is of another network")
    return values


def _assign(variables: Any, values: Any) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
