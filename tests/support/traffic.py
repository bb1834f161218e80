"""Callers that ask a gateway without pause, and check each reply.

with traffic(here, truth, callers=4) as seen:      # truth: version → label → score, of the picture they send
    ...                                            # something happens to the gateway or the model server
seen.settle("killed mid-request")                  # prints the counts; none was wrong and none was lost

Outcomes: answered (a right answer), wrong (scores that are not this version's), refused (a documented error, well
formed), unheard (the connection was refused, so nothing was sent), lost (no answer, or an undocumented one).
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
    ("no_gateway", 503),  # of nginx, deploy/compose/nginx.conf
}  # fmt: skip
TOLERANCE = 0.02  # engines may compute in bfloat16
PAUSE = 0.01  # after anything but an answer; refusals come too fast to ask without a pause

Truth = dict[int, dict[str, float]]


@dataclass(frozen=True)
class Reply:
    received_at: float  # in time.monotonic()
    seconds: float
    outcome: str  # answered, wrong, refused, unheard, lost
    detail: Any  # the version, the problem's code, or what went wrong


@dataclass
class Seen:
    truth: Truth
    replies: list[Reply] = field(default_factory=list)

    def count(self, outcome: str) -> int:
        return sum(reply.outcome == outcome for reply in list(self.replies))

    def codes(self) -> Counter[Any]:
        return Counter(reply.detail for reply in self.of("refused"))

    def versions(self) -> set[Any]:
        return {reply.detail for reply in self.of("answered")}

    def of(self, outcome: str, after: float = 0.0) -> list[Reply]:
        return [reply for reply in list(self.replies) if reply.outcome == outcome and reply.received_at >= after]

    def settle(self, name: str, may_lose: int = 0) -> None:
        """Print the counts and check them. Up to `may_lose` requests may be lost, in a process that was killed."""
        # Print.
        counts = {outcome: self.count(outcome) for outcome in ("answered", "wrong", "lost", "refused", "unheard")}
        took = [reply.seconds for reply in self.of("answered")] or [0.0]
        print(
            f"\n{name}: sent {len(self.replies)}, "
            + ", ".join(f"{outcome} {count}" for outcome, count in counts.items())
            + f" {dict(self.codes()) or ''}; answers took {statistics.median(took):.3f} s in the median, "
            + f"{max(took):.3f} s at most"
        )
        # Check.
        assert counts["wrong"] == 0, self.of("wrong")[:3]
        assert counts["lost"] <= may_lose, self.of("lost")[:3]
        assert sum(counts.values()) == len(self.replies)

    def check(self, answer: Answer) -> tuple[str, Any]:
        body = answer.json()
        if answer.status != 200:
            code = body.get("code")
            formed = answer.headers["Content-Type"].startswith("application/problem+json") and body["detail"]
            retry = "Retry-After" in answer.headers or answer.status != 503
            return ("refused" if (code, answer.status) in DOCUMENTED and formed and retry else "lost"), code
        version, scores = body["model"]["version"], body["scores"]
        expected = self.truth.get(version, {})
        is_near = set(scores) == set(expected) and all(
            abs(scores[label] - expected[label]) < TOLERANCE for label in expected
        )
        is_right = is_near and body["label"] == max(expected, key=lambda label: expected[label])
        return ("answered" if is_right else "wrong"), version if is_right else body


@contextmanager
def traffic(here: Gateway, truth: Truth, callers: int = 4, picture: bytes = PICTURE, **headers: str) -> Iterator[Seen]:
    seen, done = Seen(truth), threading.Event()

    # Each caller asks until the end.
    def ask() -> None:
        while not done.is_set():
            started = time.monotonic()
            try:
                outcome, detail = seen.check(here.post("/predict", picture, "image/jpeg", **headers))
            except ConnectionRefusedError as error:
                outcome, detail = "unheard", repr(error)
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                outcome, detail = "lost", repr(error)
            now = time.monotonic()
            seen.replies.append(Reply(now, now - started, outcome, detail))
            if outcome != "answered":
                done.wait(PAUSE)

    # Start all callers, and stop them in the end.
    threads = [threading.Thread(target=ask, daemon=True) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
