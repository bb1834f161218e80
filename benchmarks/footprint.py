"""Measure the gateway's footprint: seconds from its start to ready, and a worker's memory at work.

    python benchmarks/footprint.py       # five starts, 200 uploads each

Prints the medians.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loupe.cli import Parser, run_script
from tests.support.gateways import gateway
from tests.support.servers import ROOT, model_server, until

PICTURE = (ROOT / "data" / "samples" / "cracked-1.jpg").read_bytes()


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--starts", type=int, default=5, help="how often the gateway is started (5)")
    parser.add_argument("--requests", type=int, default=200, help="uploads before the memory is read (200)")
    args = parser.read()
    with model_server(ROOT / "models", "tires") as server:
        measured = [measure(server.port, args.requests) for _ in range(args.starts)]
    seconds, megabytes = (statistics.median(values) for values in zip(*measured, strict=True))
    print(f"start to ready                {seconds:6.2f} s")
    print(f"a worker after {args.requests} requests   {megabytes:6.1f} MB")


def measure(target: int, requests: int) -> tuple[float, float]:
    started = time.monotonic()
    with gateway(f"localhost:{target}") as running:
        until(lambda: running.get("/readyz").status == 200, "the gateway")
        ready = time.monotonic() - started
        for _ in range(requests):
            response = running.post("/predict", PICTURE, "image/jpeg")
            assert response.status == 200, response.body
        (worker,) = running.workers()
        status = Path(f"/proc/{worker}/status").read_text()
        return ready, int(status.split("VmRSS:")[1].split()[0]) / 1000


if __name__ == "__main__":
    run_script(main)
