"""Measure predict.py against the bare loop: threads that read, decode and compute, and do nothing else.

    python benchmarks/predict.py photos --model models/photos --rounds 3

Round by round in turns, each in a process of its own, over the same pictures:

    bare 1     a thread for each core and one more; each picture is read, decoded and computed by itself, in a stream of
               one core
    bare 8     the same, in batches of eight
    predict    python predict.py photos --csv FILE: the seconds that it counts itself, from the first picture on
    whole      the same, from the start of the process to its end

Prints pictures a second, and of predict and whole the share of the faster bare loop of the same round: the median, and
the least and the most.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from loupe.card import Card
from loupe.cli import Parser, run_script
from loupe.client.backends.in_process import version_folder
from loupe.client.bulk.find import find
from loupe.engines import machine
from loupe.errors import UserError
from loupe.images.api import decode

ROOT = Path(__file__).resolve().parent.parent
BATCHES = (1, 8)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("pictures", metavar="FOLDER")
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="(%(default)s)")
    parser.add_argument("--bare", type=int, metavar="BATCH", help="run this bare loop alone; the rounds do it")
    arguments = parser.read()
    if arguments.bare:
        print(bare(arguments.pictures, version_folder(arguments.model, None), arguments.bare))
        return
    # Round by round.
    rates: dict[str, list[float]] = {}
    for number in range(arguments.rounds):
        order = ["predict", *(f"bare {batch}" for batch in BATCHES)]
        for name in order[number % len(order) :] + order[: number % len(order)]:
            for key, rate in measure(name, arguments.pictures, arguments.model).items():
                rates.setdefault(key, []).append(rate)
        print(f"round {number + 1}: " + ", ".join(f"{key} {values[-1]:.1f}" for key, values in rates.items()))
    # The shares.
    fastest = [max(rates[f"bare {batch}"][number] for batch in BATCHES) for number in range(arguments.rounds)]
    for name in ("predict", "whole"):
        shares = [mine / best for mine, best in zip(rates[name], fastest, strict=True)]
        print(f"{name:8} {statistics.median(shares):.3f} of the bare loop ({min(shares):.3f} to {max(shares):.3f})")


def measure(name: str, pictures: str, model: Path) -> dict[str, float]:
    """Return pictures a second, by what was measured."""
    if name.startswith("bare"):
        command = [sys.executable, __file__, pictures, "--model", str(model), "--bare", name.split()[1]]
        return {name: float(run(command))}
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, str(ROOT / "predict.py"), pictures, "--model", str(model)]
        began = time.monotonic()
        output = run([*command, "--csv", f"{scratch}/labels.csv"])
        seconds = time.monotonic() - began
    found = re.search(r"([\d,]+) pictures in ([\d,.]+) s", output)
    assert found, output
    count = int(found[1].replace(",", ""))
    return {"predict": count / float(found[2].replace(",", "")), "whole": count / seconds}


def run(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 1):  # 1: some pictures could not be used
        raise UserError(f"{' '.join(command)} ended with {done.returncode}.")
    return done.stdout


def bare(pictures: str, folder: Path, batch: int) -> float:
    """Return pictures a second, without any code of the client."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    # Compile it as predict.py does: a stream a core. One thread more reads and decodes while the others compute.
    paths = [found.picture.name for found in find([pictures]).pictures]
    card = Card.read(folder / "assets.extra" / "card.json")
    cores = machine.share()
    threads = cores + 1
    hint = "bf16" if card.precision == "bfloat16" else "f32"
    settings = {"NUM_STREAMS": str(cores), "INFERENCE_PRECISION_HINT": hint}
    variant = folder / "assets.extra" / "openvino-int8" / "model.xml"
    core = openvino.Core()
    model = core.read_model(str(variant if variant.exists() else folder))
    compiled = core.compile_model(model, "CPU", settings | {"PERFORMANCE_HINT": "LATENCY"})
    openvino.Tensor(np.zeros(1, np.uint8))  # see loupe/engines/openvino_engine.py

    # Each thread takes the next batch.
    def loop(number: int) -> None:
        request = compiled.create_infer_request()
        for start in range(number * batch, len(paths), threads * batch):
            pixels = [decoded(path, card) for path in paths[start : start + batch]]
            kept = [each for each in pixels if each is not None]
            if kept:
                request.infer({0: np.stack(kept)})

    began = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(loop, range(threads)))
    return len(paths) / (time.monotonic() - began)


def decoded(path: str, card: Card) -> Any:
    try:
        return decode(Path(path).read_bytes(), card.height, card.width)
    except Exception:
        return None


if __name__ == "__main__":
    run_script(main)
