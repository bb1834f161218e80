"""Train a head on features in memory, many times over with different settings: the trials of the search.

    bench = Bench((x, y), (x_val, y_val), classes, seed, epochs, batch_size, …)
    for loss, accuracy in bench.train(lr, head, dropout, decay):    # of the validation pictures, after each epoch
        …

There is one graph for each head size, in which rate, dropout and decay are variables. Keras's fit traces each model
anew and costs milliseconds a step: with it a trial takes three to six times as long.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

import keras
import numpy as np
import tensorflow as tf

from loupe.training.fit.optimizer import make, plateaus

Array = np.ndarray[Any, np.dtype[Any]]
Examples = tuple[Array, Array]  # features [N, D], classes [N]


class Trial(TypedDict):
    number: int  # from 1 up
    state: str  # "complete" | "pruned" | "diverged" | "logistic": number 0, solved and not trained
    lr: float
    head: int
    dropout: float
    decay: float
    val_loss: float | None  # of the best epoch, like val_accuracy; None if the first epoch diverged
    val_accuracy: float | None
    curve: list[float]  # val_loss of each epoch
    seconds: float


def best_of(trials: list[Trial]) -> Trial | None:
    return min(
        (row for row in trials if row["state"] in ("complete", "logistic")),
        key=lambda row: row["val_loss"] or 0,
        default=None,
    )


def solved(row: Mapping[str, Any]) -> Trial:
    """Return a logistic regression, by its row of the history, as it is listed among the trials."""
    loss, accuracy = row["val_loss"], row["val_accuracy"]
    return Trial(
        number=0, state="logistic", lr=0.0, head=0, dropout=0.0, decay=0.0,
        val_loss=loss, val_accuracy=accuracy, curve=[loss], seconds=row["seconds"],
    )  # fmt: skip


class Bench:
    def __init__(
        self,
        train: Examples,
        validation: Examples,
        classes: int,
        seed: int,
        epochs: int,
        batch_size: int,
        class_weights: Mapping[int, float],
        label_smoothing: float,
        optimizer: str,
        schedule: str,
    ) -> None:
        # The examples, as tensors.
        self.x, self.x_val = tf.constant(train[0]), tf.constant(validation[0])
        self.y = tf.one_hot(train[1], classes)
        self.y_val = tf.constant(validation[1], tf.int64)
        # Weights, loss and steps of the training.
        weights = np.array([class_weights.get(number, 1.0) for number in range(classes)], np.float32)
        self.weights = tf.constant(weights[train[1]])
        self.classes, self.seed, self.epochs = classes, seed, epochs
        self.optimizer, self.schedule = optimizer, schedule
        self.loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=label_smoothing)
        self.steps = math.ceil(len(train[1]) / batch_size)
        self.heads: dict[int, _Head] = {}

    def train(self, lr: float, head: int, dropout: float, decay: float) -> Iterator[tuple[float, float]]:
        """Train a head and yield validation loss and accuracy after each epoch. All trainings start from the same
        weights and see the same pictures in the same order."""
        if head not in self.heads:
            self.heads[head] = _Head(self, head)
        network = self.heads[head]
        network.reset(dropout, decay)
        rates = np.full((self.epochs, self.steps), lr, np.float32)
        if self.schedule == "cosine":
            rates *= _cosine(self.steps * self.epochs).reshape(rates.shape)
        rng = np.random.default_rng(self.seed)
        count = len(self.weights)
        losses: list[float] = []
        for rate in rates:
            if self.schedule == "plateau":
                rate = rate * 0.5 ** plateaus(losses)
            order = np.resize(rng.permutation(count), (self.steps, math.ceil(count / self.steps)))
            loss, accuracy = network.epoch(tf.constant(order), tf.constant(rate, tf.float32))
            losses.append(float(loss))
            yield float(loss), float(accuracy)


class _Head:
    def __init__(self, bench: Bench, size: int) -> None:
        # The layers: a hidden one with dropout if there is a size, and the classes.
        self.bench = bench
        self.dropout = _Dropout(bench.seed)
        glorot = keras.initializers.GlorotUniform
        layers = [keras.Input(bench.x.shape[1:])]
        if size:
            layers += [keras.layers.Dense(size, "relu", kernel_initializer=glorot(bench.seed), dtype="float32")]
            layers += [self.dropout]
        layers += [keras.layers.Dense(bench.classes, kernel_initializer=glorot(bench.seed + 1), dtype="float32")]
        self.model = keras.Sequential(layers)
        # What `reset` restores, and the variables it sets.
        self.start = self.model.get_weights()
        self.optimizer = make(bench.optimizer, rate=1e-3, decay=0.0)  # `epoch` sets the rate, `reset` the decay
        self.optimizer.build(self.model.trainable_variables)
        self.decay = self.optimizer.weight_decay = tf.Variable(0.0)
        self.epoch = tf.function(self._epoch)

    def reset(self, dropout: float, decay: float) -> None:
        self.model.set_weights(self.start)
        for variable in self.optimizer.variables:
            variable.assign(keras.ops.zeros_like(variable))
        self.dropout.rate.assign(dropout)
        self.dropout.step.assign(0)
        self.decay.assign(decay)

    def _epoch(self, order: Any, rates: Any) -> tuple[Any, Any]:
        # Train for one epoch.
        bench, variables = self.bench, self.model.trainable_variables
        for step in tf.range(bench.steps):
            rows = order[step]
            self.optimizer.learning_rate.assign(rates[step])
            with tf.GradientTape() as tape:
                logits = self.model(tf.cast(tf.gather(bench.x, rows), tf.float32), training=True)
                loss = bench.loss(tf.gather(bench.y, rows), logits, sample_weight=tf.gather(bench.weights, rows))
            self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        # Measure on the validation pictures.
        logits = self.model(tf.cast(bench.x_val, tf.float32), training=False)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(bench.y_val, logits))
        is_right = tf.cast(tf.equal(tf.argmax(logits, axis=1), bench.y_val), tf.float32)
        # The relu of NaN is 0, so the loss alone would not show that weights have become NaN.
        is_finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(variable)) for variable in variables])
        return tf.where(is_finite, loss, math.nan), tf.reduce_mean(is_right)


class _Dropout(keras.layers.Layer):  # type: ignore[misc]  # keras ships no types
    """Dropout with a variable rate: Keras's own has its rate traced into the graph."""

    def __init__(self, seed: int) -> None:
        super().__init__(dtype="float32")
        self.seed = seed
        self.rate = tf.Variable(0.0, trainable=False)
        self.step = tf.Variable(0, trainable=False)

    def call(self, inputs: Any, training: bool = False) -> Any:
        if not training:
            return inputs
        return tf.nn.experimental.stateless_dropout(inputs, self.rate, (self.seed, self.step.assign_add(1)))


def _cosine(steps: int) -> Array:
    """Return the rates of a training as shares of the highest: rising in the first tenth of the steps, falling along a
    cosine."""
    warmup = max(1, steps // 10)
    progress = np.arange(steps - warmup) / max(1, steps - warmup)
    falling = 0.01 + 0.99 * (1 + np.cos(np.pi * progress)) / 2
    return np.concatenate([np.arange(1, warmup + 1) / warmup, falling]).astype(np.float32)
