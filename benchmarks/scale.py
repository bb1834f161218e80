"""Measure how far the gateway scales over many model servers, on one machine: servers that only wait stand in for them.

    python benchmarks/scale.py            # a quarter of an hour; make bench-scale
    python benchmarks/scale.py --only linear,slow --rounds 1

Model servers of a fixed service time (tests/support/replicas.py: a process each, one call at a time, no processor),
real gateways under gunicorn, and callers that ask again as soon as they are answered, two for each server. "linear" is
what the servers could give if none were ever idle: the sum of what each can. A row is the median of its rounds.

    linear      1, 2, 4, 8, 16 equal servers behind two gateways
    threads     8 and 16 of them behind one gateway of LOUPE_THREADS=8: the first limit
    processor   16 servers ten times as quick: the second limit
    slow        one of the servers takes four times as long
    dead        one is killed: connections are refused
    silent      one is stopped: connections stay, and nothing is answered

"least" and "most" are the shares of the servers that answered least and most often, in percent of an even share; the
one that is slow, dead or silent is left out. "failed" counts answers other than 200. "work" is the gateways' processor
time for each answer in milliseconds, which bounds what a core can answer; "busy" is the part of all processors' time
that was used, others' work included.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gateway import processor_seconds
from loupe.cli import Parser, run_script
from loupe.errors import UserError
from tests.support.crowd import Crowd, crowding
from tests.support.gateways import gateway
from tests.support.replicas import Replica, replicas, target

PARTS = ("linear", "threads", "processor", "slow", "dead", "silent")
SLOWER = 4
WARM_UP = 2.0  # seconds


@dataclass(frozen=True)
class Case:
    """So many servers of a service time, behind so many gateways."""

    part: str
    count: int
    seconds: float
    gateways: int = 2
    threads: int = 32

    @property
    def linear(self) -> float:
        """Return the pictures a second that the servers can compute."""
        equal = self.count if self.part in ("linear", "threads", "processor") else self.count - 1
        return equal / self.seconds + (1 / self.seconds / SLOWER if self.part == "slow" else 0)


@dataclass(frozen=True)
class Row:
    rate: float
    least: float
    most: float
    failed: int
    p99: float
    work: float
    busy: float


def main() -> None:
    # The arguments.
    parser = Parser(__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, comma separated (all)")
    parser.add_argument("--rounds", type=int, default=3, help="of each row (3)")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each round (12)")
    parser.add_argument("--service", type=float, default=0.2, help="seconds that a server takes for a picture (0.2)")
    arguments = parser.read()
    parts = arguments.only.split(",")
    if unknown := set(parts) - set(PARTS):
        raise UserError(f"--only {unknown.pop()} is no part; there are {', '.join(PARTS)}.")
    # Each row, as soon as it is known.
    print("             servers  pictures a second            share in percent            p99   work")
    print("                       linear  measured  of it      least   most  failed      in s  in ms   busy")
    for case in cases(parts, arguments.service):
        rows = [measure(case, arguments.seconds) for _ in range(arguments.rounds)]
        show(case, rows)


def cases(parts: list[str], service: float) -> list[Case]:
    made = [Case("linear", count, service) for count in (1, 2, 4, 8, 16)]
    made += [Case("threads", count, service, gateways=1, threads=8) for count in (8, 16)]
    made += [Case("processor", 16, service / 10)]
    made += [Case(part, count, service) for part in ("slow", "dead", "silent") for count in (4, 16)]
    return [case for case in made if case.part in parts]


def measure(case: Case, seconds: float) -> Row:
    with ExitStack() as stack:
        # The servers, of which the last may be slow.
        slow = case.part == "slow"
        servers = stack.enter_context(replicas(case.count - slow, case.seconds))
        if slow:
            port = int(servers[0].address.rpartition(":")[2])
            servers += stack.enter_context(replicas(1, case.seconds * SLOWER, port, first=case.count - 1))
        # The gateways, and whoever asks them.
        room = {"LOUPE_THREADS": str(case.threads)}
        fronts = [stack.enter_context(gateway(target(servers), **room)) for _ in range(case.gateways)]
        seen = stack.enter_context(crowding(fronts, 2 * case.count))
        time.sleep(WARM_UP)
        # What happens to the last, and what comes of it.
        if case.part == "dead":
            servers[-1].kill()
        if case.part == "silent":
            servers[-1].stop()
        workers = [worker for front in fronts for worker in front.workers()]
        return watch(case, seen, servers, workers, seconds)


def watch(case: Case, seen: Crowd, servers: list[Replica], workers: list[int], seconds: float) -> Row:
    # Count what happens in so many seconds.
    with seen.lock:
        before, failed, waited = Counter(seen.answered), seen.failed.total(), len(seen.waited)
    (busy_before, all_before), spent_before = processor(), processor_seconds(*workers)
    started = time.monotonic()
    time.sleep(seconds)
    with seen.lock:
        answered, more_failed = seen.answered - before, seen.failed.total() - failed
        took = sorted(seen.waited[waited:])
    lasted = time.monotonic() - started
    (busy, everything), spent = processor(), processor_seconds(*workers)
    # What it comes to.
    equal = servers if case.part in ("linear", "threads", "processor") else servers[:-1]
    shares = [answered[server.label] for server in equal]
    even = sum(shares) / len(shares) / 100
    return Row(
        rate=answered.total() / lasted,
        least=min(shares) / even,
        most=max(shares) / even,
        failed=more_failed,
        p99=took[len(took) * 99 // 100],
        work=(spent - spent_before) / answered.total() * 1000,
        busy=(busy - busy_before) / (everything - all_before),
    )


def processor() -> tuple[int, int]:
    """Return the ticks that all processors were busy, and all ticks."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def show(case: Case, rows: list[Row]) -> None:
    def median(field: str) -> float:
        return statistics.median(float(getattr(row, field)) for row in rows)

    print(
        f"{case.part:12} {case.count:7} {case.linear:13.1f} {median('rate'):9.1f} {median('rate') / case.linear:5.0%}"
        f" {median('least'):10.0f} {median('most'):6.0f} {median('failed'):7.0f} {median('p99'):9.2f}"
        f" {median('work'):6.1f} {median('busy'):6.0%}",
        flush=True,
    )


if __name__ == "__main__":
    run_script(main)
