"""Compare `show` with TensorFlow's own tool, and try it on folders that hold no SavedModel."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.tools import saved_model_cli

from loupe.card import Card
from loupe.errors import UserError
from loupe.export.graph import warmup
from loupe.export.publish.show import LONGEST, MOST, show
from tests.support import models
from tests.support.networks import network
from tests.support.servers import ROOT

Row = tuple[str, str, str, str, str, str]  # signature, in or out, alias, type, shape, tensor
TF_NAMES = {"float": "float32", "double": "float64", "half": "float16", "invalid": "none"}


def by_tensorflow_1(folder: Path) -> None:
    """Variables the old way, two tag sets, an input of unknown rank and one without dimensions, every odd type."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        pixels = tf.compat.v1.placeholder(tf.float32, [None, 4], name="pixels")
        weights = tf.compat.v1.get_variable("weights", [4, 2], use_resource=False)
        anything = tf.compat.v1.placeholder(tf.float16, None, name="anything")
        scalar = tf.compat.v1.placeholder(tf.int64, [], name="one")
        turned = tf.complex(pixels, pixels)
        session.run(tf.compat.v1.global_variables_initializer())
        predict = tf.compat.v1.saved_model.predict_signature_def
        signatures = {
            "serving_default": predict({"pixels": pixels}, {"scores": pixels @ weights}),
            "odd": predict({"any": anything, "one": scalar, "pixels": pixels}, {"turned": turned, "same": anything}),
        }
        builder = tf.compat.v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.add_meta_graph(["serve", "gpu"], signatures)
        builder.save()


def by_tensorflow_2(folder: Path) -> None:
    module = tf.Module()
    module.weights = tf.Variable(tf.ones([4, 250_000]))
    serve = tf.function(
        lambda pixels: {"scores": pixels @ module.weights}, input_signature=[tf.TensorSpec([None, 4], name="pixels")]
    )
    text = tf.function(
        lambda text: {"length": tf.strings.length(text)}, input_signature=[tf.TensorSpec([2], tf.string)]
    )
    module.serve, module.text = serve, text
    tf.saved_model.save(module, str(folder), signatures={"serving_default": serve, "text": text})


def by_keras(folder: Path) -> None:
    network().export(folder, verbose=False)


def by_loupe(folder: Path) -> None:
    models.write(folder)
    warmup.write(folder, Card(name="tires", labels=tuple(models.LABELS), height=32, width=32))


MAKERS: list[Callable[[Path], None]] = [by_tensorflow_1, by_tensorflow_2, by_keras, by_loupe]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for maker in MAKERS:
        maker(folder / maker.__name__)
    return folder


def as_the_tool_tells_it(folder: Path) -> list[Row]:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        saved_model_cli._show_all(str(folder))
    rows, signature = [], ""
    entry = re.compile(r"(in|out)puts\['(.+)'\] tensor_info:\s+dtype: DT_(\w+)\s+shape: (.+)\s+name: (.+)")
    for segment in re.split(
        r"(signature_def\['.+'\]:)|(?=  +(?:in|out)puts\[)", output.getvalue().split("Concrete")[0]
    ):
        if segment and segment.startswith("signature_def"):
            signature = segment[15:-3]
        elif segment and (match := entry.search(segment)):
            way, alias, type_name, shape, tensor = match.groups()
            sizes = ", ".join("?" if size == "-1" else size for size in re.findall(r"-?\d+", shape))
            name = type_name.lower()
            shown_shape = "of any rank" if shape == "unknown_rank" else f"[{sizes}]"
            rows.append((signature, way, alias, TF_NAMES.get(name, name), shown_shape, tensor))
    return sorted(rows)


def as_we_tell_it(text: str) -> list[Row]:
    rows, signature = [], ""
    for line in text.splitlines():
        if match := re.fullmatch(r"    (in|out) +(\S+) +(\S+) +(\[.*\]|of any rank) +(\S+)", line):
            rows.append((signature, *match.groups()))
        elif match := re.fullmatch(r"  (\w+)(?: \(\S+\))?", line):
            signature = match[1]
    return sorted(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("maker", MAKERS)
def test_signatures_types_shapes_and_tensors_are_those_that_tensorflows_tool_tells(
    made: Path, maker: Callable[[Path], None]
) -> None:
    wanted = as_the_tool_tells_it(made / maker.__name__)
    assert len(wanted) >= 2
    assert as_we_tell_it(show(made / maker.__name__)) == wanted


def test_tags_weights_and_sizes_are_told(made: Path) -> None:
    shown = show(made / "by_tensorflow_1")
    assert {"tags serve", "tags serve, gpu"} <= set(shown.splitlines())
    assert re.search(r"not frozen: its weights are variables, 0\.\d kB in variables/", shown)
    shown = show(made / "by_tensorflow_2")
    assert "a SavedModel of 4.0 MB" in shown
    assert "not frozen: its weights are variables, 4.0 MB in variables/" in shown
    assert "not frozen" in show(made / "by_keras")
    assert "\nfrozen: its weights are constants of the graph" in show(made / "by_loupe")


def test_the_card_the_warm_up_and_the_int8_variant_are_told(made: Path, tmp_path: Path) -> None:
    # A version with all of them.
    folder = tmp_path / "1"
    shutil.copytree(made / "by_loupe", folder)
    metrics = {"split": "test", "images": 325, "accuracy": 0.9123}
    parity = {"images": 128, "disagreements": 0, "near_ties": 1, "stages": ["session", "openvino"]}
    (folder / "assets.extra" / "card.json").write_text(models.card(metrics=metrics, parity=parity))
    (folder / "assets.extra" / "openvino-int8").mkdir()
    (folder / "assets.extra" / "openvino-int8" / "model.xml").write_bytes(b"x" * 250_000)
    shown = show(folder)
    for words in (
        "name       tires", "labels     3: cracked, normal, worn", "input      32 × 32", "precision  float32",
        "accuracy   0.9123 on 325 test pictures", "parity     images 128, disagreements 0, near ties 1; by session",
        "warm-up requests: 4, of batch 1, 2, 4, 8", "int8 variant for Loupe's model server: 0.2 MB",
    ):  # fmt: skip
        assert words in shown
    # Damaged ones.
    (folder / warmup.REQUESTS).write_bytes(b"no records")
    (folder / "assets.extra" / "card.json").write_text(models.card(metrics=["no object"]))
    assert "warm-up requests: damaged after 0" in show(folder)
    assert "unreadable A card's metrics must be an object" in show(folder)
    (folder / "assets.extra" / "card.json").write_text(models.card())
    assert "parity     not compared" in show(folder)
    (folder / "assets.extra" / "card.json").write_text("{")
    assert "unreadable This is not a Loupe card" in show(folder)
    (folder / "assets.extra" / "card.json").unlink()
    os.mkfifo(folder / "assets.extra" / "card.json")
    assert "card" not in show(folder).splitlines(), "a pipe is not waited for"


def test_hostile_names_are_shown_harmlessly(made: Path, tmp_path: Path) -> None:
    # A SavedModel and a card with hostile names.
    saved = saved_model_pb2.SavedModel.FromString((made / "by_loupe" / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0]
    escape, turned = "\x1b]0;owned\x07\x1b[2J", "evil\u202egnp.exe\nfake line"
    signature = graph.signature_def[f"{escape}{turned}"]
    signature.method_name = escape
    signature.inputs["x" * 3_000_000].name = escape
    for count in range(10_000):
        signature.outputs[f"{turned}{count}"].dtype = 1 if count % 2 else 99
    for _ in range(5000):
        signature.outputs["00"].tensor_shape.dim.add(size=-(1 << 62))
    graph.meta_info_def.tags.append(escape)
    (tmp_path / "saved_model.pb").write_bytes(saved.SerializeToString())
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / "assets.extra" / "card.json").write_text(
        models.card(name=escape, labels=[turned, escape] + ["c" * 9999])
    )
    # Nothing but short printable lines is shown.
    shown = show(tmp_path)
    assert all(line.isprintable() for line in shown.splitlines())
    assert "\nfake line" not in shown
    assert len(shown) < 30_000
    for words in (r"\x1b]0;owned\x07\x1b[2J", r"evil\u202egnp.exe\nfake line", "type 99", "(3000000 characters)"):
        assert words in shown
    assert f"and {10_001 - MOST} more" in shown
    assert LONGEST < 100


def test_a_folder_of_versions_shows_the_newest(made: Path, tmp_path: Path) -> None:
    home = tmp_path / "models" / "tires"
    for name, maker in (("1", "by_keras"), ("9", "by_keras"), ("10", "by_loupe"), (".withdrawn-11", "by_keras")):
        shutil.copytree(made / maker, home / name)
    shown = show(home).splitlines()
    assert shown[0].startswith(f"{home}/10: a SavedModel of ")
    assert shown[1] == "the newest version; others: 9, 1; withdrawn: .withdrawn-11"
    with pytest.raises(UserError, match="Name one of the models in it: tires"):
        show(home.parent)


def test_what_is_no_savedmodel_is_one_clear_line(made: Path, tmp_path: Path) -> None:
    # Files and folders of each kind.
    for name, content in (
        ("junk", b"\xff junk"),
        ("empty", b""),
        ("cut", (made / "by_loupe/saved_model.pb").read_bytes()[:-9]),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").write_bytes(content)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "saved_model.pb")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "part" / "3").mkdir(parents=True)
    # Each gives one line.
    for name, words in {
        "junk": "is damaged", "empty": "holds no graph", "cut": "is damaged", "pipe": "holds no saved_model.pb",
        "nothing": "holds no saved_model.pb and no numbered version", "file": "holds no saved_model.pb",
        "part": "only part of one", "missing": "There is nothing at", "n" * 300: "File name too long",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=words) as refused:
            show(tmp_path / name)
        assert "\n" not in str(refused.value)


def test_tensorflow_is_not_loaded(made: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from loupe.export.publish.show import show; show(Path(sys.argv[1]));"
        "print({name.split('.')[0] for name in sys.modules} & {'tensorflow', 'keras', 'openvino'})"
    )
    command: list[Any] = [sys.executable, "-c", code, made / "by_keras"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("set()\n", "")
