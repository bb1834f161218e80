"""Export a trained network: the same answers everywhere, in a graph that holds its own card."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import openvino
import pytest
import tensorflow as tf
from tensorflow.python.tools import saved_model_cli

import convert as script
from loupe import proto, tfrecord
from loupe.card import Card
from loupe.cli import run_script
from loupe.errors import UserError
from loupe.export.convert import Options, publish
from loupe.export.convert import convert as converted
from loupe.export.graph.savedmodel import NetworkOutputs, run
from loupe.export.publish.publication import versions
from loupe.export.source import Source, read_run
from loupe.export.variants.precision import choose
from loupe.familiarity import Familiarity
from loupe.gradcam import heatmaps
from loupe.training.network.backbones import build_trunk, with_head
from tests.support.networks import LABELS, coarse, export, finished_run, lively, network
from tests.support.servers import ROOT

IMAGES = np.random.default_rng(5).integers(0, 256, (6, 48, 64, 3)).astype(np.uint8)
FULL_SIZES = {
    "xception": 299, "mobilenetv2": 160, "resnet50": 224, "inceptionv3": 299, "efficientnetv2b0": 224,
    "efficientnetlite0": 224, "cnn": 224,
}  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("export")
    return export(finished_run(scratch / "run"), scratch / "models")


def openvino_answer(folder: Path, images: Any) -> dict[str, Any]:
    compiled = openvino.compile_model(folder, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return {next(iter(key.names)): value for key, value in compiled(images).items()}


def test_keras_a_tf1_session_and_openvino_give_the_same_answers(published: Path) -> None:
    wanted = keras.ops.softmax(network()(IMAGES.astype(np.float32), training=False) / 1.7)
    session = run(published, "serving_default", {"image": IMAGES})
    vino = openvino_answer(published, IMAGES)
    assert np.abs(session["probabilities"] - keras.ops.convert_to_numpy(wanted)).max() < 1e-5
    assert set(session) == set(vino) == {"probabilities", "heatmap"}, "no familiarity where training measured none"
    for name in session:
        assert np.abs(session[name] - vino[name]).max() < 1e-4
    assert np.ptp(session["probabilities"], axis=0).min() > 1e-4, "the pictures are told apart"


def grad_cam_by_a_tape(model: keras.Model, images: Any) -> Any:
    inner = keras.Model(model.input, [last_pool(model).input, model.output])
    with tf.GradientTape() as tape:
        features, logits = inner(images.astype(np.float32), training=False)
        top = tf.reduce_max(logits, axis=1)
    weights = tf.reduce_mean(tape.gradient(top, features), [1, 2], keepdims=True)
    warmth = tf.nn.relu(tf.reduce_sum(weights * features, 3))
    return tf.math.divide_no_nan(warmth, tf.reduce_max(warmth, [1, 2], keepdims=True)).numpy()


def last_pool(model: keras.Model) -> Any:
    return [layer for layer in model.layers if isinstance(layer, keras.layers.GlobalAveragePooling2D)][-1]


@pytest.mark.parametrize(
    "name",
    [
        "cnn",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("mobilenetv2", "xception", "resnet50", "inceptionv3", "efficientnetv2b0", "efficientnetlite0")
        ),
    ],
)
def test_every_backbone_answers_alike_in_keras_numpy_a_tf1_session_and_openvino(tmp_path: Path, name: str) -> None:
    keras.utils.set_random_seed(4)
    model = lively(with_head(build_trunk(name, 80, 75), classes=3, head=8, dropout=0.2))
    folder = finished_run(tmp_path / "run", model, familiar=True, height=80, width=75)
    version = export(folder, tmp_path / "models")
    images = coarse(6, (80, 75, 3), 7)
    # Ask the session and OpenVINO, then compute the same with Keras and numpy.
    session = run(version, "serving_default", {"image": images})
    vino = openvino_answer(version, images)
    outputs = keras.Model(model.input, [model.output, model.get_layer("pool").output])
    logits, features = outputs.predict(images.astype(np.float32), verbose=0)
    wanted = {
        "probabilities": np.exp(logits / 1.7) / np.exp(logits / 1.7).sum(axis=1, keepdims=True),
        "familiarity": Familiarity.load(folder / "familiarity.npz").score(features),
        "heatmap": heatmaps(model, images),
    }
    # All agree, and the pictures get different answers.
    for output, tolerance in (("probabilities", 1e-4), ("familiarity", 1e-2), ("heatmap", 1e-2)):
        assert len(session[output]) == len(images)
        assert np.abs(session[output] - wanted[output]).max() < tolerance
        assert np.abs(session[output] - vino[output]).max() < tolerance
    assert np.abs(session["heatmap"] - grad_cam_by_a_tape(model, images)).max() < 1e-3
    assert np.ptp(session["probabilities"], axis=0).min() > 0.1, "the pictures are told apart"


@pytest.mark.slow  # minutes: each goes through the whole gate at the size it is used at
@pytest.mark.parametrize("name", FULL_SIZES)
def test_at_full_size_every_network_passes_the_gate_with_a_heat_map_of_its_last_map(tmp_path: Path, name: str) -> None:
    keras.utils.set_random_seed(5)
    side = FULL_SIZES[name]
    model = lively(with_head(build_trunk(name, side, side), classes=3, head=0, dropout=0))
    folder = finished_run(tmp_path / "run", model, familiar=True, height=side, width=side)
    version = publish(folder, tmp_path / "models")
    parity = Card.read(version / "assets.extra" / "card.json").parity
    assert parity
    assert parity["stages"] == ["session", "openvino", "service"]
    assert parity["disagreements"] == 0
    images = coarse(4, (side, side, 3), 9)
    session = run(version, "serving_default", {"image": images})
    assert session["heatmap"].shape == (4, *model.get_layer("pool").input.shape[1:3])
    assert np.abs(session["heatmap"] - grad_cam_by_a_tape(model, images)).max() < 1e-3
    assert np.ptp(session["probabilities"], axis=0).min() > 0.05


@pytest.mark.slow  # what folds it is tested in test_simplify.py
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_what_was_trained_in_half_precision_is_exported_in_float32(tmp_path: Path, policy: str) -> None:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = lively(with_head(build_trunk("cnn", 64, 64), classes=3, head=8, dropout=0.2))
    finally:
        keras.config.set_dtype_policy(before)
    folder = finished_run(tmp_path / "run", model, familiar=True, height=64, width=64)
    version = publish(folder, tmp_path / "models")
    images = coarse(6, (64, 64, 3), 7)
    session = run(version, "serving_default", {"image": images})
    trained = np.asarray(keras.ops.softmax(model(images.astype(np.float32), training=False) / 1.7))
    assert np.abs(session["probabilities"] - trained).max() < 0.1, "half precision rounds"
    assert all(output.dtype == np.float32 for output in session.values())
    parity = Card.read(version / "assets.extra" / "card.json").parity
    assert parity
    assert parity["largest_difference"] < 1e-3


def test_in_bfloat16_the_weights_take_half_the_room_and_the_labels_stay(tmp_path: Path) -> None:
    model = lively(with_head(build_trunk("cnn", 64, 64), classes=3, head=0, dropout=0))
    folder = finished_run(tmp_path / "run", model, familiar=True, height=64, width=64)
    wide = export(folder, tmp_path / "models")
    narrow = export(folder, tmp_path / "models", precision="bfloat16")
    assert Card.read(narrow / "assets.extra" / "card.json").precision == "bfloat16"
    size = [(version / "saved_model.pb").stat().st_size for version in (wide, narrow)]
    assert 0.4 < size[1] / size[0] < 0.65
    images = coarse(16, (64, 64, 3), 7)
    exact, rounded = (run(version, "serving_default", {"image": images}) for version in (wide, narrow))
    assert 0 < np.abs(exact["probabilities"] - rounded["probabilities"]).max() < 0.1
    assert all(output.dtype == np.float32 for output in rounded.values())


def test_auto_measures_both_and_takes_bfloat16_only_where_it_agrees(tmp_path: Path) -> None:
    source = read_run(finished_run(tmp_path / "run"))
    precision, lines = choose(source, IMAGES)
    assert precision in ("float32", "bfloat16")
    assert re.match(r"1 at once +float32 [\d.]+ ms a picture, bfloat16 [\d.]+ ms$", lines[0])
    assert lines[-1].startswith(f"precision          {precision}: ")
    model = network()
    last = model.layers[-1]
    last.kernel.assign(last.kernel * 1e4)  # rounding now turns labels
    sharp = read_run(finished_run(tmp_path / "sharp", model))
    precision, lines = choose(sharp, np.repeat(IMAGES, 8, axis=0) // 2 + coarse(48, (48, 64, 3), 3) // 2)
    assert precision == "float32"
    assert re.search(r"float32: bfloat16 (gives \d+ of 48 pictures another label|is not faster)", lines[-1])


def test_a_black_box_is_exported_as_it_is_or_not_at_all(tmp_path: Path) -> None:
    def brightness(pixels: Any) -> NetworkOutputs:
        bright = tf.reduce_mean(pixels, [1, 2]) / 255
        return NetworkOutputs(tf.math.log(bright / tf.reduce_sum(bright, 1, keepdims=True)))

    def reference(pixels: Any) -> Any:
        bright = pixels.mean(axis=(1, 2))
        return bright / bright.sum(axis=1, keepdims=True)

    card = Card("box", LABELS, 48, 64, heatmap=False)
    source = Source(card, brightness, None, reference)
    version = converted(source, Options(tmp_path / "models", precision="auto"))
    session = run(version, "serving_default", {"image": IMAGES})
    assert set(session) == {"probabilities"}
    assert np.abs(session["probabilities"] - reference(IMAGES)).max() < 1e-5
    assert Card.read(version / "assets.extra" / "card.json").precision == "float32"
    with pytest.raises(UserError, match="leave --precision out"):
        converted(source, Options(tmp_path / "models", precision="bfloat16"))
    assert versions(tmp_path / "models" / "box") == [1]


@pytest.mark.parametrize("hidden", [True, False])
def test_the_heat_map_is_grad_cam_as_a_plain_gradient_gives_it(tmp_path: Path, hidden: bool) -> None:
    model = network(hidden)
    version = export(finished_run(tmp_path / "run", model), tmp_path)
    heatmap = run(version, "serving_default", {"image": IMAGES})["heatmap"]
    wanted = grad_cam_by_a_tape(model, IMAGES)
    assert heatmap.shape == wanted.shape
    assert np.abs(heatmap - wanted).max() < 1e-3
    assert heatmap.max() == pytest.approx(1)


def test_a_version_carries_the_checksum_of_its_graph_and_its_own_answers(published: Path) -> None:
    sums = (published / "assets.extra" / "SHA256SUMS").read_text()
    digest = hashlib.sha256((published / "saved_model.pb").read_bytes()).hexdigest()
    assert sums == f"{digest}  ../saved_model.pb\n"
    for record in tfrecord.read(published / "assets.extra" / "tf_serving_warmup_requests"):
        log = proto.PredictionLog.FromString(record).predict_log
        answer = run(published, "serving_default", {"image": proto.to_array(log.request.inputs["image"])})
        assert set(log.response.outputs) == set(answer)
        for name, array in answer.items():
            np.testing.assert_allclose(proto.to_array(log.response.outputs[name]), array, atol=1e-6)


def test_the_model_describes_itself_by_its_card(published: Path) -> None:
    answer = run(published, "describe", {"request": np.array([b"x", b"y"], object)})["card"]
    assert list(answer) == [(published / "assets.extra" / "card.json").read_bytes()] * 2
    assert Card.from_json(answer[0]).labels == LABELS


def test_saved_model_cli_reads_it(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved_model_cli._show_all(str(published))  # what `show --all` does: a process of its own takes seconds to start
    shown = capsys.readouterr().out
    for line in ("signature_def['serving_default']", "signature_def['describe']", "shape: (-1, 48, 64, 3)", "DT_UINT8"):
        assert line in shown


def test_the_graph_is_flat_and_frozen(published: Path) -> None:
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    saved = SavedModel.FromString((published / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    kinds = {node.op for node in graph.node}
    assert not graph.library.function
    assert not kinds & {"VarHandleOp", "VariableV2", "PartitionedCall", "StatefulPartitionedCall"}
    assert "Conv2D" in kinds


def test_a_limit_of_familiarity_without_what_it_is_measured_by_is_not_published(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run", familiar=True)
    (folder / "familiarity.npz").write_bytes(b"torn")
    with pytest.raises(UserError, match="train again"):
        publish(folder, tmp_path / "models")
    (folder / "familiarity.npz").unlink()
    with pytest.raises(UserError, match="is missing"):
        publish(folder, tmp_path / "models")
    assert not versions(tmp_path / "models" / "toy")


def convert(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "convert.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_convert_shows_what_it_compared_and_what_it_published(tmp_path: Path) -> None:
    done = convert(finished_run(tmp_path / "run"), "--models", tmp_path / "models", "--name", "mine")
    assert (done.stderr, done.returncode) == ("", 0)
    for line in (r"parity +6 sample pictures", r"  service .* same\n", rf"published +{tmp_path}/models/mine/1\n",
                 r"in +image +uint8 +\[\?, 48, 64, 3\]", r"labels +3: a, b, c"):  # fmt: skip
        assert re.search(line, done.stdout), line
    assert Card.read(tmp_path / "models" / "mine" / "1" / "assets.extra" / "card.json").name == "mine"


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: one that has TensorFlow takes seconds to start, and there are many ways to be wrong."""
    damaged = finished_run(tmp_path / "damaged")
    (damaged / "model.keras").write_bytes(b"no model")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    good = finished_run(tmp_path / "good")
    unfinished = finished_run(tmp_path / ".part-late")
    (unfinished / "card.json").unlink()
    here = ["--models", tmp_path / "models"]
    for wrong in ([tmp_path / "none", *here], [tmp_path / "empty", *here], [damaged, *here],
                  [finished_run(tmp_path / "two", labels=("a", "b")), *here], [good, "--models", tmp_path / "file"],
                  [good, "--labels", "a,b,c", *here], [good, "--to", "onnx", "--int8"], [good, "--keep", "0"],
                  [good, "--few-images", *here],
                  [unfinished / "model.keras", "--labels", "a,b,c", "--preprocess", "none", *here], [unfinished, *here],
                  [good, "--show", good], [], [good, "--images", tmp_path / "empty", *here]):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, wrong)])
        with pytest.raises(SystemExit) as ended:
            run_script(script.main)
        said = capsys.readouterr().err
        assert ended.value.code == 2, wrong
        assert said.startswith("convert.py: "), said
        assert said.count("\n") == 1, said
    assert not list((tmp_path / "models").iterdir()), "not so much as a folder of the model's name"


def test_without_the_gate_the_card_says_so(tmp_path: Path) -> None:
    version = export(finished_run(tmp_path / "run"), tmp_path / "models", parity=False)
    assert Card.read(version / "assets.extra" / "card.json").parity == {"skipped": True}


def test_only_so_many_versions_are_kept(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run")
    for _ in range(3):
        export(folder, tmp_path / "models", keep=2)
    assert versions(tmp_path / "models" / "toy") == [2, 3]
