"""A model that is loaded and cannot compute, or takes long over its first picture: /readyz, /predict and serve.py."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from loupe.gateway.model.reason import LONGEST, public_reason
from tests.support import models
from tests.support.backends import backend
from tests.support.gateways import Gateway, gateway
from tests.support.pictures import encoded
from tests.support.servers import PATIENCE, ROOT, free_port, model_server, until

PICTURE = encoded()
SETTINGS = {"LOUPE_LABELS": "a,b,c", "LOUPE_PREPROCESS": "rescale"}
CANNOT = "Could not find variable"  # as TensorFlow says it


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with a model that TensorFlow loads, and cannot compute."""
    folder = tmp_path_factory.mktemp("stranger")
    models.write_uncomputable(folder / "zoo" / "1")
    return folder


@pytest.fixture(scope="module")
def here(stranger: Path) -> Iterator[Gateway]:
    with (
        model_server(stranger, "zoo", engine="tensorflow") as server,
        gateway(f"localhost:{server.port}", "zoo", **SETTINGS) as front,
    ):
        assert "could not compute a batch of zeros" in server.stderr()
        yield front


@pytest.mark.parametrize("path", ["/readyz", "/predict"])
def test_a_model_that_cannot_compute_is_not_ready_and_says_why_and_what_to_do(here: Gateway, path: str) -> None:
    answer = here.get(path) if path == "/readyz" else here.post(path, PICTURE)
    problem = answer.json()
    assert (answer.status, problem["code"]) == (502, "model_unfit")
    assert "'zoo' is loaded and cannot compute" in problem["detail"]
    assert CANNOT in problem["detail"]
    assert problem["detail"].endswith("export it with convert.py.")
    assert "lacks a signature" not in problem["detail"]


def test_serve_says_it_and_ends(stranger: Path) -> None:
    command = [sys.executable, "serve.py", "--port", str(free_port()), "--models", str(stranger)]
    done = subprocess.run(
        [*command, "--model-name", "zoo", "--engine", "tensorflow"],
        cwd=ROOT, env={**os.environ, **SETTINGS}, capture_output=True, text=True, timeout=3 * PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert CANNOT in done.stderr.splitlines()[-1]
    assert "export it with convert.py" in done.stderr.splitlines()[-1]


def test_one_that_can_compute_again_is_ready_again() -> None:
    """And until then each probe tries it, once."""
    is_broken = threading.Event()
    is_broken.set()

    def behave(call: int, context: Any) -> None:
        if is_broken.is_set():
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "Could not find variable dense/kernel. At /models/1.")

    with backend(behave) as behind, gateway(f"localhost:{behind.port}") as front:
        assert [front.get("/readyz").status for _ in range(3)] == [502] * 3
        assert "/models" not in front.get("/readyz").json()["detail"]
        assert len(behind.remaining) == 4
        is_broken.clear()
        assert [front.get("/readyz").status for _ in range(3)] == [200] * 3
        assert len(behind.remaining) == 5


def test_a_first_picture_that_takes_long_is_waited_for_and_probes_are_answered_meanwhile() -> None:
    done = threading.Event()
    with backend(lambda call, context: done.wait(60)) as behind, gateway(f"localhost:{behind.port}") as front:
        for _ in range(3):
            answer = front.get("/readyz")
            assert (answer.status, answer.json()["code"]) == (503, "model_unavailable")
            assert "first picture" in answer.json()["detail"]
        assert len(behind.remaining) == 1
        done.set()
        until(lambda: front.get("/readyz").status == 200, "ready")
        assert len(behind.remaining) == 1


def test_one_that_fails_later_is_not_ready_and_ready_again_when_it_computes() -> None:
    """Its card comes all the while."""
    is_broken = threading.Event()

    def behave(call: int, context: Any) -> None:
        if is_broken.is_set():
            context.abort(grpc.StatusCode.INTERNAL, "broken")

    with backend(behave) as behind, gateway(f"localhost:{behind.port}") as front:
        assert front.get("/readyz").status == 200
        is_broken.set()
        assert front.post("/predict", PICTURE).status == 502
        until(lambda: front.get("/readyz").status != 200, "it to show")
        is_broken.clear()
        until(lambda: front.get("/readyz").status == 200, "ready")


def test_answers_that_do_not_fit_the_card_are_found_before_a_caller_gets_them() -> None:
    with (
        backend(lambda call, context: None, labels=models.CLASSES + 1) as behind,
        gateway(f"localhost:{behind.port}") as front,
    ):
        answer = front.get("/readyz")
    assert (answer.status, answer.json()["code"]) == (502, "model_unfit")
    assert "does not fit its labels" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "Could not find variable block14_bn/beta. This\n\t [[{{node x}}]]",
            "Could not find variable block14_bn/beta. This",
        ),
        ("\n  no file /models/zoo/1/variables, nor ~/x", "no file …, nor …"),
        ("gs://bucket/zoo at 10.0.0.7:8500, [fe80::1]:8500", "… at …, …"),
        ("C:\\models\\zoo is \x1b[31mred\x07", "… is [31mred"),
        ("expected [-1,299,299,3], got [1:2]", "expected [-1,299,299,3], got [1:2]"),
        ("x" * 1000, "x" * (LONGEST - 1) + "…"),
        ("", "no reason given"),
        (None, "no reason given"),
    ],
)
def test_what_a_model_server_says_is_shown_without_paths_and_addresses(said: str | None, shown: str) -> None:
    assert public_reason(said) == shown
