"""Ten minutes of good and hostile traffic at capacity: nothing grows, nothing is answered unexpectedly, nobody dies.

.venv/bin/python -m pytest tests/gateway/test_soak.py -s            # prints a row every 30 s, and a table at the end
SOAK_SECONDS=90 .venv/bin/python -m pytest tests/gateway/test_soak.py -s
"""

from __future__ import annotations

import base64
import json
import os
import random
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from tests.support.gateways import Gateway, internet
from tests.support.hostile import PICTURE, conversation, defended
from tests.support.hostile_pictures import BESIDE, NO_PICTURE
from tests.support.pictures import encoded, photograph, picture, png_that_declares

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
WARM = min(60.0, SECONDS / 3)  # after it nothing may grow any more
EACH = min(30.0, SECONDS / 12)  # of traffic, after which it rests for a moment
GROWTH = 1.05  # of the last third against the first: of its least, for what free holes cost comes and goes
REST = 8.0  # seconds: also for the last slow server, connections that linger, and memory that is given back
CALLERS = 24
WORKERS = 2
HEAD = b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: image/jpeg\r\n"
LOST = 0  # no answer at all

Ask = Callable[[Gateway, str], int]


def site(path: str, write: Callable[[bytes], None]) -> None:
    if path == "/silent":
        time.sleep(3)
    elif path == "/endless":
        for _ in range(400):
            write(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(65536))
    elif path == "/404":
        write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    else:
        write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(PICTURE) + PICTURE)


def body(data: bytes, kind: str = "image/jpeg", query: str = "") -> Ask:
    return lambda here, _: here.post("/predict" + query, data, kind).status


def files(*data: bytes) -> Ask:
    return lambda here, _: here.post_files("/predict", *data).status


def url(path: str) -> Ask:
    return lambda here, base: here.post_json("/predict", {"url": base + path}).status


def raw(data: bytes) -> Ask:
    def ask(here: Gateway, _: str) -> int:
        answers = conversation(here, data)
        return answers[-1].status if answers else LOST

    return ask


def get(path: str) -> Ask:
    return lambda here, _: here.get(path).status


def leaves(data: bytes, seconds: float) -> Ask:
    """A client that sends a part, waits, and is gone."""

    def ask(here: Gateway, _: str) -> int:
        with socket.create_connection(("127.0.0.1", here.port), timeout=10) as connection:
            connection.sendall(data)
            time.sleep(seconds)
        return LOST

    return ask


@dataclass(frozen=True)
class Kind:
    ask: Ask
    expected: set[int]
    share: int = 1  # of all that is sent


def kinds() -> dict[str, Kind]:
    text = base64.b64encode(PICTURE).decode()
    photo = encoded(photograph(1600, 1200), quality=85)
    whole = HEAD + b"Content-Length: %d\r\n" % len(PICTURE)
    large = encoded(Image.new("RGB", (5000, 4000), "gray"), "PNG")
    spoilt = random.Random(1).randbytes(200_000)
    ten = [f"/{n}" for n in range(10)]
    return {
        "a picture": Kind(body(PICTURE), {200}, 30),
        "a photo": Kind(body(photo), {200}, 8),
        "a heat map": Kind(body(PICTURE, query="?heatmap=1&top=1"), {200}, 4),
        "other kinds": Kind(
            files(*(encoded(picture(), kind) for kind in ("PNG", "WEBP", "GIF", "BMP", "AVIF"))), {200}, 4
        ),
        "many files": Kind(files(*[PICTURE] * 16), {200}, 3),
        "base64": Kind(body(json.dumps({"b64": text}).encode(), "application/json"), {200}, 6),
        "a URL": Kind(url("/x.jpg"), {200}, 8),
        "ten URLs": Kind(
            lambda here, base: here.post_json("/predict", {"urls": [base + one for one in ten]}).status, {200}, 2
        ),
        "in one piece": Kind(raw((whole + b"\r\n" + PICTURE) * 3 + b"GET /healthz HTTP/1.0\r\n\r\n"), {200}, 2),
        "20 megapixels": Kind(body(large, "image/png"), {200}),
        "a probe": Kind(get("/healthz"), {200}, 10),
        "ready?": Kind(get("/readyz"), {200}, 4),
        "the page": Kind(get("/"), {200}, 2),
        "no picture": Kind(body(spoilt), {422}, 4),
        "cut short": Kind(body(photo[: len(photo) // 2]), {422}, 3),
        "declares much": Kind(body(png_that_declares(50_000, 50_000)), {422}, 2),
        "a bomb of text": Kind(body(BESIDE["text that unpacks to 200 MB"]()), {200, 422}),
        "EXIF in a circle": Kind(body(BESIDE["EXIF whose directory is itself"]()), {200, 422}, 2),
        "a thousand scans": Kind(body(NO_PICTURE["JPEG of a thousand scans"]()), {422}),
        "TIFF": Kind(body(encoded(picture(), "TIFF")), {415}, 2),
        "another type": Kind(body(b"a=b", "text/plain"), {415}, 2),
        "no JSON": Kind(body(b"[" * 50_000, "application/json"), {400}, 3),
        "too large": Kind(body(bytes(10_000_001)), {413}),
        "a thousand parts": Kind(files(*[b"x"] * 1000), {413}),
        "a URL inside": Kind(lambda here, _: here.post_json("/predict", {"url": "http://10.0.0.1/"}).status, {400}, 4),
        "no such picture": Kind(url("/404"), {422}, 2),
        "a silent server": Kind(url("/silent"), {422}),
        "an endless server": Kind(url("/endless"), {422}),
        "nowhere": Kind(get("/nothing"), {404}, 2),
        "smuggling": Kind(raw(whole + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), {400}, 3),
        "TLS": Kind(raw(bytes.fromhex("160301020001") + bytes(300)), {400}, 2),
        "a long head": Kind(raw(HEAD + b"X: y\r\n" * 5000 + b"\r\n"), {431}, 2),
        "leaves in the body": Kind(leaves(HEAD + b"Content-Length: 100000\r\n\r\n" + bytes(50_000), 0.2), {LOST}, 3),
        "leaves before the answer": Kind(leaves(whole + b"\r\n" + PICTURE, 0), {LOST}, 3),
        "a slow sender": Kind(raw(HEAD + b"Content-Length: 100000\r\n\r\n" + bytes(1000)), {408}, 1),
    }


@dataclass
class Row:
    """One look at gunicorn's processes, all of them together."""

    seconds: float
    memory: int  # kB, PSS without what is mapped from files: others on this machine share the same libraries
    descriptors: int
    threads: int


def look(here: Gateway, started: float) -> Row:
    row = Row(time.monotonic() - started, 0, 0, 0)
    for pid in (here.process.pid, *here.workers()):
        folder = Path(f"/proc/{pid}")
        sizes = dict(line.split(":") for line in (folder / "smaps_rollup").read_text().splitlines()[1:])
        row.memory += sum(int(sizes[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem"))
        row.descriptors += len(list((folder / "fd").iterdir()))
        row.threads += int((folder / "status").read_text().split("Threads:")[1].split()[0])
    return row


@dataclass
class Traffic:
    here: Gateway
    base: str
    kinds: dict[str, Kind]
    ends: threading.Event = field(default_factory=threading.Event)
    rests: threading.Event = field(default_factory=threading.Event)
    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def caller(self, seed: int) -> None:
        chosen, names = random.Random(seed), list(self.kinds)
        shares = [self.kinds[name].share for name in names]
        while not self.ends.is_set():
            if self.rests.is_set():
                time.sleep(0.1)
                continue
            (name,) = chosen.choices(names, shares)
            status = LOST
            with suppress(OSError):
                status = self.kinds[name].ask(self.here, self.base)
            with self.lock:
                self.counts[name, status] += 1

    def at_rest(self, started: float) -> Row:
        """What is there when nobody asks."""
        self.rests.set()
        time.sleep(REST)
        row = look(self.here, started)
        self.rests.clear()
        return row

    def unexpected(self) -> dict[tuple[str, int], int]:
        """A refusal because of load is no fault; an upload that is cut while it is sent is told so by a reset."""
        return {
            (name, status): count
            for (name, status), count in self.counts.items()
            if status not in self.kinds[name].expected | {503} and (name, status) != ("too large", LOST)
        }


@pytest.fixture(scope="module")
def here(sample_models: Path) -> Iterator[Gateway]:
    settings = {
        "LOUPE_WORKERS": str(WORKERS),
        "LOUPE_MODEL_TIMEOUT": "60",  # what is looked for is growth; how fast the machine is does not matter
        "LOUPE_THREADS": "4",
        "LOUPE_FETCHES": "2",  # threads start when they are first needed: so few are all there when it is warm
        "LOUPE_FETCH_ALLOW": "127.0.0.1",
    }
    with defended(sample_models, **settings) as running:
        yield running


@pytest.mark.slow
def test_minutes_of_all_kinds_of_traffic_leave_the_gateway_as_it_was(here: Gateway) -> None:
    workers = here.workers()
    assert len(workers) == WORKERS
    with internet(site) as port:
        traffic = Traffic(here, f"http://127.0.0.1:{port}", kinds())
        callers = [threading.Thread(target=traffic.caller, args=(n,)) for n in range(CALLERS)]
        for caller in callers:
            caller.start()
        try:
            rows, rests = watch(traffic)
        finally:
            traffic.ends.set()
            for caller in callers:
                caller.join(30)
    tell(traffic, rows)
    for name in ("memory", "descriptors", "threads"):
        for when, looks in (("under load", rows), ("at rest", rests)):
            seen = [getattr(row, name) for row in looks if row.seconds >= WARM]
            third = len(seen) // 3
            before, after = min(seen[:third]), min(seen[-third:])
            print(f"{name} {when}, the least of the first and of the last third: {before:,} → {after:,}")
            assert after <= GROWTH * before + (name != "memory"), f"{name} {when}"
    assert here.workers() == workers, "the same processes"
    assert here.get("/healthz").status == 200
    assert not traffic.unexpected()
    answered = sum(count for (_, status), count in traffic.counts.items() if status == 200)
    assert answered > 5 * SECONDS, "and most of the good traffic was answered"
    assert b"Traceback" not in here.log.read_bytes()


def watch(traffic: Traffic) -> tuple[list[Row], list[Row]]:
    """A row every 10 s of traffic, the median of five looks; and what is left in the rests between."""
    started, resting = time.monotonic(), 0.0
    rows: list[Row] = []
    rests: list[Row] = []
    while (busy := time.monotonic() - started - resting) < SECONDS:
        looks = []
        for _ in range(5):
            time.sleep(min(2.0, EACH / 5))
            looks.append(look(traffic.here, started))
        middle = {
            name: int(statistics.median(getattr(one, name) for one in looks))
            for name in ("memory", "descriptors", "threads")
        }
        rows.append(Row(looks[-1].seconds, **middle))
        if busy >= (len(rests) + 1) * EACH:
            rests.append(traffic.at_rest(started))
            resting = len(rests) * REST
            done = sum(traffic.counts.values())
            row, memory = rows[-1], f"{rows[-1].memory / 1000:6.1f} MB, at rest {rests[-1].memory / 1000:6.1f}"
            print(f"{row.seconds:5.0f} s  {memory}  {row.descriptors:4} descriptors  {row.threads:3} threads  "
                  f"{done:,} requests  {traffic.unexpected()}", flush=True)  # fmt: skip
    return rows, rests


def tell(traffic: Traffic, rows: list[Row]) -> None:
    for name, kind in traffic.kinds.items():
        seen = {status: count for (one, status), count in sorted(traffic.counts.items()) if one == name}
        print(f"{name:26} expected {sorted(kind.expected)}  seen {seen}")
    total = sum(traffic.counts.values())
    busy = sum(count for (_, status), count in traffic.counts.items() if status == 503)
    print(f"{total:,} requests in {rows[-1].seconds:.0f} s, {busy:,} of them refused as busy")
