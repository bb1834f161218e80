"""Callers that ask as soon as they are answered, over connections that stay open, and count who answered.

    seen = crowd([here], callers=8, seconds=5)           # blocks; `with crowding([here], callers=8) as seen:` does not
    seen.rate, seen.answered["replica 3"], seen.failed

An answer counts for its label, which tells the replica that gave it (replicas.py). Whatever is no answer counts by its
code, and is followed by a short pause.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.support.gateways import Gateway
from tests.support.pictures import encoded
from tests.support.servers import PATIENCE

PICTURE = encoded()
PAUSE = 0.05


@dataclass
class Crowd:
    answered: Counter[str] = field(default_factory=Counter)  # by label
    failed: Counter[str] = field(default_factory=Counter)  # by the problem's code, or what went wrong
    waited: list[float] = field(default_factory=list)  # seconds, of each answer
    seconds: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def rate(self) -> float:
        return self.answered.total() / self.seconds

    def count(self) -> int:
        return self.answered.total()


def crowd(gateways: list[Gateway], callers: int, seconds: float) -> Crowd:
    with crowding(gateways, callers) as seen:
        time.sleep(seconds)
        return Crowd(Counter(seen.answered), Counter(seen.failed), list(seen.waited), seconds)


@contextmanager
def crowding(gateways: list[Gateway], callers: int) -> Iterator[Crowd]:
    """Callers are dealt out evenly over the gateways."""
    seen, done, started = Crowd(), threading.Event(), time.monotonic()
    threads = [
        threading.Thread(target=_go_on, args=(gateways[n % len(gateways)], seen, done), daemon=True)
        for n in range(callers)
    ]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        done.set()
        seen.seconds = time.monotonic() - started
        for thread in threads:
            thread.join(PATIENCE)


def _go_on(here: Gateway, seen: Crowd, done: threading.Event) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", here.port, timeout=PATIENCE)
    while not done.is_set():
        started = time.monotonic()
        try:
            connection.request("POST", "/predict", PICTURE, {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            body = json.loads(response.read())
            key, kind = (body["label"], seen.answered) if response.status == 200 else (body["code"], seen.failed)
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            key, kind = repr(error), seen.failed
        with seen.lock:
            kind[key] += 1
            if kind is seen.answered:
                seen.waited.append(time.monotonic() - started)
        if kind is seen.failed:
            done.wait(PAUSE)
    connection.close()
