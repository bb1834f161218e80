"""Cause each fault, and check that the gate names its stage and nothing is published."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from loupe.card import Card
from loupe.errors import UserError
from loupe.export.graph.savedmodel import Network, NetworkOutputs, freeze, save
from loupe.export.parity.gate import SMOOTH, gate, table
from loupe.export.parity.tolerance import Answers, Differences, Expected, Row, compare
from loupe.export.replay_pictures import SAMPLES, for_labels, for_quantisation, for_replay, read, read_labelled
from loupe.export.source import Source, read_run
from loupe.export.variants.precision import network_in
from loupe.training.data import dataset
from loupe.training.data.layout import Source as Data
from loupe.training.evaluate import heldout
from loupe.training.evaluate.metrics import Predictions
from tests.support.networks import LABELS, coarse, finished_run, network
from tests.support.servers import ROOT, until

SHIFTED = (*LABELS[1:], LABELS[0])
EACH = 4  # pictures of a class
PICTURES = coarse(400, (48, 64, 3), 9)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A run that is right on its pictures: they bear the labels that the network gives them."""
    folder = tmp_path_factory.mktemp("parity")
    model = telling()
    listed = draw(folder / "photos", model)
    run = finished_run(folder / "run", model, familiar=True, metrics={"accuracy": 0.95}, temperature=0.4)
    content = {"folder": str(folder / "photos"), "validation": listed, "training": listed[:3]}
    (run / "pictures.json").write_text(json.dumps(content))
    return read_run(run)


def telling() -> keras.Model:
    """A network that tells all classes, though it was never trained."""
    model = network()
    logits = model.predict(PICTURES.astype(np.float32), verbose=0)
    kernel, bias = model.layers[-1].get_weights()
    scale = 2 / logits.std(axis=0)
    model.layers[-1].set_weights([kernel * scale, (bias - logits.mean(axis=0)) * scale])
    return model


def draw(folder: Path, model: keras.Model) -> list[list[str]]:
    logits = model.predict(PICTURES.astype(np.float32), verbose=0)
    clear = np.ptp(np.sort(logits, axis=1)[:, 1:], axis=1) > 0.1
    listed = []
    for place, label in enumerate(LABELS):
        (folder / label).mkdir(parents=True)
        chosen = np.flatnonzero(clear & (logits.argmax(axis=1) == place))[:EACH]
        assert len(chosen) == EACH, "the network tells all classes"
        for row in chosen:
            name = f"{label}/{row}.png"
            Image.fromarray(PICTURES[row]).save(folder / name)
            listed.append([name, label])
    return listed


def exported(folder: Path, source: Source, network: Network | None = None, card: Card | None = None) -> Path:
    version = folder / "models" / "toy" / "1"
    version.parent.mkdir(parents=True)
    card = card or source.card
    save(freeze(network or source.network, card, source.familiarity), card, version)
    return version


def replayed(source: Source) -> Any:
    return for_replay(source.run, None, source.card.labels)


def refused(folder: Path, source: Source) -> str:
    with pytest.raises(UserError, match="Nothing is published") as said:
        gate(folder, source, replayed(source))
    assert len(str(said.value).splitlines()) == 1
    return str(said.value)


def verdicts(printed: str) -> dict[str, bool]:
    """Stages in the table, and whether each is well."""
    lines = [line.split() for line in printed.splitlines() if re.match(r"  \S", line)][1:]
    return {words[0]: "FAILED:" not in words for words in lines}


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the service out, for faults that show before it."""
    monkeypatch.setitem(sys.modules, "flask", None)


@pytest.fixture
def customized(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], None]:
    """Code that runs at the start of those of the gate's Python processes whose command names `where`."""

    def customize(where: str, code: str) -> None:
        home = tmp_path / "custom"
        home.mkdir()
        guarded = f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\nif {where!r} in sys.orig_argv:\n    {code}\n"
        (home / "sitecustomize.py").write_text(guarded)
        monkeypatch.setenv("PYTHONPATH", str(home))

    return customize


# ------------------------------------------------------------------------------------------------------- what is well


@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_an_export_that_is_what_was_trained_passes_every_stage_whatever_the_environment(
    tmp_path: Path,
    source: Source,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Set variables that would change the service, and run the gate.
    for name, value in {"LOUPE_PORT": "1", "MODEL_NAME": "nope", "TF_SERVING_HOST": "x:1", "LOUPE_ODD": "1"}.items():
        monkeypatch.setenv(name, value)
    exact = replace(source, card=replace(source.card, precision=precision))
    entry = gate(exported(tmp_path, exact, network_in(exact, precision)), exact, replayed(source))
    # All stages agree, and the service is gone.
    assert entry["largest_difference"] < (1e-4 if precision == "float32" else 0.1)
    assert {key: entry[key] for key in ("images", "pictures", "disagreements", "stages")} == {
        "images": EACH * len(LABELS),
        "pictures": "validation",
        "disagreements": 0,
        "stages": ["session", "openvino", "service"],
    }
    stages = ["training", "keras", "session", "openvino", "service"]
    assert verdicts(capsys.readouterr().out) == dict.fromkeys(stages, True)
    assert not running(tmp_path), "the service has ended"


@pytest.mark.slow
def test_a_model_without_heat_map_is_compared_without(tmp_path: Path, source: Source) -> None:
    card = replace(source.card, heatmap=False, unfamiliar_below=None)
    black = replace(source, card=card, model=None, familiarity=None)
    folder = exported(tmp_path, black, lambda pixels: NetworkOutputs(source.network(pixels).logits))
    assert gate(folder, black, replayed(source))["stages"] == ["session", "openvino", "service"]


def test_stages_whose_packages_are_missing_are_skipped_and_not_claimed(
    tmp_path: Path,
    source: Source,
    in_process: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert gate(exported(tmp_path, source), source, replayed(source))["stages"] == ["session"]
    printed = capsys.readouterr().out
    assert "skipped: openvino is not installed" in printed
    assert "skipped: flask is not installed" in printed


# --------------------------------------------------------------------------------------------------- faults, by stage


def test_labels_that_are_not_the_models_are_seen_in_its_accuracy(
    tmp_path: Path, source: Source, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    shifted = replace(source, card=replace(source.card, labels=SHIFTED))
    assert "the stage training is right on 0.0%; its card says 95.0%" in refused(exported(tmp_path, shifted), shifted)
    stages = verdicts(capsys.readouterr().out)
    assert [stage for stage, well in stages.items() if not well] == ["training"], "the rest agrees with itself"


def test_some_wrong_labels_among_pictures_of_few_do_not_stop_it(
    tmp_path: Path, source: Source, in_process: None
) -> None:
    chosen = replayed(source)
    pictures = [replace(chosen.pictures[0], label=chosen.pictures[1].label), *chosen.pictures[1:]]
    assert gate(exported(tmp_path, source), source, replace(chosen, pictures=tuple(pictures)))


def test_rare_classes_drawn_evenly_do_not_make_a_model_look_worse_than_its_card(
    tmp_path: Path, source: Source, in_process: None
) -> None:
    """Seen: 95 % of pictures of one class, and a network good at that alone; evenly drawn, it is right on a third."""
    usual = {LABELS[0]: 950, LABELS[1]: 25, LABELS[2]: 25}
    card = replace(source.card, training={"images": usual})
    chosen = replayed(source)
    labels = {"a": "a", "b": "c", "c": "b"}
    pictures = [replace(picture, label=labels[picture.label]) for picture in chosen.pictures]
    lopsided = replace(source, card=card)
    assert gate(exported(tmp_path, lopsided), lopsided, replace(chosen, pictures=tuple(pictures)))


def test_labels_are_judged_on_more_pictures_than_are_replayed(
    tmp_path: Path, source: Source, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve pictures are in training's notes. Of a folder, three are replayed here: too few to tell an order by."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert source.run
    photos = Path(json.loads((source.run / "pictures.json").read_text())["folder"])
    for number in range(1, 4):
        for path in [*photos.glob("?/*.png")]:
            (tmp_path / "photos" / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "photos" / path.parent.name / f"{number}-{path.name}")
    shifted = replace(source, card=replace(source.card, labels=SHIFTED, metrics={}))
    folder, few = exported(tmp_path, shifted), for_replay(None, tmp_path / "photos", SHIFTED, most=3)
    assert gate(folder, shifted, few), "three tell nothing"
    further = for_labels(tmp_path / "photos", SHIFTED, few)
    assert len(further.pictures) == 3 * EACH * len(LABELS) - 3
    with pytest.raises(UserError, match="would be on 100.0% with the labels in the order a, b, c"):
        gate(folder, shifted, few, further)


def test_a_card_changed_in_the_export_alone_fails_the_session_and_the_service(
    tmp_path: Path, source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported(tmp_path, source, card=replace(source.card, labels=SHIFTED))
    assert "the stage session describes itself by another card than the model's: labels differ" in refused(
        folder, source
    )
    stages = verdicts(capsys.readouterr().out)
    assert stages == {"training": True, "keras": True, "session": False, "openvino": True, "service": False}


def reads_bgr(source: Source) -> Network:
    return lambda pixels: source.network(pixels[..., ::-1])


def scales_twice(source: Source) -> Network:
    return lambda pixels: source.network(2 * pixels)


def gives_nan(source: Source) -> Network:
    def network(pixels: tf.Tensor) -> NetworkOutputs:
        parts = source.network(pixels)
        dark = tf.reduce_mean(pixels, [1, 2, 3]) < 120
        return replace(parts, logits=tf.where(dark[:, None], tf.math.log(-1.0), parts.logits))

    return network


def mirrors_heat(source: Source) -> Network:
    def network(pixels: tf.Tensor) -> NetworkOutputs:
        parts = source.network(pixels)
        assert parts.heatmap is not None
        return replace(parts, heatmap=parts.heatmap[:, :, ::-1])

    return network


def looks_at_neighbours(source: Source) -> Network:
    return lambda pixels: source.network(pixels - tf.reduce_mean(pixels, 0) + 127)


def gives_one_heat_map(source: Source) -> Network:
    def network(pixels: tf.Tensor) -> NetworkOutputs:
        parts = source.network(pixels)
        return replace(parts, heatmap=tf.reduce_max(parts.heatmap, axis=0))

    return network


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        pytest.param(reads_bgr, "moves a probability", marks=pytest.mark.slow),
        (scales_twice, "moves a probability"),
        (gives_nan, "gives no number"),
        (mirrors_heat, "moves heat maps"),
        (looks_at_neighbours, "answers a picture otherwise when others come with it"),
        (gives_one_heat_map, "servers cannot batch it"),
    ],
)
def test_a_fault_in_the_graph_is_the_sessions(
    tmp_path: Path, source: Source, in_process: None, fault: Callable[[Source], Network], words: str
) -> None:
    message = refused(exported(tmp_path, source, fault(source)), source)
    assert "the stage session" in message
    assert words in message


def test_another_familiarity_than_trainings_is_the_sessions(tmp_path: Path, source: Source, in_process: None) -> None:
    assert source.familiarity
    other = replace(source.familiarity, marks=source.familiarity.marks * 1.2)
    folder = exported(tmp_path, replace(source, familiarity=other))
    assert "the stage session computes familiarity otherwise than training" in refused(folder, source)


def test_a_variable_left_out_of_the_savedmodel_is_the_sessions(
    tmp_path: Path, source: Source, in_process: None
) -> None:
    """Test a case that was seen: a Keras 3 model in a plain tf.Module loads in Python, but not as TensorFlow Serving
    would."""
    module, card = tf.Module(), source.card.to_json()
    module.model = network()

    @tf.function(input_signature=[tf.TensorSpec([None, 48, 64, 3], tf.uint8)])  # type: ignore[untyped-decorator]
    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = module.model(tf.cast(image, tf.float32), training=False)
        return {"probabilities": tf.nn.softmax(logits / source.card.temperature)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])  # type: ignore[untyped-decorator]
    def describe(request: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"card": tf.fill(tf.shape(request), card)}

    # It loads in Python, and not in a session.
    folder = tmp_path / "models" / "toy" / "1"
    tf.saved_model.save(module, str(folder), signatures={"serving_default": serve, "describe": describe})
    assert tf.saved_model.load(str(folder)).signatures["serving_default"], "it loads in Python"
    said = refused(folder, source)
    assert "the stage session breaks: Could not find variable" in said


def test_what_openvino_alone_computes_otherwise_is_openvinos(
    tmp_path: Path, source: Source, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """It computes int64 in 32 bits: three thousand millions become two."""

    def network(pixels: tf.Tensor) -> NetworkOutputs:
        millions = tf.cast(tf.reduce_max(pixels) * 0 + 3e9, tf.int64) // 1_000_000_000
        return source.network(pixels * tf.cast(millions, tf.float32) / 3)

    assert "the stage openvino gives" in refused(exported(tmp_path, source, network), source)
    assert verdicts(capsys.readouterr().out)["session"]


def test_a_gateway_that_reads_bgr_is_the_services(
    tmp_path: Path,
    source: Source,
    customized: Callable[[str, str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    turned = "import loupe.images.api as i; i.decode = lambda *a, real=i.decode: real(*a)[..., ::-1].copy()"
    customized("gunicorn", turned)
    assert "the stage service gives" in refused(exported(tmp_path, source), source)
    stages = verdicts(capsys.readouterr().out)
    assert stages == {"training": True, "keras": True, "session": True, "openvino": True, "service": False}


@pytest.mark.parametrize(
    ("where", "code", "words"),
    [
        ("loupe.modelserver", "os._exit(3)", "ended before it was ready: serve.py: The model server ended"),
        pytest.param(
            "gunicorn",
            "import loupe.images.api as i; i.decode = lambda *a: os._exit(3)",
            "does not answer",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_service_that_dies_is_told(
    tmp_path: Path, source: Source, customized: Callable[[str, str], None], where: str, code: str, words: str
) -> None:
    customized(where, code)
    assert f"the stage service {words}" in refused(exported(tmp_path, source), source)
    until(lambda: not running(tmp_path), "the service to end")


@pytest.mark.slow
def test_the_service_ends_with_a_gate_that_is_killed(tmp_path: Path, source: Source) -> None:
    folder = exported(tmp_path, source)
    code = f"""
import pathlib, time
from loupe.export.parity.service import served
with served(pathlib.Path({str(folder)!r})) as port:
    print(port, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as gating:
        assert gating.stdout
        assert int(gating.stdout.readline())
        assert running(tmp_path)
        os.kill(gating.pid, signal.SIGKILL)
    until(lambda: not running(tmp_path), "the service to end")


def running(models: Path) -> list[str]:
    """Return the running commands that name a folder."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(models) in command and "serve" in command and path.parent.name != str(os.getpid()):
            commands.append(command)
    return commands


def test_a_reference_that_is_no_reference_is_kerass(tmp_path: Path, source: Source, in_process: None) -> None:
    folder = exported(tmp_path, source)
    for reference, words in (
        (lambda pixels: np.full((len(pixels), 3), np.nan, np.float32), "gives no number"),
        (lambda pixels: np.full((len(pixels), 4), 0.25, np.float32), "gives 4 classes, and the card has 3 labels"),
        (lambda pixels: np.full((len(pixels), 3), 2.0, np.float32), "do not add up to 1"),
    ):
        message = refused(folder, replace(source, reference=reference))
        assert "the stage keras" in message
        assert words in message


# ------------------------------------------------------------------------------------------------------------- bounds


def two(*best: float) -> Any:
    return np.array([[share, 1 - share] for share in best], np.float32)


def test_a_near_tie_may_go_either_way_and_nothing_else_may() -> None:
    wanted = Expected(two(0.509, 0.9))
    near = compare("session", Answers(two(0.495, 0.9)), wanted, "bfloat16")
    assert near.fault is None
    assert near.differences
    assert (near.differences.relabelled, near.differences.near_ties) == (0, 1)
    other = compare("session", Answers(two(0.495, 0.9)), Expected(two(0.511, 0.9)), "bfloat16")
    assert other.fault == "gives 1 of 2 pictures another label"


def test_int8_may_turn_some_answers_and_is_still_not_another_model() -> None:
    random = np.random.default_rng(1)
    sure = random.uniform(0.9, 1, 100) * np.where(random.integers(0, 2, 100), 1, -1) % 1
    some = np.where(np.arange(100) < 5, 1 - sure, sure)
    assert compare("service", Answers(two(*some)), Expected(two(*sure)), "int8").fault is None
    shifted = compare("service", Answers(two(*sure)[:, ::-1]), Expected(two(*sure)), "int8")
    assert "100 of 100 pictures another label" in str(shifted.fault)


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_the_table_is_no_wider_than_the_terminal_and_nothing_of_a_verdict_is_lost(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    noted = "as training noted; right on 97.5%; its card says 97.5%"
    wrong = "moves a probability by 0.37, and 0.001 is the most; gives 17 of 136 pictures another label"
    differences = Differences(17, 2, 0.37, 0.0123)
    rows = [
        Row("training", 128, note=noted), Row("keras", 136, ms=84.2, note="the reference"),
        Row("session", 136, differences, 41.3, fault=wrong), Row("openvino", note="skipped: openvino is not installed"),
    ]  # fmt: skip
    shown = table(rows)
    assert max(map(len, shown.splitlines())) <= columns
    for words in (noted, f"FAILED: it {wrong}", "the reference", "skipped: openvino is not installed"):
        assert words in " ".join(shown.split())
    assert verdicts(shown) == {"training": True, "keras": True, "session": False, "openvino": True}


# ----------------------------------------------------------------------------------------------------------- pictures


def test_training_keeps_which_pictures_it_held_out_and_the_gate_finds_them(tmp_path: Path) -> None:
    # A data set of two labels, and training's notes on it.
    for label, count in (("many", 40), ("few", 10)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng((count, number)).integers(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).resize((32, 32)).save(tmp_path / "photos" / label / f"{number}.png")
    data = dataset.read(Data(tmp_path / "photos"), 16, 16, seed=1, spill=tmp_path)
    rows = np.concatenate([data.validation, data.calibration])
    confidences = np.linspace(0.6, 0.9, len(rows))
    answers = np.stack([confidences, 1 - confidences], axis=1)
    heldout.write(tmp_path / "pictures.json", data, Predictions(rows, answers, answers, answers, confidences / 2))
    paths = {data.pictures[row].file.path for row in (*data.validation, *data.calibration)}
    # The gate replays the held-out pictures, with what training noted of them.
    chosen = for_replay(tmp_path, None, data.labels)
    assert chosen.origin == "validation"
    assert {picture.path for picture in chosen.pictures} == paths
    assert all(picture.path.parent.name == picture.label for picture in chosen.pictures)
    confidence_of = {data.pictures[row].file.path: number for row, number in zip(rows, confidences, strict=True)}
    for picture in chosen.pictures:
        assert picture.noted
        assert picture.noted.label == data.labels[0]
        assert picture.noted.confidence == pytest.approx(confidence_of[picture.path], abs=1e-5)
        assert picture.noted.familiarity == pytest.approx(confidence_of[picture.path] / 2, abs=1e-3)
    # int8 is quantised on training pictures.
    learnt = for_quantisation(tmp_path, None, data.labels, most=12)
    assert {picture.path for picture in learnt.pictures} <= {data.pictures[row].file.path for row in data.train}
    assert [picture.label for picture in learnt.pictures].count("few") == 6, "drawn evenly"


def test_pictures_that_moved_are_told_and_the_samples_taken(tmp_path: Path, source: Source) -> None:
    assert source.run
    listed = json.loads((source.run / "pictures.json").read_text())
    (tmp_path / "pictures.json").write_text(json.dumps({**listed, "folder": str(tmp_path)}))
    chosen = for_replay(tmp_path, None, LABELS)
    assert chosen.origin == "sample"
    assert {picture.path for picture in chosen.pictures} == set(SAMPLES.glob("*.jpg"))
    assert any("12 of 12 validation pictures are no longer in" in note for note in chosen.notes)
    assert for_replay(None, None, LABELS).origin == "sample"


def test_a_folder_of_pictures_gives_labels_where_its_folders_do(tmp_path: Path, source: Source) -> None:
    assert source.run
    photos = Path(json.loads((source.run / "pictures.json").read_text())["folder"])
    pixels, truth = read_labelled(for_replay(None, photos, LABELS, most=6), LABELS, 48, 64)
    assert pixels.shape == (6, 48, 64, 3)
    assert sorted(truth or []) == [0, 0, 1, 1, 2, 2]
    assert read_labelled(for_replay(None, photos / "a", LABELS), LABELS, 48, 64)[1] is None
    (tmp_path / "some").mkdir()
    with pytest.raises(UserError, match="holds no picture"):
        for_replay(None, tmp_path / "some", LABELS)
    with pytest.raises(UserError, match="is no folder"):
        for_replay(None, tmp_path / "none", LABELS)
    (tmp_path / "some" / "broken.jpg").write_bytes(b"no picture")
    assert read(for_replay(None, tmp_path / "some", LABELS), 48, 64).shape == (0, 48, 64, 3)
    (tmp_path / "pictures.json").write_text('{"folder": 3}')
    with pytest.raises(UserError, match="is damaged"):
        for_replay(tmp_path, None, LABELS)


def test_folders_that_are_not_named_like_the_labels_are_told(tmp_path: Path) -> None:
    """It said: skipped, no labels are known."""
    for name in ("Cat", "Dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.jpg").touch()
    (note,) = for_replay(None, tmp_path / "photos", ("cat", "dog")).notes
    assert note.startswith("no folder in --images (Cat, Dog) is named like a label")
    assert not for_replay(None, tmp_path / "photos", ("Cat", "Dog")).notes
    assert not for_replay(None, tmp_path / "photos" / "Cat", ("cat", "dog")).notes, "pictures without folders"


def test_pictures_that_cannot_be_read_are_told_and_the_rest_is_replayed(
    tmp_path: Path, source: Source, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no picture")
    entry = gate(exported(tmp_path, source), source, for_replay(None, tmp_path / "photos", LABELS))
    assert entry["images"] == 0
    printed = capsys.readouterr().out
    assert "1 of the photos pictures cannot be read" in printed
    assert f"0 photos pictures and {SMOOTH} random ones" in printed
