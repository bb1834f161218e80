"""Callers that ask a gateway without pause, and judge whatever they get.

with traffic(here, truth, callers=4) as seen:      # truth: version → label → score, of the picture they send
    ...                                            # meanwhile something happens
seen.settle("killed mid-request")                  # prints the counts; none was wrong and none was lost

Answered is a right answer; wrong is one that its version did not give. Refused is a documented error, in form; unheard
a connection that was refused, so that nothing was sent. Whatever else is lost: no answer, or an undocumented one.
"""

from __future__ import annotations

import http.client
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.gateways import Answer, Gateway
from tests.support.pictures import encoded

PICTURE = encoded()
DOCUMENTED = {
    ("model_unavailable", 503), ("busy", 503), ("stopping", 503), ("model_too_slow", 504), ("out_of_time", 504),
}  # fmt: skip
TOLERANCE = 0.02  # engines may compute in bfloat16
PAUSE = 0.01  # after anything but an answer: nobody asks as fast as a refusal comes

Truth = dict[int, dict[str, float]]


@dataclass(frozen=True)
class Reply:
    at: float  # time.monotonic() when it was there
    took: float
    kind: str  # answered, wrong, refused, unheard, lost
    what: Any  # the version, the problem's code, or what went wrong


@dataclass
class Seen:
    truth: Truth
    replies: list[Reply] = field(default_factory=list)

    def count(self, kind: str) -> int:
        return sum(reply.kind == kind for reply in list(self.replies))

    def codes(self) -> Counter[Any]:
        return Counter(reply.what for reply in self.of("refused"))

    def versions(self) -> set[Any]:
        return {reply.what for reply in self.of("answered")}

    def of(self, kind: str, after: float = 0.0) -> list[Reply]:
        return [reply for reply in list(self.replies) if reply.kind == kind and reply.at >= after]

    def settle(self, name: str, torn: int = 0) -> None:
        """`torn`: that many may be lost, for what they were in is dead."""
        counts = {kind: self.count(kind) for kind in ("answered", "wrong", "lost", "refused", "unheard")}
        took = [reply.took for reply in self.of("answered")] or [0.0]
        print(
            f"\n{name}: sent {len(self.replies)}, "
            + ", ".join(f"{kind} {count}" for kind, count in counts.items())
            + f" {dict(self.codes()) or ''}; answers took {statistics.median(took):.3f} s in the median, "
            + f"{max(took):.3f} s at most"
        )
        assert counts["wrong"] == 0, self.of("wrong")[:3]
        assert counts["lost"] <= torn, self.of("lost")[:3]
        assert sum(counts.values()) == len(self.replies)

    def judge(self, answer: Answer) -> tuple[str, Any]:
        body = answer.json()
        if answer.status != 200:
            code = body.get("code")
            formed = answer.headers["Content-Type"].startswith("application/problem+json") and body["detail"]
            retry = "Retry-After" in answer.headers or answer.status != 503
            return ("refused" if (code, answer.status) in DOCUMENTED and formed and retry else "lost"), code
        version, scores = body["model"]["version"], body["scores"]
        true = self.truth.get(version, {})
        near = set(scores) == set(true) and all(abs(scores[label] - true[label]) < TOLERANCE for label in true)
        right = near and body["label"] == max(true, key=lambda label: true[label])
        return ("answered" if right else "wrong"), version if right else body


@contextmanager
def traffic(here: Gateway, truth: Truth, callers: int = 4, picture: bytes = PICTURE, **headers: str) -> Iterator[Seen]:
    seen, done = Seen(truth), threading.Event()

    def ask() -> None:
        while not done.is_set():
            started = time.monotonic()
            try:
                kind, what = seen.judge(here.post("/predict", picture, "image/jpeg", **headers))
            except ConnectionRefusedError as error:
                kind, what = "unheard", repr(error)
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                kind, what = "lost", repr(error)
            now = time.monotonic()
            seen.replies.append(Reply(now, now - started, kind, what))
            if kind != "answered":
                done.wait(PAUSE)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
