"""Train a network on a data set, keep its best state, and measure it once.

    finished = fit(model, data, plan, folder)      # folder/model.keras and history.csv; False after Ctrl-C
    metrics = measure(folder, data)                # of the best state, on the test pictures

The best state is the one of the smallest loss on the validation pictures; the test pictures decide nothing.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras.callbacks import CSVLogger, ModelCheckpoint

from loupe.training.dataset import Dataset, Indices

BEST = "model.keras"
ECE_BINS = 15


@dataclass(frozen=True)
class Plan:
    epochs: int
    batch_size: int
    lr: float  # the highest; it rises to this in the first tenth of the steps and falls back along a cosine
    seed: int


def fit(model: keras.Model, data: Dataset, plan: Plan, folder: Path) -> bool:
    """Whether training came to its end. Either way the best state so far is in `folder`, once an epoch was finished."""
    batches = Batches(data, data.train, plan.batch_size, plan.seed)
    steps = plan.epochs * len(batches)
    rate = keras.optimizers.schedules.CosineDecay(
        plan.lr / 100, steps - steps // 10, alpha=0.01, warmup_target=plan.lr, warmup_steps=max(1, steps // 10)
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(rate, weight_decay=1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,  # on a CPU it takes longer to compile and is no faster after
    )
    watchers = [
        ModelCheckpoint(str(folder / BEST), monitor="val_loss", save_best_only=True),
        CSVLogger(str(folder / "history.csv")),
        TimeLeft(),
    ]
    validation = Batches(data, data.validation, plan.batch_size)
    try:
        bar = 1 if sys.stdout.isatty() else 2  # Keras's bar, or a line an epoch where it would only fill a log
        model.fit(batches, validation_data=validation, epochs=plan.epochs, callbacks=watchers, verbose=bar)
    except KeyboardInterrupt:
        return False
    return True


def measure(folder: Path, data: Dataset) -> dict[str, Any]:
    """Of the best state on the test pictures: accuracy, loss, expected calibration error, confusion (rows: truth)."""
    model = keras.saving.load_model(folder / BEST, compile=False)
    logits = model.predict(Batches(data, data.test, 32), verbose=0).astype(np.float64)
    truth = data.classes[data.test]
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    guess, confidence = log_p.argmax(axis=1), np.exp(log_p.max(axis=1))
    confusion = np.zeros((len(data.labels),) * 2, dtype=int)
    np.add.at(confusion, (truth, guess), 1)
    return {
        "accuracy": round(float((guess == truth).mean()), 4),
        "loss": round(float(-log_p[np.arange(len(truth)), truth].mean()), 4),
        "ece": round(_ece(confidence, guess == truth), 4),
        "labels": list(data.labels),
        "confusion": confusion.tolist(),
        "images": {split: data.counts(getattr(data, split)) for split in ("train", "validation", "test")},
    }


def _ece(confidence: Any, right: Any) -> float:
    """How far confidence and accuracy lie apart, over bins of confidence, weighted by their pictures."""
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    return float(sum(abs((confidence - right)[bins == number].sum()) for number in range(ECE_BINS)) / len(right))


class Batches(keras.utils.PyDataset):  # type: ignore[misc]  # keras ships no types
    """Batches of a split. With a seed: shuffled and varied anew each epoch, the same way in each run."""

    def __init__(self, data: Dataset, indices: Indices, size: int, seed: int | None = None) -> None:
        super().__init__()
        self.data, self.size, self.epoch, self.seed = data, size, 0, seed
        self.indices = indices
        self.order = indices
        self._shuffle()

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / self.size)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        chosen = self.order[number * self.size : (number + 1) * self.size]
        pixels = self.data.pixels[chosen].astype(np.float32)
        if self.seed is not None:
            rng = np.random.default_rng((self.seed, self.epoch, number))
            pixels = np.stack([vary(image, rng) for image in pixels])
        return pixels, self.data.classes[chosen]

    def on_epoch_end(self) -> None:
        self.epoch += 1
        self._shuffle()

    def _shuffle(self) -> None:
        if self.seed is not None:
            self.order = np.random.default_rng((self.seed, self.epoch)).permutation(self.indices)


def vary(image: Any, rng: np.random.Generator) -> Any:
    """The same thing seen otherwise: mirrored, turned, in a little more or less light and contrast."""
    square = image.shape[0] == image.shape[1]
    image = np.rot90(image, int(rng.integers(4)) if square else 2 * int(rng.integers(2)))
    if rng.random() < 0.5:
        image = image[:, ::-1]
    mean = image.mean()
    return np.clip((image - mean) * rng.uniform(0.85, 1.2) + mean + rng.uniform(-15, 15), 0, 255)


class TimeLeft(keras.callbacks.Callback):  # type: ignore[misc]  # keras ships no types
    """Says before each epoch but the first how long the rest will take."""

    def on_train_begin(self, logs: object = None) -> None:
        self.started = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        if epoch:
            left = (time.monotonic() - self.started) / epoch * (self.params["epochs"] - epoch)
            print(f"{left:.0f} s left · " if left < 120 else f"{left / 60:.0f} min left · ", end="")
