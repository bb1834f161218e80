"""Version folders that are not what they seem: pipes, cards that contradict their graph, numbers given twice."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from loupe import proto
from loupe.engines import savedmodel
from loupe.export.publish.show import show
from tests.support import models
from tests.support.servers import ModelServer, model_server, until

INVALID, LOST = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.DATA_LOSS
CARD = Path("assets.extra", "card.json")
GREY = np.full((1, models.SIDE, models.SIDE, 3), 128, np.uint8)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write(tmp_path_factory.mktemp("shelf") / "1")


@pytest.fixture
def home(first: Path, tmp_path: Path) -> Path:
    shutil.copytree(first, tmp_path / "tires" / "1")
    return tmp_path / "tires"


@pytest.fixture
def server(home: Path) -> Iterator[ModelServer]:
    with model_server(home.parent, "tires") as running:
        yield running


def channel(server: ModelServer) -> Any:
    return grpc.insecure_channel(f"localhost:{server.port}")


def state(server: ModelServer) -> tuple[int, int, int]:
    """Return the newest version's number, state and error code."""
    request = proto.GetModelStatusRequest(model_spec=proto.model_spec("tires"))
    newest = proto.call(channel(server), proto.GET_MODEL_STATUS)(request, timeout=60).model_version_status[0]
    return newest.version, newest.state, newest.status.error_code


def answering(server: ModelServer) -> int:
    answer = proto.call(channel(server), proto.PREDICT)(proto.predict_request("tires", {"image": GREY}), timeout=60)
    number: int = answer.model_spec.version.value
    return number


def said(server: ModelServer, line: str) -> bool:
    return line in server.stderr()


def told(server: ModelServer) -> bytes:
    request = proto.predict_request("tires", {"request": np.array([b""], object)}, signature="describe")
    answer = proto.call(channel(server), proto.PREDICT)(request, timeout=60)
    text: bytes = answer.outputs["card"].string_val[0]
    return text


# ---------------------------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize("engine", ["openvino", pytest.param("tensorflow", marks=pytest.mark.slow)])
def test_a_pipe_is_not_waited_for_and_the_next_version_is_served(home: Path, engine: str) -> None:
    names = (
        "saved_model.pb", "assets.extra/card.json", "assets.extra/tf_serving_warmup_requests", "fingerprint.pb",
        "variables/variables.index", "variables/variables.data-00000-of-00001", "assets/words.txt",
    )  # fmt: skip
    with model_server(home.parent, "tires", "--max_num_load_retries=0", engine=engine) as server:
        for number, name in enumerate(names if engine == "tensorflow" else names[:3], 2):  # each takes a second
            made = shutil.copytree(home / "1", home / ".made")
            (made / name).unlink(missing_ok=True)
            (made / name).parent.mkdir(exist_ok=True)
            os.mkfifo(made / name)
            made.rename(home / str(number))
            line = f"version {number} of tires does not load"
            until(partial(said, server, line), f"{name} to be refused")
            assert answering(server) == 1
        shutil.copytree(home / "1", home / ".made").rename(home / "20")
        until(lambda: answering(server) == 20, "version 20")


def test_a_card_of_megabytes_is_refused(home: Path, server: ModelServer) -> None:
    made = shutil.copytree(home / "1", home / ".made")
    (made / CARD).write_bytes((made / CARD).read_bytes() + b" " * savedmodel.MAX_CARD_BYTES)
    made.rename(home / "2")
    until(lambda: state(server) == (2, proto.END, LOST.value[0]), "version 2 to be refused")
    assert "it is larger than 1048576 bytes" in server.stderr()


def test_links_to_files_elsewhere_are_followed(home: Path, server: ModelServer) -> None:
    (home / ".made" / "assets.extra").mkdir(parents=True)
    for name in ("saved_model.pb", CARD):
        (home / ".made" / name).symlink_to(home / "1" / name)
    (home / ".made").rename(home / "2")
    until(lambda: answering(server) == 2, "version 2")


# ----------------------------------------------------------------------------------------------------------- the card


def swapped(path: Path) -> None:
    card = json.loads(path.read_text())
    path.write_text(json.dumps(card | {"labels": card["labels"][::-1]}))


def test_a_card_that_contradicts_the_graph_is_refused_until_it_is_mended(home: Path, server: ModelServer) -> None:
    made = shutil.copytree(home / "1", home / ".made")
    swapped(made / CARD)
    made.rename(home / "2")
    until(lambda: state(server) == (2, proto.END, INVALID.value[0]), "version 2 to be refused")
    assert "card.json is not the card that the graph itself gives by describe" in server.stderr()
    assert answering(server) == 1
    shutil.copy(home / "1" / CARD, home / "2" / CARD)
    until(lambda: state(server) == (2, proto.AVAILABLE, 0), "version 2")


def test_a_card_written_differently_is_served_as_the_graph_writes_it(home: Path) -> None:
    (home / "1" / CARD).write_text(json.dumps(json.loads((home / "1" / CARD).read_text()), indent=4))
    with model_server(home.parent, "tires") as server:
        assert told(server) == models.card().encode()


def test_of_a_model_as_loupe_exports_it_a_swapped_card_is_refused(sample_models: Path, tmp_path: Path) -> None:
    shutil.copytree(sample_models, tmp_path / "models")
    swapped(tmp_path / "models" / "tires" / "1" / CARD)
    with model_server(tmp_path / "models", "tires", "--max_num_load_retries=0", ready=False) as server:
        assert server.process.wait(60) == 2
        assert "card.json is not the card that the graph itself gives" in server.stderr()


def test_a_graph_that_computes_its_card_leaves_the_file_to_be_believed(tmp_path: Path) -> None:
    import tensorflow as tf

    with tf.Graph().as_default():
        pixels = tf.compat.v1.placeholder(tf.float32, [None, 3], name="pixels")
        request = tf.compat.v1.placeholder(tf.string, [None], name="request")
        signatures = {
            "serving_default": models._signature({"pixels": pixels}, {"twice": pixels * 2}),
            "describe": models._signature({"request": request}, {"card": tf.strings.join(["{", request, "}"])}),
        }
        models._save(tmp_path / "tires" / "1", signatures)
    (tmp_path / "tires" / "1" / "assets.extra").mkdir()
    (tmp_path / "tires" / "1" / CARD).write_text('{"name": "mine"}')
    with model_server(tmp_path, "tires") as server:
        assert told(server) == b'{"name": "mine"}'


# -------------------------------------------------------------------------------------------------------- the numbers


def test_of_007_and_7_the_server_and_show_take_the_same(home: Path) -> None:
    for name, seed in (("007", 2), ("7", 3)):
        models.write(home / name, seed=seed, text=models.card(f"seed{seed}"))
    with model_server(home.parent, "tires") as server:
        assert (answering(server), json.loads(told(server))["name"]) == (7, "seed3")
    assert show(home).startswith(f"{home / '7'}: ")
