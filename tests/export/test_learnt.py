"""What has learnt nothing is not published; what has is, and chance is allowed for both ways."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

import convert as script
from loupe.card import Card
from loupe.cli import run_script
from loupe.errors import NothingLearnt
from loupe.export.publish.earlier import beside, newest_before
from loupe.export.publish.learnt import least_right, refuse_what_learnt_nothing
from tests.support.networks import finished_run


def measured(right: int, pictures: int, commonest: int) -> Card:
    metrics = {"accuracy": round(right / pictures, 4), "images": pictures, "commonest": commonest, "split": "test"}
    return Card("toy", ("a", "b"), 8, 8, metrics=metrics)


def is_refused(right: int, pictures: int, commonest: int) -> bool:
    try:
        refuse_what_learnt_nothing(measured(right, pictures, commonest))
    except NothingLearnt:
        return True
    return False


def test_what_the_version_before_was_right_on_is_said_and_the_way_back_if_it_was_better(tmp_path: Path) -> None:
    for number, card in enumerate([measured(33, 36, 13), Card("toy", ("a", "b"), 8, 8), measured(31, 36, 13)], 1):
        (tmp_path / str(number) / "assets.extra").mkdir(parents=True)
        (tmp_path / str(number) / "assets.extra" / "card.json").write_text(card.to_json())
    assert newest_before(tmp_path, 1) is None
    before = newest_before(tmp_path, 3)
    assert before and before[0] == 1, "the second does not say how often it is right"
    said = "version 1 was right on 91.7% of 36 test pictures, this one on 86.1% of 36 test pictures"
    assert beside(*before, measured(31, 36, 13), "") == f"{said}; `python convert.py --rollback toy` goes back to it"
    assert "--rollback" not in beside(*before, measured(34, 36, 13), "")


@pytest.mark.parametrize(("pictures", "commonest"), [(40, 20), (60, 20), (120, 60), (341, 60), (1000, 900)])
def test_where_the_pictures_are_enough_luck_is_told_from_learning(pictures: int, commonest: int) -> None:
    share, random = commonest / pictures, np.random.default_rng(0)
    lucky, good = (random.binomial(pictures, chance, 2000) for chance in (share, (1 + share) / 2))
    assert np.mean([is_refused(int(right), pictures, commonest) for right in lucky]) >= 0.94
    assert np.mean([is_refused(int(right), pictures, commonest) for right in good]) <= 0.2


@pytest.mark.parametrize(("pictures", "commonest"), [(8, 4), (12, 6), (10, 4), (100, 95), (200, 190)])
def test_where_they_are_too_few_only_what_gets_no_more_right_is_refused(pictures: int, commonest: int) -> None:
    assert is_refused(commonest, pictures, commonest)
    assert not is_refused(commonest + 1, pictures, commonest)
    good = binom.cdf(commonest, pictures, (1 + commonest / pictures) / 2)
    assert good < 0.15, "seldom does one with half the mistakes get so few"


def test_of_so_few_that_no_mistake_would_prove_nothing_nothing_is_told() -> None:
    assert [least_right(pictures, commonest) for pictures, commonest in ((1, 1), (4, 2), (5, 3), (30, 30))] == [
        None
    ] * 4
    assert not is_refused(0, 4, 2)


def test_the_error_gives_both_numbers_and_the_way_to_publish_it_all_the_same() -> None:
    with pytest.raises(NothingLearnt) as nothing:
        refuse_what_learnt_nothing(measured(20, 40, 20))
    assert str(nothing.value) == (
        "toy is not published: 20 of 40 test pictures are right, and always saying the commonest class gets 20: it has "
        "learnt nothing that helps. Its report tells more; --publish-anyway publishes it all the same."
    )
    with pytest.raises(NothingLearnt, match="23 of 40 .* gets 20: chance explains the difference"):
        refuse_what_learnt_nothing(measured(23, 40, 20))


def test_cards_that_do_not_say_what_was_measured_are_not_judged_and_old_ones_by_their_confusion() -> None:
    for metrics in ({}, {"accuracy": 0.5}, {"accuracy": 0.5, "images": 40}, {"accuracy": None, "images": 40}):
        refuse_what_learnt_nothing(Card("toy", ("a", "b"), 8, 8, metrics=metrics))
    old = {"accuracy": 0.5, "images": 40, "confusion": [[20, 0], [20, 0]]}
    with pytest.raises(NothingLearnt):
        refuse_what_learnt_nothing(Card("toy", ("a", "b"), 8, 8, metrics=old))


def test_convert_refuses_such_a_run_leaves_nothing_and_publishes_it_anyway_if_it_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_run(tmp_path / "run", metrics={"accuracy": 0.35, "images": 60, "commonest": 20, "split": "test"})
    command = ["convert.py", str(run), "--models", str(tmp_path / "models"), "--no-parity"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        run_script(script.main)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("convert.py: toy is not published: 21 of 60 test pictures are right")
    assert not (tmp_path / "models").exists()
    monkeypatch.setattr(sys, "argv", [*command, "--publish-anyway"])
    script.main()
    assert (tmp_path / "models" / "toy" / "1" / "saved_model.pb").exists()
