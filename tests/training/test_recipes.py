"""Every recipe reads, says what it promises, and runs end to end.

The last part trains each recipe as it is, but for random weights, one epoch a stage and two trials where it tunes, on
a miniature of its problem in that problem's own layout, then serves what was published.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from data.fetch import SOURCES
from loupe.card import Card
from loupe.errors import UserError
from loupe.training.recipes import RECIPES, load, names
from loupe.training.settings import HEAD, PLAIN, TUNED, Settings
from tests.support import problems
from tests.support.gateways import gateway
from tests.support.servers import ROOT, model_server

PUBLISHED: dict[str, dict[str, Any]] = {  # what the models that others published were trained with
    "tires": {"backbone": "xception", "tune_size": 150, "size": 224},
    "tires-cnn": {"backbone": "cnn", "weights": "none"},
    "cars": {"test": 0.0},
    "food": {
        "backbone": "mobilenetv2", "size": 160, "fine_tune": 100, "head": 256, "dropout": 0.1, "optimizer": "adam",
        "lr": 1e-3, "decay": 1e-6, "batch_size": 32, "epochs": 10, "validation": 0.1, "test": 0.1, "rotation": 45.0,
        "shear": 50.0, "zoom": (1.0, 1.5), "brightness": (1.0, 1.2), "flip": "horizontal", "patience": 5,
    },
    "food-resnet50": {"backbone": "resnet50", "size": 160},
    "kitchenware": {"backbone": "xception", "size": 299, "head": 0, "seed": 42},
    "flowers": {"backbone": "inceptionv3", "fine_tune": 15, "fine_tune_epochs": 50},
}  # fmt: skip
FIGURES = {"tires": ("0.825", "703", "327", "376", "325", "210", "115"), "food": ("0.70",), "cars": ("28", "7")}
FIGURES |= {"kitchenware": ("0.955", "4,445")}
SLOW = {"cars", "food", "food-resnet50", "flowers", "kitchenware", "tires"}  # minutes; tires-cnn goes the same way
OF_OUR_OWN = {"sample", "scratch", "photographs"}  # no known problem, so nothing to fetch and nothing published


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", names())
def test_a_recipe_states_its_command_its_time_its_accuracy_and_where_its_data_comes_from(name: str) -> None:
    text = (RECIPES / f"{name}.toml").read_text()
    head = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    for what in ("Time", "Accuracy", "Data"):
        assert re.search(rf"^# {what} +\S", head, re.MULTILINE), what
    assert re.search(rf"python train.py --recipe {name} (data/|DATA)", head)
    fetched = re.findall(r"python data/fetch.py (\S+)", head)
    assert fetched or name in OF_OUR_OWN
    assert set(fetched) <= SOURCES.keys()
    for figure in FIGURES.get(name, ()):
        assert figure in head, figure


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_settings_that_were_published(name: str) -> None:
    values = load(name)
    assert values.items() >= PUBLISHED[name].items()
    assert values["name"] not in {load(other).get("name") for other in names() if other != name}


def test_the_search_of_tires_chooses_what_won_for_others_first_and_keeps_what_the_recipe_gives() -> None:
    settings = Settings().having(load("tires"))
    assert {name for name in TUNED if getattr(settings, name) is not None} == set()
    assert (settings.resolved.lr, HEAD, settings.resolved.dropout) == (1e-4, 256, 0.2)
    assert (settings.epochs, settings.batch_size) == (50, 32)


def test_the_variant_differs_in_its_backbone_alone() -> None:
    small, large = load("food"), load("food-resnet50")
    assert {key for key in small if small[key] != large[key]} == {"name", "backbone"}


def test_each_problem_has_a_miniature() -> None:
    assert problems.MAKE.keys() == PUBLISHED.keys() == set(names()) - OF_OUR_OWN


def test_a_recipe_is_found_by_its_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("cars") == load(RECIPES / "cars.toml")


def test_a_recipe_holds_what_it_names_and_nothing_more(tmp_path: Path) -> None:
    path = written(tmp_path, 'batch-size = 16\nzoom = [1, 1.5]\nfine_tune = "all"\n')
    values = load(path)
    assert values == {"batch_size": 16, "zoom": (1.0, 1.5), "fine_tune": values["fine_tune"]}
    assert isinstance(values["fine_tune"], int)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epcohs = 3", "'epcohs' is no setting of a training; did you mean 'epochs'?"),
        ('epochs = "10"', "epochs takes no text: write 10 without the quotes"),
        ("epochs = 2.5", "takes a whole number"),
        ("epochs = 0", "--epochs is from 1"),
        ("backbone = 50", "takes a text"),
        ('backbone = "resnet"', "did you mean resnet50?"),
        ("zoom = 1.5", "takes two numbers"),
        ('zoom = ["1", 2]', "zoom takes no text"),
        ("class_weights = 1", "is true or false"),
        ("lr = 2026-11-21", "takes a number"),
        ("lr = nan", "--lr takes a number"),
        ("[training]\nlr = 1", "[training] is a table"),
        ("lr = 1e-3\nlr = 1e-4", "is no TOML"),
        ("batch_size = 1\nbatch-size = 2", "is there twice"),
        ("lr: 1", "is no TOML"),
    ],
)
def test_a_wrong_line_is_one_line_that_names_the_file(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError) as raised:
        load(path)
    assert said in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("car", "did you mean cars?"),
        ("zebras", "there are cars, "),
        ("gone/cars.toml", "There is no file gone/cars.toml"),
    ],
)
def test_a_recipe_that_is_not_there_is_answered_by_those_that_are(name: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        load(name)


def test_a_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is no TOML"):
        load(tmp_path / "mine.toml")


def test_every_key_of_every_recipe_is_a_flag_of_train_py() -> None:
    help_text = subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True).stdout
    for name in names():
        for key in load(name):
            assert re.search(rf"--{key.replace('_', '-')}\b", help_text), f"{name}: {key}"
    assert {spec.name for spec in fields(Settings)} >= {key for name in names() for key in load(name)}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in sorted(problems.MAKE)]
)
def test_a_recipe_runs_end_to_end_and_its_model_is_served(name: str, tmp_path: Path) -> None:
    problem = problems.MAKE[name](tmp_path)
    values = load(name)
    little = ["--weights", "none", "--epochs", "1", "--publish-anyway"]  # of one epoch from nothing
    little += ["--fine-tune-epochs", "1"] if values.get("fine_tune") else []
    little += ["--tune", "2"] if values.get("tune") else []
    command = [sys.executable, "train.py", "--recipe", name, str(problem.data), *little]
    places = ["--runs", str(tmp_path / "runs"), "--models", str(tmp_path / "models")]
    done = subprocess.run([*command, *places], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    is_frozen = values["backbone"] not in PLAIN
    assert ("stays as random as it is made" in done.stdout) == is_frozen

    run = tmp_path / "runs" / values["name"]
    card = Card.read(run / "card.json")
    assert card.labels == problem.labels
    assert (card.height, card.width) == (values["size"], values["size"])
    assert (run / "report.html").stat().st_size > 10_000
    if problem.predicted:
        with (run / "submission.csv").open(newline="") as file:
            head, *rows = csv.reader(file)
        assert head == ["Id", "label"]
        assert [row[0] for row in rows] == problem.predicted
        assert {row[1] for row in rows} <= set(problem.labels)

    picture = next(path for path in sorted(problem.data.rglob("*.jpg")))
    models = tmp_path / "models"
    with (
        model_server(models, values["name"]) as server,
        gateway(f"localhost:{server.port}", values["name"], LOUPE_MODEL_TIMEOUT="60") as here,
    ):
        answer = here.post("/predict?heatmap=1", picture.read_bytes(), "image/jpeg").json()
    assert set(answer["scores"]) == set(problem.labels)
    assert answer["label"] in problem.labels
    assert answer["model"] == {"name": values["name"], "version": 1}
