"""200 new versions, one after the other, while callers ask: no call fails, and the server does not grow."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from loupe import proto
from tests.support import models
from tests.support.servers import ModelServer, meanwhile, model_server, until

RELOADS = 200
WARM = 10  # reloads after which memory is compared
GROWTH = 1.05
PICTURE = np.full((1, models.SIDE, models.SIDE, 3), 128, np.uint8)


def memory(server: ModelServer) -> int:
    """Return the KiB that the process has for itself."""
    lines = Path(f"/proc/{server.process.pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def threads(server: ModelServer) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "tensorflow"])
def test_two_hundred_reloads_under_load_lose_no_call_and_leak_nothing(tmp_path: Path, engine: str) -> None:
    # Two models that are published in turns, and two callers.
    shelf = [models.write(tmp_path / "shelf" / str(seed), seed=seed) for seed in (1, 2)]
    base = tmp_path / "tires"
    shutil.copytree(shelf[0], base / "1")
    with model_server(tmp_path, "tires", engine=engine) as server:
        channel = grpc.insecure_channel(f"localhost:{server.port}")
        predict = proto.call(channel, proto.PREDICT)
        answered: list[int] = []
        failed: list[str] = []

        def ask() -> None:
            try:
                answer = predict(proto.predict_request("tires", {"image": PICTURE}), timeout=60)
                answered.append(answer.model_spec.version.value)
            except grpc.RpcError as error:
                failed.append(f"{error.code()}: {error.details()}")

        used = {}
        with meanwhile(ask, threads=2):
            for number in range(2, RELOADS + 2):
                _publish(shelf[number % 2], base / str(number))
                until(lambda: _states(channel)[:2] == [(number, 30), (number - 1, 50)], f"version {number}")  # noqa: B023
                shutil.rmtree(base / str(number - 1))
                used[number] = memory(server), threads(server)
    # None failed, every version answered, and nothing has grown.
    assert failed == []
    assert set(range(2, RELOADS + 2)) <= set(answered) | {RELOADS + 1}
    after_warm = max(used[number][0] for number in range(WARM, 2 * WARM))
    at_the_end = min(used[number][0] for number in range(RELOADS + 2 - WARM, RELOADS + 2))
    print(f"{engine}: {len(answered)} answers; KiB after {WARM} reloads {after_warm}, at the end {at_the_end}")
    assert at_the_end <= after_warm * GROWTH, used
    assert used[RELOADS + 1][1] <= used[WARM][1] + 2, used


def _publish(model: Path, folder: Path) -> None:
    shutil.copytree(model, folder.parent / f".{folder.name}")
    (folder.parent / f".{folder.name}").rename(folder)


def _states(channel: Any) -> list[tuple[int, int]]:
    request = proto.GetModelStatusRequest(model_spec=proto.model_spec("tires"))
    listed = proto.call(channel, proto.GET_MODEL_STATUS)(request, timeout=60)
    return [(version.version, version.state) for version in listed.model_version_status]
