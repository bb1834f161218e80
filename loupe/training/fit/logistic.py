"""Solve a head without a hidden layer as what it is: a logistic regression, which has one best solution.

    start = solve_head(batches, validation, path=run.state / "logistic.npz")
    start.kernel, start.bias       # weights of the layer `logits`, for features as the batches have them: scaled
    start.row                      # of the history: loss and accuracy, as those of an epoch

L-BFGS gets there in seconds, and gradient descent hardly ever. So a head begins from this, and keeps it if no epoch is
better. How far the weights are held back is chosen by cross-validation on the training pictures alone.
"""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_limits

from loupe.progress import bar
from loupe.training.fit.batches import Batches
from loupe.training.fit.state import write

# What is tried: C as scikit-learn counts it. The larger it is, the less the weights are held back.
STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)
UNTRIED = 1e-2  # where a class has too few pictures to try any
FOLDS = 5
MOST = 1e9  # features × classes of all pictures that are solved for. Of more, which would take minutes, some are drawn.

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Start:
    kernel: Array  # [D, C]
    bias: Array  # [C]
    strength: float
    row: dict[str, Any]


def solve_head(batches: Batches, validation: Batches, path: Path) -> Start:
    """Return the solution for the pictures of `batches`, measured on those of `validation`. It is kept at `path`, so
    that a resumed run begins from the very same numbers."""
    if path.exists():
        with np.load(path) as saved:
            return Start(saved["kernel"], saved["bias"], float(saved["strength"]), json.loads(str(saved["row"])))
    started = time.monotonic()
    # Choose the strength, and solve for all pictures.
    x, truth, pictures = _examples(batches)
    shares = batches.shares[truth]
    weights = np.ones(len(x)) if batches.weights is None else batches.weights[truth].astype(np.float64)
    # One thread: more gain little for matrices of this size, and lose much if other work holds the cores.
    with threadpool_limits(1):
        strength, parameters = _choose(x, truth, shares, weights, pictures, batches.seed or 0)
        parameters = solve(x, shares, weights, strength, parameters).astype(np.float32)
    # Measure it as an epoch is measured.
    val_x = np.asarray(validation.source[validation.rows], np.float32)
    loss, accuracy = _measure(x[:pictures], truth[:pictures], parameters)
    val_loss, val_accuracy = _measure(val_x, validation.truth[validation.rows], parameters)
    measured = {"loss": loss, "accuracy": accuracy, "val_loss": val_loss, "val_accuracy": val_accuracy}
    row: dict[str, Any] = {
        "stage": "logistic",
        "epoch": 1,
        **{name: round(value, 6) for name, value in measured.items()},
    }
    row |= {"lr": 0.0, "seconds": round(time.monotonic() - started, 2)}
    # Keep it.
    kernel, bias = parameters[:-1], parameters[-1]
    write(path, kernel=kernel, bias=bias, strength=np.array(strength), row=np.array(json.dumps(row)))
    print(
        f"{'logistic':<9} C {strength:g}  loss {loss:.4f}  accuracy {accuracy:.1%}  validation {val_loss:.4f}  "
        f"{val_accuracy:.1%}  {row['seconds']:.0f} s",
        flush=True,
    )
    return Start(kernel, bias, strength, row)


def solve(x: Array, shares: Array, weights: Array, strength: float, start: Array) -> Array:
    """Return the parameters [D + 1, C] with the smallest loss; the last row is the bias, which is not held back.

    The loss is scikit-learn's, C · Σ weight · cross-entropy + ½ Σ kernel², for shares of classes instead of classes.
    With weights [N, F] these are F problems in one, and parameters [D + 1, F, C]: one product is faster than many.
    """
    scale = strength * len(x)
    shares, weights = shares[:, None], weights.reshape(len(x), -1, 1) / len(x)

    def loss(flat: Array) -> tuple[float, Array]:
        kernel, bias = np.split(flat.reshape(len(start), -1), [len(start) - 1])
        logits = x @ kernel.astype(np.float32) + bias.astype(np.float32)
        log_probabilities = log_softmax(logits.reshape(len(x), weights.shape[1], -1), axis=2)
        value = (kernel**2).sum() / (2 * scale) - (weights * shares * log_probabilities).sum()
        errors = (weights * (np.exp(log_probabilities) - shares)).reshape(len(x), -1)
        gradient = np.vstack([x.T @ errors.astype(np.float32) + kernel / scale, errors.sum(axis=0)])
        return float(value), gradient.ravel()

    options = {"maxiter": 300, "gtol": 1e-4, "ftol": 1e-9}
    found = minimize(loss, start.astype(np.float64).ravel(), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x).reshape(start.shape)


def _examples(batches: Batches) -> tuple[Array, Array, int]:
    """Return the features [N, D] and classes [N] of the training pictures in all their views, and how many pictures
    they are. The first of the rows are the pictures as they are."""
    rows, all_rows = batches.rows, len(batches.source) // batches.views
    numbers = batches.views * batches.source[rows[:1]].shape[1] * batches.shares.shape[1]
    most = max(1, int(MOST / numbers))
    if len(rows) > most:
        rows = np.random.default_rng(batches.seed).permutation(rows)[:most]
    x = np.concatenate([batches.source[rows + view * all_rows] for view in range(batches.views)])
    return x.astype(np.float32, copy=False), np.tile(batches.truth[rows], batches.views), len(rows)


def _choose(x: Array, truth: Array, shares: Array, weights: Array, pictures: int, seed: int) -> tuple[float, Array]:
    """Return the strength with the smallest loss on pictures that were held back, and parameters to go on from.

    Strengths are tried from the smallest on, each from the solution of the one before, until the loss grows.
    """
    nothing = np.zeros((x.shape[1] + 1, shares.shape[1]))
    folds = min(FOLDS, int(np.bincount(truth[:pictures]).max()))
    if folds < 2:
        return UNTRIED, nothing
    # Of a picture that is held back no view is learnt, and it is judged as it is.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class of fewer pictures than folds is in fewer of them
        splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(truth[:pictures], truth[:pictures]))
    is_learnt = np.ones((pictures, folds))
    for fold, (_, held) in enumerate(splits):
        is_learnt[held, fold] = 0
    fold_weights = weights[:, None] * np.tile(is_learnt, (len(x) // pictures, 1))
    # All folds at once, with one strength after the other.
    best_loss, best, found = np.inf, STRENGTHS[0], np.stack([nothing] * folds, axis=1)
    with bar("logistic", len(STRENGTHS)) as advance:
        for strength in STRENGTHS:
            tried = solve(x, shares, fold_weights, strength, found)
            losses = [_measure(x[held], truth[held], tried[:, fold])[0] for fold, (_, held) in enumerate(splits)]
            advance(1)
            if not np.mean(losses) < best_loss:
                break
            best_loss, best, found = float(np.mean(losses)), strength, tried
    return best, found.mean(axis=1)


def _measure(x: Array, truth: Array, parameters: Array) -> tuple[float, float]:
    """Return loss and accuracy, as of an epoch."""
    log_probabilities = log_softmax(x @ parameters[:-1].astype(np.float32) + parameters[-1], axis=1)
    return (
        float(-log_probabilities[np.arange(len(truth)), truth].mean()),
        float((log_probabilities.argmax(axis=1) == truth).mean()),
    )
