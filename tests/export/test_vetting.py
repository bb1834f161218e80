"""Files made to harm whom they are given to: nothing in them is run, and the error is one harmless line."""

from __future__ import annotations

import base64
import json
import marshal
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import pytest
import tensorflow as tf
import tf_keras

from loupe.errors import UserError
from loupe.export.foreign import savedmodel
from loupe.export.foreign.read import read_model
from loupe.export.foreign.vet_keras import check_keras_file
from tests.support.servers import ROOT

SHAPE = (16, 16, 3)


def small(k: Any) -> Any:
    image = k.Input(SHAPE)
    maps = k.layers.Conv2D(4, 3, activation="relu", name="maps")(image)
    return k.Model(image, k.layers.Dense(3, activation="softmax")(k.layers.GlobalAveragePooling2D()(maps)))


def altered(path: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Path:
    """A model at `path` with another configuration: what `change` returns, or what it leaves."""
    small(keras if path.suffix == ".keras" else tf_keras).save(path)
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            file.attrs["model_config"] = json.dumps(change(config) or config)
        return path
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(entries["config.json"])
    entries["config.json"] = json.dumps(change(config) or config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def layer(config: dict[str, Any], class_name: str = "Conv2D") -> dict[str, Any]:
    return next(each for each in config["config"]["layers"] if each["class_name"] == class_name)


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_model(path, labels="a,b,c", preprocess="none", size=None, name="evil")
    message = str(caught.value)
    assert message.isprintable(), "one line that a terminal shows and does not obey"
    return message


def hidden(marker: Path, module: str | None) -> dict[str, Any]:
    """A network whose recurrent layer's cell brings a function along, as an attacker writes it."""
    code = compile(f"lambda i, o: (open({str(marker)!r}, 'w'), o)[1]", "f", "eval").co_consts[0]
    function = base64.encodebytes(marshal.dumps(code)).decode()
    plain = {"trainable": True, "dtype": "float32"}
    cell = {"class_name": "SimpleRNNCell", "config": {"name": "c", "units": 3, **plain}}
    wrapper = {"name": "w", **plain, "cell": cell, "residual_fn": [function, None, None],
               "residual_fn_type": "lambda", "residual_fn_module": "builtins"}  # fmt: skip
    layers = [
        {"class_name": "InputLayer", "config": {"batch_input_shape": [None, 4, 3], "dtype": "float32", "name": "i"}},
        {"class_name": "RNN", "config": {"name": "r", "unroll": True, **plain,
                                         "cell": {"class_name": "ResidualWrapper", "config": wrapper}}},
    ]  # fmt: skip
    network = {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}
    return {**network, "module": module, "registered_name": None} if module else network


@pytest.mark.parametrize("module", [None, "keras", "tensorflow.python.keras.engine.sequential"])
@pytest.mark.parametrize("file", ["evil.keras", "evil.h5"])
def test_a_function_hidden_in_a_file_is_never_run(tmp_path: Path, file: str, module: str | None) -> None:
    marker = tmp_path / "it ran"
    refused(altered(tmp_path / file, lambda _: hidden(marker, module)))

    def deep(config: dict[str, Any]) -> None:
        layer(config)["config"]["kernel_regularizer"] = hidden(marker, module)

    refused(altered(tmp_path / file, deep))
    assert not marker.exists()


def with_object(**entry: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: layer(config)["config"].update(kernel_initializer={"config": {}, **entry})


@pytest.mark.parametrize(
    "change",
    [
        with_object(class_name="Popen", module="subprocess"),
        with_object(class_name="Zeros", module="os"),
        with_object(class_name="Zeros", module="keras.src.utils.file_utils"),
        with_object(class_name="eval", module="builtins"),
        with_object(class_name="get_file", module="keras.utils"),
        with_object(class_name="Zeros", module="keras.initializers", registered_name="theirs>Zeros"),
        with_object(class_name="keras.Zeros"),
        with_object(class_name="TextVectorization", module="keras.layers"),
        with_object(class_name="__lambda__"),
        with_object(class_name="__typespec__", spec_name="x", module="os"),
        with_object(class_name="WhileLoop", module="keras.src.ops.core"),
        with_object(class_name="function", module="builtins", **{"config": "eval"}),
        with_object(class_name="function", module="os", **{"config": "relu"}),
        with_object(class_name=["Zeros"]),
        lambda config: layer(config)["config"].update(activation="deserialize"),
        lambda config: layer(config)["config"].update(activation="os.system"),
        lambda config: layer(config)["config"].update(call_fn="relu"),
        lambda config: layer(config).update(compile_config={"loss": {"class_name": "Popen", "module": "subprocess"}}),
    ],
)
@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
def test_what_vetting_does_not_know_reaches_no_library(tmp_path: Path, file: str, change: Any) -> None:
    path = altered(tmp_path / file, change)
    with pytest.raises(UserError, match=r"does not know|never run"):
        check_keras_file(path)


@pytest.mark.parametrize(
    ("class_name", "entries"),
    [
        ("Conv2D", {"kernel_size": [20000, 20000], "padding": "same"}),
        ("Conv2D", {"kernel_size": [30, 30]}),
        ("Conv2D", {"filters": 10**9}),
        ("Conv2D", {"filters": "1000000000"}),
        ("Conv2D", {"strides": [10**4, 1]}),
        ("Conv2D", {"groups": 10**6}),
        ("InputLayer", {"batch_shape": [None, 90_000, 90_000, 3], "batch_input_shape": [None, 90_000, 90_000, 3]}),
        ("Dense", {"units": 10**6}),
    ],
)
@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
def test_sizes_that_the_weights_do_not_bear_out_are_refused(
    tmp_path: Path, file: str, class_name: str, entries: Any
) -> None:
    path = altered(tmp_path / file, lambda config: layer(config, class_name)["config"].update(entries))
    with pytest.raises(UserError, match=r"refused|are taken"):
        check_keras_file(path)


@pytest.mark.parametrize(
    ("class_name", "entries"),
    [
        ("ZeroPadding2D", {"padding": [[9999, 9999], [9999, 9999]]}),
        ("UpSampling2D", {"size": [1000, 1000]}),
        ("RepeatVector", {"n": 10**5}),
        ("Embedding", {"input_dim": 10**5, "output_dim": 10**5}),
    ],
)
def test_layers_that_make_much_of_little_are_bounded(tmp_path: Path, class_name: str, entries: dict[str, Any]) -> None:
    def change(config: dict[str, Any]) -> None:
        layer(config).update(class_name=class_name, config={"name": "large", **entries})

    refused(altered(tmp_path / "model.keras", change))


ESCAPE = "\x1b]0;mine now\x07\x1b[31mred\nand another line"


def test_what_a_terminal_would_obey_is_not_printed(tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        layer(config).update(class_name="Lambda", config={"name": ESCAPE})

    assert "red" in refused(altered(tmp_path / "model.keras", change))
    assert "control characters" in refused(
        altered(tmp_path / "name.keras", lambda config: layer(config)["config"].update(name=ESCAPE))
    )
    script = tmp_path / "script.py"
    script.write_text(
        "from loupe.errors import UserError\nfrom loupe.cli import run_script\n"
        f"def main():\n    raise UserError({ESCAPE!r} + ' größer')\nrun_script(main)\n"
    )
    ended = subprocess.run(  # noqa: S603
        [sys.executable, script], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.rstrip("\n").isprintable()
    assert "größer" in ended.stderr


def save_module(folder: Path, reach: Callable[[Path], Any], kept: Any = None) -> None:
    """A SavedModel whose signature also does what `reach` does, at a marker's path."""
    module = tf.Module()
    module.kept = kept
    module.weight = tf.Variable(tf.ones([3, 3]))

    def call(x: Any) -> dict[str, Any]:
        reach(folder.parent / "marker")
        return {"y": tf.nn.softmax(tf.reduce_mean(x, [1, 2]) @ module.weight)}

    spec = tf.TensorSpec([None, *SHAPE], tf.float32, name="x")
    function = tf.function(call, input_signature=[spec]).get_concrete_function()
    tf.saved_model.save(module, str(folder), signatures=function)


def written_summary(marker: Path) -> None:
    writer = tf.raw_ops.SummaryWriter(shared_name="a", container="")
    tf.raw_ops.CreateSummaryFileWriter(
        writer=writer, logdir=str(marker), max_queue=1, flush_millis=1, filename_suffix="x"
    )


REACHING: dict[str, Callable[[Path], Any]] = {
    "PrintV2": lambda marker: tf.print("mine", output_stream=f"file://{marker}"),
    "SaveV2": lambda marker: tf.raw_ops.SaveV2(
        prefix=str(marker), tensor_names=["a"], shape_and_slices=[""], tensors=[tf.constant([1.0])]
    ),
    "Summary": written_summary,
    "Dataset": lambda marker: tf.data.TextLineDataset(str(marker)).reduce(0, lambda n, _: n + 1),
    "WholeFileReaderV2": lambda _: tf.raw_ops.WholeFileReaderV2(container="", shared_name=""),
    "ImmutableConst": lambda marker: tf.raw_ops.ImmutableConst(
        dtype=tf.float32, shape=[1], memory_region_name=str(marker)
    ),
    "DebugIdentityV2": lambda marker: tf.raw_ops.DebugIdentityV2(
        input=tf.constant(1.0), debug_urls=[f"file://{marker}"], tensor_debug_mode=1
    ),
    "PyFunc": lambda marker: tf.numpy_function(lambda: marker.touch(), [], []),
    "RestoreV2": lambda marker: tf.raw_ops.RestoreV2(
        prefix=str(marker), tensor_names=["a"], shape_and_slices=[""], dtypes=[tf.float32]
    ),
}


@pytest.mark.parametrize("op", REACHING)
def test_a_saved_model_that_reaches_for_files_is_refused_by_the_name_of_its_operation(tmp_path: Path, op: str) -> None:
    save_module(tmp_path / "theirs", REACHING[op])
    before = set(tmp_path.iterdir())
    message = refused(tmp_path / "theirs")
    assert "it is not loaded" in message
    assert op in message
    assert set(tmp_path.iterdir()) == before


def test_a_table_from_a_text_file_an_unknown_operation_and_a_second_graph_are_refused(tmp_path: Path) -> None:
    # A table that is read from a file.
    (tmp_path / "words").write_text("a\n")
    table = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            str(tmp_path / "words"), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        ),
        -1,
    )  # fmt: skip
    save_module(tmp_path / "table", lambda _: table.size(), table)
    assert "InitializeTableFromTextFileV2" in refused(tmp_path / "table")

    # An operation that TensorFlow does not know.
    save_module(tmp_path / "plain", lambda _: None)
    savedmodel.check_savedmodel(tmp_path / "plain")
    graph = tmp_path / "plain" / "saved_model.pb"
    saved = savedmodel.check_savedmodel(tmp_path / "plain")
    saved.meta_graphs[0].graph_def.node.add(name="theirs", op="Theirs\x1b[31m")
    graph.write_bytes(saved.SerializeToString())
    assert "Theirs" in refused(tmp_path / "plain")
    # A second graph.
    save_module(tmp_path / "two", lambda _: None)
    (tmp_path / "two" / "saved_model.cpb").touch()
    assert "second graph" in refused(tmp_path / "two")


def test_what_restoring_runs_may_not_write(tmp_path: Path) -> None:
    save_module(tmp_path / "theirs", lambda _: None)
    saved = savedmodel.check_savedmodel(tmp_path / "theirs")
    meta = saved.meta_graphs[0]
    restore = next(node for node in meta.graph_def.node if node.name == meta.saver_def.restore_op_name)
    restore.input.append("^StatefulPartitionedCall_1")  # the saver's own saving
    (tmp_path / "theirs" / "saved_model.pb").write_bytes(saved.SerializeToString())
    assert "which may reach outside" in refused(tmp_path / "theirs")
