"""What a worker takes on: who can be answered in time is, and bodies take no more memory than they may."""

from __future__ import annotations

import io
import os
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress

import pytest
from PIL import Image

from loupe.errors import Busy
from loupe.gateway.door.admission import MOST_RECENT, RECENT_SECONDS, UNKNOWN_SECONDS, Lane
from tests.support.backends import Backend, backend
from tests.support.gateways import Gateway, connect, gateway, running
from tests.support.pictures import encoded
from tests.support.servers import ROOT, ModelServer, free_port, meanwhile, until

PICTURE = encoded()
LARGE = PICTURE + bytes(900_000)  # what follows a JPEG's end is not looked at


@pytest.fixture(scope="module")
def behind() -> Iterator[Backend]:
    with backend(lambda *_: None) as started:
        yield started


def room_for(behind: Backend, size: int, **more: str) -> AbstractContextManager[Gateway]:
    return gateway(f"localhost:{behind.port}", LOUPE_BODY_MEMORY=str(size), **more)


def head(length: int) -> bytes:
    return b"POST /predict HTTP/1.1\r\nHost: h\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % length


def status(connection: socket.socket) -> bytes:
    return connection.recv(65536)[:12]


def test_a_load_of_64_callers_is_answered_whole(server: ModelServer) -> None:
    with gateway(f"localhost:{server.port}") as here, ThreadPoolExecutor(64) as pool:
        answers = pool.map(lambda _: here.post("/predict", PICTURE).status, range(600))
        assert Counter(answers) == {200: 600}


def test_bodies_wait_for_room_and_all_are_answered(behind: Backend) -> None:
    with room_for(behind, 2_000_000) as here, ThreadPoolExecutor(20) as pool:
        assert Counter(pool.map(lambda _: here.post("/predict", LARGE).status, range(60))) == {200: 60}


def test_one_that_is_larger_than_all_may_be_comes_alone(behind: Backend) -> None:
    with room_for(behind, 100_000) as here, ThreadPoolExecutor(4) as pool:
        assert Counter(pool.map(lambda _: here.post("/predict", LARGE).status, range(8))) == {200: 8}


def test_chunks_have_room_for_the_largest_body(behind: Backend) -> None:
    """Two that are under way have it, and a third waits until one of these is whole."""
    begin = b"POST /predict HTTP/1.1\r\nHost: h\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
    first_chunk, last_chunk = chunk(LARGE[:20_000]), chunk(LARGE[20_000:]) + b"0\r\n\r\n"
    with room_for(behind, 2_000_000, LOUPE_MAX_BYTES="1000000", LOUPE_MAX_WAIT="60") as here, ExitStack() as stack:
        first, second = (stack.enter_context(connect(here, begin + first_chunk)) for _ in range(2))
        time.sleep(0.3)
        third = stack.enter_context(connect(here, begin + first_chunk + last_chunk))
        third.settimeout(0.3)
        with pytest.raises(TimeoutError):
            third.recv(1)
        third.settimeout(60)
        first.sendall(last_chunk)
        assert status(first) == status(third) == b"HTTP/1.1 200"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def test_senders_that_will_not_come_to_an_end_give_way(behind: Backend) -> None:
    with room_for(behind, 3_000_000) as here, ExitStack() as stack:
        slow = [stack.enter_context(connect(here, head(1_000_000) + LARGE[:20_000])) for _ in range(3)]

        def drip() -> None:
            for connection in slow:
                with suppress(OSError):
                    connection.send(b"x")
            time.sleep(0.2)

        with meanwhile(drip):
            assert here.post("/predict", LARGE).status == 200
        assert b"HTTP/1.1 503" in {status(connection) for connection in slow}


def test_heads_alone_hold_nothing(behind: Backend) -> None:
    """Of bodies a little smaller than an honest one, which would have room before it."""
    with room_for(behind, 3_000_000) as here, ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(connect(here, head(len(LARGE) - 1) + b"x"))
        assert Counter(here.post("/predict", LARGE).status for _ in range(5)) == {200: 5}


def test_uploads_that_are_under_way_outlive_connections_that_only_begin(behind: Backend) -> None:
    with (
        gateway(f"localhost:{behind.port}", GUNICORN_CMD_ARGS="--worker-connections 50") as here,
        ExitStack() as stack,
    ):
        upload = stack.enter_context(connect(here, head(len(LARGE)) + LARGE[:400_000]))
        time.sleep(0.3)
        for _ in range(150):
            stack.enter_context(connect(here, b"POST /p"))
        time.sleep(0.3)
        upload.sendall(LARGE[400_000:])
        assert status(upload) == b"HTTP/1.1 200"


def test_a_few_that_take_long_leave_the_others_their_turns() -> None:
    """Three of eight threads are in a long call, for longer than anybody may wait."""
    with (
        backend(lambda call, _: time.sleep(6 if call <= 3 else 0.1)) as slow,
        gateway(f"localhost:{slow.port}", LOUPE_MAX_WAIT="1") as here,
        ThreadPoolExecutor(15) as pool,
    ):
        long = [pool.submit(here.post, "/predict", PICTURE) for _ in range(3)]
        until(lambda: len(slow.remaining) == 3, "three in hand")
        time.sleep(3)
        answers = Counter(pool.map(lambda _: here.post("/predict", PICTURE).status, range(120)))
        assert answers == {200: 120}
        assert [call.result().status for call in long] == [200] * 3


def test_where_all_take_longer_than_usual_the_next_to_end_may_take_as_long_again() -> None:
    lane, waits = Lane("test", threads=2), threading.Event()
    turns = [lane.enter(waits.wait) for _ in range(2)]
    until(lambda: None not in [turn.began_at for turn in turns], "both to begin")
    now = time.monotonic()
    turns[0].began_at, turns[1].began_at = now - 6, now - 5
    assert 5 <= lane.expected_wait() < 6
    with pytest.raises(Busy):
        lane.check(3)
    turns[1].began_at = now - UNKNOWN_SECONDS / 2
    assert lane.expected_wait() < 0.2
    waits.set()
    for turn in turns:
        turn.call.result()


def test_how_long_one_took_is_forgotten() -> None:
    """Else a burst after a quiet time would be refused for what was slow before."""
    lane = Lane("test", threads=1)
    turn = lane.enter(lambda: None)
    turn.call.result()
    turn.began_at, turn.ended_at = time.monotonic() - 60, time.monotonic() - 2 * RECENT_SECONDS
    lane.leave(turn)
    waits = threading.Event()
    going = lane.enter(waits.wait)
    assert lane.expected_wait() < 1
    waits.set()
    going.call.result()


def test_lanes_that_nobody_asks_how_long_one_waits_keep_little() -> None:
    lane = Lane("test", threads=1)
    for _ in range(3 * MOST_RECENT):
        turn = lane.enter(lambda: None)
        turn.call.result()
        lane.leave(turn)
    kept = next(value for value in vars(lane).values() if isinstance(value, deque))
    assert len(kept) <= MOST_RECENT


def test_one_that_is_slow_and_comes_in_time_is_not_cut(behind: Backend) -> None:
    with room_for(behind, 1_000_000, LOUPE_MAX_WAIT="1") as here, connect(here, head(len(LARGE))) as slow:
        piece = len(LARGE) // 20 + 1
        refused = []
        for start in range(0, len(LARGE), piece):
            slow.sendall(LARGE[start : start + piece])
            time.sleep(0.2)
            if start == 5 * piece:
                refused.append(here.post("/predict", LARGE))
                assert here.post("/predict", PICTURE).status == 200, "for small ones there is room"
        assert status(slow) == b"HTTP/1.1 200"
    assert [(answer.status, answer.json()["code"]) for answer in refused] == [(503, "busy")]


def test_a_picture_that_takes_more_than_there_is_is_refused_and_a_smaller_one_is_not(behind: Backend) -> None:
    def blank(side: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (side, side), "teal").save(file, "PNG")
        return file.getvalue()

    with gateway(f"localhost:{behind.port}", LOUPE_DECODE_MEMORY="20000000") as here:
        assert here.post("/predict", blank(2200)).status == 200, "22 MB, alone"
        answer = here.post("/predict", blank(3000))
        assert (answer.status, answer.json()["code"]) == (422, "too_many_pixels")
        assert "MB" in answer.json()["detail"]


def test_a_setting_without_effect_is_said_to_have_none() -> None:
    port = free_port()
    own = {**os.environ, "LOUPE_QUEUE": "16", "LOUPE_WORKERS": "2", "LOUPE_PORT": str(port)}
    with running([sys.executable, "-m", "gunicorn", "gateway:app"], ROOT, own, port) as here:
        assert here.log.read_text().count("LOUPE_QUEUE has no effect") == 1
