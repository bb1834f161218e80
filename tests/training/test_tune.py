"""The search of --tune on features made here: what it finds, keeps and survives."""

from __future__ import annotations

import math
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loupe.errors import UserError
from loupe.training.tune.search import Best, search
from loupe.training.tune.trial import Trial, solved
from tests.support.servers import ROOT

CLASSES = 4
EPOCHS = 8
DEFAULT = {"lr": 1e-4, "head": 64, "dropout": 0.2, "decay": 1e-3}
Pair = tuple[np.ndarray[Any, np.dtype[Any]], np.ndarray[Any, np.dtype[Any]]]


def features(number: int = 480, seed: int = 0) -> tuple[Pair, Pair]:
    """Two signs say the class together, neither does alone: without a hidden layer no head can learn it."""
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 1.0], (number, 3))
    y = (signs[:, 0] * signs[:, 1] > 0) * 2 + (signs[:, 1] * signs[:, 2] > 0)
    x = np.hstack([signs + rng.normal(0, 0.3, (number, 3)), rng.normal(0, 0.3, (number, 5))]).astype(np.float16)
    cut = number // 3
    return (x[cut:], y[cut:]), (x[:cut], y[:cut])


def run(journal: Path, trials: int = 8, seed: int = 42, **settings: Any) -> Best:
    train, validation = settings.pop("data", None) or features()
    return search(train, validation, CLASSES, trials, seed, journal, **{"epochs": EPOCHS, **settings})


def timeless(trials: list[Trial]) -> list[dict[str, Any]]:
    return [{name: value for name, value in trial.items() if name != "seconds"} for trial in trials]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Best, bytes]:
    journal = tmp_path_factory.mktemp("undisturbed") / "journal"
    return run(journal, trials=10, first=DEFAULT), journal.read_bytes()


def test_it_finds_what_was_planted_and_beats_the_default(undisturbed: tuple[Best, bytes]) -> None:
    best = undisturbed[0]
    default = best.trials[0]
    assert {name: default[name] for name in DEFAULT} == DEFAULT  # type: ignore[literal-required]
    assert default["val_accuracy"] is not None and default["val_loss"] is not None
    assert best.head > 0
    assert best.val_accuracy > default["val_accuracy"] + 0.2
    assert best.val_loss < default["val_loss"] / 2


def solved_with(loss: float) -> Trial:
    return solved({"val_loss": loss, "val_accuracy": 0.5, "seconds": 1.0})


def test_logistic_regression_is_listed_and_wins_unless_a_trial_is_better(tmp_path: Path) -> None:
    for loss, wins in ((0.0, True), (9.0, False)):
        best = run(tmp_path / "journal", 2, logistic=solved_with(loss))
        assert [trial["number"] for trial in best.trials] == [0, 1, 2]
        assert best.is_logistic == wins == (best.val_loss == loss)


def test_what_is_given_is_the_same_in_all_trials_and_the_rest_is_searched(tmp_path: Path) -> None:
    given = {"lr": 1e-6, "head": 1000}  # beyond what is searched
    best = run(tmp_path / "journal", 4, given=given, first=DEFAULT, batch_size=100)
    assert {(trial["lr"], trial["head"]) for trial in best.trials} == {(1e-6, 1000)}
    assert len({(trial["dropout"], trial["decay"]) for trial in best.trials}) == 4
    assert (best.trials[0]["dropout"], best.trials[0]["decay"]) == (0.2, 1e-3)
    assert best.batch_size == 100
    assert best.notes == [], "that a given rate is at an edge is no news"


def test_the_trials_learn_with_the_optimizer_and_the_schedule_that_are_given(tmp_path: Path) -> None:
    optimizers, schedules = ("adamw", "sgd", "rmsprop"), ("cosine", "constant", "plateau")
    ways: list[dict[str, Any]] = [{"optimizer": name} for name in optimizers] + [
        {"schedule": name} for name in schedules[1:]
    ]
    given = {"lr": 1.0, "head": 64, "decay": 0.1}  # so high a rate that the loss has plateaus
    curves = {tuple(run(tmp_path / str(way), 1, given=given, epochs=12, **way).trials[0]["curve"]) for way in ways}
    assert len(curves) == len(ways)


def test_trials_that_fall_behind_are_pruned_and_cost_less(undisturbed: tuple[Best, bytes]) -> None:
    pruned = [trial for trial in undisturbed[0].trials if trial["state"] == "pruned"]
    assert pruned
    assert all(len(trial["curve"]) < EPOCHS for trial in pruned)
    assert all(len(trial["curve"]) == EPOCHS for trial in undisturbed[0].trials if trial["state"] == "complete")


def test_one_seed_makes_the_same_trials_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = (run(tmp_path / name, 3, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert timeless(first.trials) == timeless(again.trials)
    assert timeless(first.trials) != timeless(other.trials)


@pytest.mark.slow
def test_wherever_the_journal_ends_the_search_goes_on_to_the_same_trials(
    undisturbed: tuple[Best, bytes], tmp_path: Path
) -> None:
    """It is only ever appended to: what a SIGKILL or a power cut leaves is a part of it, at worst of its last line."""
    best, journal = undisturbed
    for number, end in enumerate(np.random.default_rng(5).integers(1, len(journal), 2)):
        (tmp_path / str(number)).write_bytes(journal[:end])
        resumed = run(tmp_path / str(number), trials=10, first=DEFAULT)
        assert timeless(resumed.trials) == timeless(best.trials)


def test_on_a_terminal_of_80_columns_the_trials_are_a_table_that_is_not_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "80", "LINES": "40"}.items():
        monkeypatch.setenv(name, value)
    run(tmp_path / "journal", 2)
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("2 of 2 trials", "accuracy", "dropout", "complete ★", "s left", "epoch 1/8"))
    assert "…" not in shown


@pytest.mark.slow
def test_a_killed_search_resumes_and_loses_no_trial(undisturbed: tuple[Best, bytes], tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.training.test_tune import DEFAULT, run\n"
        "run(Path(sys.argv[1]), trials=10, first=DEFAULT)"
    )
    screen, terminal = pty.openpty()
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    command = [sys.executable, "-c", script, str(tmp_path / "journal")]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=terminal, stderr=terminal) as child:
        os.close(terminal)
        shown = ""
        try:
            while "3 of 10 trials" not in shown:
                shown += os.read(screen, 4096).decode(errors="replace")
        finally:
            child.kill()
    os.close(screen)
    assert child.returncode == -signal.SIGKILL
    assert all(word in shown for word in ("accuracy", "dropout", "★", "s left", "epoch 1/8"))

    new: list[Trial] = []
    resumed = run(tmp_path / "journal", trials=10, first=DEFAULT, on_trial=new.append)
    assert 0 < len(new) <= 7
    assert timeless(resumed.trials) == timeless(undisturbed[0].trials)
    assert [trial["number"] for trial in resumed.trials] == list(range(1, 11))


def test_a_finished_search_is_not_done_again_and_more_trials_continue_it(tmp_path: Path) -> None:
    first = run(tmp_path / "journal", 2)
    new: list[Trial] = []
    assert run(tmp_path / "journal", 2, on_trial=new.append).trials == first.trials
    assert not new
    assert len(run(tmp_path / "journal", 3, on_trial=new.append).trials) == 3
    assert len(new) == 1


def test_a_journal_of_other_data_is_set_aside(tmp_path: Path) -> None:
    first = run(tmp_path / "journal", 2)
    best = run(tmp_path / "journal", 2, data=features(seed=1))
    assert any("journal.old" in note for note in best.notes)
    (tmp_path / "journal.old").replace(tmp_path / "journal")
    assert run(tmp_path / "journal", 2, on_trial=pytest.fail).trials == first.trials
    assert len(best.trials) == 2


def in_a_process_of_its_own(journal: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Ctrl-C is tried where nothing else has run: signals raised within a long run of tests have ended it outright."""
    head = (
        "import os, signal, sys, threading; from pathlib import Path; from tests.training.test_tune import run\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs inherit it ignored
        "interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
    )
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", head + script, str(journal)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_interrupted_it_ends_with_the_best_so_far(tmp_path: Path) -> None:
    """As Ctrl-C comes just after a trial; as a signal it is slow to try."""

    def interrupt(trial: Trial) -> None:
        if trial["number"] == 3:
            raise KeyboardInterrupt

    best = run(tmp_path / "journal", 8, on_trial=interrupt)
    assert not best.finished
    assert any("3 of 8" in note for note in best.notes)
    assert best.val_loss == min(trial["val_loss"] or math.inf for trial in best.trials)
    assert len(run(tmp_path / "journal", 4).trials) == 4


@pytest.mark.slow
def test_ctrl_c_ends_it_with_the_best_so_far(tmp_path: Path) -> None:
    script = (
        "best = run(Path(sys.argv[1]), 8, on_trial=lambda trial: trial['number'] == 3 and interrupt())\n"
        "smallest = min(trial['val_loss'] or float('inf') for trial in best.trials)\n"
        "print(best.finished, any('3 of 8' in note for note in best.notes), best.val_loss == smallest)"
    )
    ended = in_a_process_of_its_own(tmp_path / "journal", script)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["False", "True", "True"]
    assert len(run(tmp_path / "journal", 4).trials) == 4


@pytest.mark.slow
def test_ctrl_c_before_any_trial_is_ctrl_c(tmp_path: Path) -> None:
    script = (
        "threading.Timer(0.1, interrupt).start()\n"
        "try:\n    run(Path(sys.argv[1]), epochs=100_000)\nexcept KeyboardInterrupt:\n    print('interrupted')"
    )
    ended = in_a_process_of_its_own(tmp_path / "journal", script)
    assert ended.stdout.split()[-1:] == ["interrupted"], ended.stderr


def test_a_trial_that_diverges_is_counted_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loupe.training.tune.search.RATES", (1e-3, 1e30))
    best = run(tmp_path / "journal", 6)
    diverged = [trial for trial in best.trials if trial["state"] == "diverged"]
    assert diverged
    assert any(f"{len(diverged)} of 6 trials diverged" in note for note in best.notes)
    assert math.isfinite(best.val_loss)


def test_features_without_usable_numbers_end_in_one_clear_line(tmp_path: Path) -> None:
    (x, y), validation = features()
    with pytest.raises(UserError, match="All 2 trials diverged"):
        run(tmp_path / "journal", 2, data=((np.full_like(x, np.inf), y), validation))


def test_a_winner_at_the_edge_of_the_range_is_said_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loupe.training.tune.search.RATES", (1e-6, 1e-5))  # all too small
    best = run(tmp_path / "journal", 1, first={**DEFAULT, "lr": 1e-5})
    assert any("upper edge" in note for note in best.notes)


def test_class_weights_and_smoothing_change_what_is_learnt(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", 1)
    weighted = run(tmp_path / "weighted", 1, class_weights={0: 5.0})
    smoothed = run(tmp_path / "smoothed", 1, label_smoothing=0.3)
    assert len({plain.val_loss, weighted.val_loss, smoothed.val_loss}) == 3


def test_without_a_terminal_each_trial_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "journal", 2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(f"trial {number} · lr" in line for number, line in enumerate(lines, 1))


def test_a_journal_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="free it and start again"):
        run(tmp_path / "file" / "journal", 1)
