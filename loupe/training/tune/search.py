"""Search learning rate × head size × dropout × weight decay on features that are already computed.

    best = search((x, y), (x_val, y_val), classes, trials=30, seed=42, journal=folder / "tuning.journal")
    best.lr, best.head, best.dropout, best.decay      # train the winner with best.batch_size and the same epochs
    best.trials                                       # a dict a trial, for the report

A trial trains the head alone for all epochs, or is stopped early if others are better. Everything a trial does follows
from the seed and the trials before it, so a killed search resumes from its journal as if nothing had happened. Ctrl-C
ends the search with the best trial so far.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
from optuna.trial import TrialState

from loupe.errors import UserError
from loupe.training.tune.table import Screen
from loupe.training.tune.trial import Array, Bench, Examples, Trial, best_of

RATES = (1e-4, 5e-2)  # AdamW with so few, large batches: below it no head learns enough, above it few stay stable
HEADS = (0, 64, 128, 256, 512)  # 0: no head, only the classes; beyond 512 a head overfits
DROPOUTS = (0.0, 0.6)  # more leaves too little of a head of this size
DECAYS = (1e-5, 3e-1)  # AdamW multiplies it by the rate: less has no effect

STEPS = 8  # in an epoch, at least, so that a small data set learns something in 20 epochs
SMALLEST_BATCH, LARGEST_BATCH = 16, 256
# After 3, 6 and 12 epochs the worse half of the trials that got there is stopped. Compared with a median pruner, the
# winners were as good or better in four of four searches, with four fifths of the epochs.
FIRST_RUNG, KEEP_ONE_IN = 3, 2


@dataclass(frozen=True)
class Best:
    lr: float
    head: int
    dropout: float  # 0.0 for head 0, which has none
    decay: float
    val_loss: float
    val_accuracy: float
    batch_size: int  # the rate is only right for this size
    trials: list[Trial]
    notes: list[str]  # for people: what is odd about the search
    finished: bool  # False after Ctrl-C
    is_logistic: bool = False  # no trial was better than logistic regression: of the settings only head 0 counts


def search(
    train: Examples,
    validation: Examples,
    classes: int,
    trials: int,
    seed: int,
    journal: Path,
    *,
    epochs: int = 20,
    batch_size: int | None = None,
    optimizer: str = "adamw",
    schedule: str = "cosine",
    class_weights: Mapping[int, float] | None = None,
    label_smoothing: float = 0.0,
    given: Mapping[str, float] | None = None,
    first: Mapping[str, float] | None = None,
    logistic: Trial | None = None,
    on_trial: Callable[[Trial], None] | None = None,
) -> Best:
    """Return the settings of the head with the smallest validation loss.

    `given` (of lr, head, dropout, decay) is the same in all trials. `first` (of the others; the nearest within the
    ranges) is tried first and never pruned, so the winner is at least as good. `logistic` is no trial and wins if none
    is better. `on_trial` is called with each trial instead of showing the table on the screen.
    """
    # Everything that the results depend on is in the journal's key.
    batch_size = batch_size or min(LARGEST_BATCH, max(SMALLEST_BATCH, len(train[1]) // STEPS))
    given, first = given or {}, {name: value for name, value in (first or {}).items() if name not in (given or {})}
    sorted_options = [sorted(options.items()) for options in (class_weights or {}, given, first)]
    settings = (classes, seed, epochs, batch_size, optimizer, schedule, label_smoothing, sorted_options)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    notes: list[str] = []
    finished = True
    # Resume from the journal's trials.
    try:
        stored_study = _open_study(journal, _search_key((*train, *validation), settings), notes)
        study = optuna.create_study(pruner=optuna.pruners.SuccessiveHalvingPruner(FIRST_RUNG, KEEP_ONE_IN))
        study.add_trials(stored_study.trials)
        done: list[Trial] = [trial.user_attrs["row"] for trial in study.trials]
        if first and not done:
            study.enqueue_trial(_clip_to_ranges(first))
        # Run the trials that are left.
        try:
            with Screen(trials, epochs, done, on_trial, logistic) as screen:
                bench = Bench(
                    train,
                    validation,
                    classes,
                    seed,
                    epochs,
                    batch_size,
                    class_weights or {},
                    label_smoothing,
                    optimizer,
                    schedule,
                )
                while len(done) < trials:
                    study.sampler = optuna.samplers.TPESampler(seed=_trial_seed(seed, len(done)))
                    row = _run_trial(study, bench, screen, given)
                    stored_study.add_trial(study.trials[-1])  # a kill never leaves half of it
                    done.append(row)
                    screen.finished()
        except KeyboardInterrupt:
            finished = False
    except OSError as error:
        raise UserError(
            f"The search cannot write {journal} ({error.strerror}): free it and start again; finished trials are kept."
        ) from error
    # Choose the winner.
    return _result(done, trials, batch_size, notes, finished, "lr" in given, logistic)


def _run_trial(study: optuna.Study, bench: Bench, screen: Screen, given: Mapping[str, float]) -> Trial:
    """Run one trial: draw the settings that are not given, train the head, and report each epoch to the study."""
    # Draw the settings.
    trial = study.ask()
    draws: dict[str, Callable[[], Any]] = {
        "lr": lambda: float(f"{trial.suggest_float('lr', *RATES, log=True):.2g}"),  # short enough for a flag
        "head": lambda: trial.suggest_categorical("head", HEADS),
        "dropout": lambda: round(trial.suggest_float("dropout", *DROPOUTS), 2),
        "decay": lambda: float(f"{trial.suggest_float('decay', *DECAYS, log=True):.2g}"),
    }
    drawn: dict[str, Any] = {name: given[name] if name in given else draw() for name, draw in draws.items()}
    row = Trial(
        number=trial.number + 1,
        state="complete",
        lr=drawn["lr"],
        head=drawn["head"],
        dropout=drawn["dropout"],
        decay=drawn["decay"],
        val_loss=None,
        val_accuracy=None,
        curve=[],
        seconds=0.0,
    )
    if not row["head"]:
        row["dropout"] = 0.0
    # Train, and stop if the loss diverges or the trial is pruned.
    started = time.monotonic()
    for epoch, (loss, accuracy) in enumerate(bench.train(row["lr"], row["head"], row["dropout"], row["decay"])):
        trial.report(loss, epoch)
        if not math.isfinite(loss):
            row["state"] = "diverged"
            break
        row["curve"].append(round(loss, 5))
        if row["val_loss"] is None or loss < row["val_loss"]:
            row["val_loss"], row["val_accuracy"] = loss, accuracy
        row["seconds"] = time.monotonic() - started
        screen.epoch(row)
        if epoch + 1 < bench.epochs and trial.should_prune():
            row["state"] = "pruned"
            break
    # Store the trial.
    row["seconds"] = round(time.monotonic() - started, 3)
    trial.set_user_attr("row", row)
    complete = row["state"] == "complete"
    study.tell(trial, row["val_loss"] if complete else None, TrialState.COMPLETE if complete else TrialState.PRUNED)
    return row


def _clip_to_ranges(first: Mapping[str, float]) -> dict[str, float]:
    """Return the settings of the first trial, moved into the ranges of the search."""
    bounds = {"lr": RATES, "dropout": DROPOUTS, "decay": DECAYS, "head": (HEADS[0], HEADS[-1])}
    clipped = {name: min(max(value, bounds[name][0]), bounds[name][1]) for name, value in first.items()}
    if "head" in clipped:
        clipped["head"] = min(HEADS, key=lambda head: abs(head - clipped["head"]))
    return clipped


def _result(
    trials: list[Trial],
    wanted_trials: int,
    batch_size: int,
    notes: list[str],
    finished: bool,
    rate_given: bool,
    logistic: Trial | None,
) -> Best:
    # Without a winner there is nothing to train.
    candidates = [logistic, *trials] if logistic else trials
    winner = best_of(candidates)
    diverged = sum(row["state"] == "diverged" for row in trials)
    if winner is None and not finished:
        raise KeyboardInterrupt
    if winner is None:
        raise UserError(f"All {len(trials)} trials diverged: the features hold no usable numbers; compute them again.")
    # What a person should know of the search.
    if not finished:
        notes.append(f"Interrupted after {len(trials)} of {wanted_trials} trials: the best of these.")
    if diverged:
        notes.append(f"{diverged} of {len(trials)} trials diverged.")
    for edge, side in zip(RATES, ("lower", "upper"), strict=True) if winner is not logistic and not rate_given else ():
        if abs(math.log(winner["lr"] / edge)) < 0.05 * math.log(RATES[1] / RATES[0]):
            notes.append(f"The best rate, {winner['lr']:g}, is at the {side} edge of what was searched.")
    # The winner's settings.
    assert winner["val_loss"] is not None and winner["val_accuracy"] is not None
    return Best(
        winner["lr"],
        winner["head"],
        winner["dropout"],
        winner["decay"],
        winner["val_loss"],
        winner["val_accuracy"],
        batch_size,
        candidates,
        notes,
        finished,
        winner is logistic,
    )


# The journal


def _open_study(journal: Path, key: str, notes: list[str]) -> optuna.Study:
    """Open the journal's study. A journal with another key is moved aside."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    study = _study(journal)
    if study.user_attrs.get("key", key) != key:
        old_journal = journal.with_name(f"{journal.name}.old")
        journal.replace(old_journal)
        notes.append(
            f"The journal was of other data or settings: it lies in {old_journal} now, and the search began anew."
        )
        study = _study(journal)
    study.set_user_attr("key", key)
    return study


def _study(journal: Path) -> optuna.Study:
    if journal.exists():
        _cut_off_broken_line(journal)
    return optuna.create_study(
        study_name="head",
        storage=JournalStorage(JournalFileBackend(str(journal), _Lock(journal))),
        load_if_exists=True,
    )


def _cut_off_broken_line(journal: Path) -> None:
    """Cut off a line that was not fully written because power or disk space ran out: Optuna stops reading there."""
    with journal.open("r+b") as file:
        file.truncate(sum(len(line) for line in takewhile(_is_whole_line, file.readlines())))


def _is_whole_line(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


class _Lock(JournalFileOpenLock):
    """A lock that ends with its process. Optuna's own outlive a SIGKILL, and the next search waits 30 s for them."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal

    def acquire(self) -> bool:
        self.file = os.open(self.journal, os.O_RDWR)
        fcntl.flock(self.file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        os.close(self.file)


def _search_key(arrays: tuple[Array, ...], settings: tuple[Any, ...]) -> str:
    """Return a digest of everything that the trials depend on."""
    digest = hashlib.sha256(repr((RATES, HEADS, DROPOUTS, DECAYS, settings)).encode())
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _trial_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
