"""Milliseconds a picture: a network as Keras exports it, as Loupe does, and as OpenVINO computes it.

    python benchmarks/export.py        # Xception 299; make bench-export
    python benchmarks/export.py --backbone mobilenetv2 --size 160 --rounds 5

One process, everything loaded at once and asked in turns, so that whatever else the machine does falls on all alike;
the medians are printed, and drawn as bars into --chart. The first line is what `keras.Model.export` writes, float32
with variables, run in a TF1 session as TensorFlow Serving runs it; the factors are against it. The heat map's cost is
measured by itself: the same session asked with and without it by turns, and the median of those pairs' ratios taken.
The weights are random; batch normalisation has seen pictures, without which hardly anything gets through.
"""

from __future__ import annotations

import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from loupe.card import Card
from loupe.cli import Parser, run_script
from loupe.errors import UserError
from loupe.export.graph.savedmodel import freeze, loaded, network_of, save
from loupe.export.graph.simplify import flat, folded, in_precision
from loupe.export.variants import int8
from loupe.quiet import quiet
from loupe.training.network.backbones import BACKBONES, build_trunk, with_head

KERAS, F32, BF16 = "Keras's own export", "float32 frozen", "bfloat16 frozen"
HEAT = " + heat map"
CLASSES = 10
BATCHES = (1, 8)
CALLS = {1: 4, 8: 1}  # in a round
PAIRS = {1: 10, 8: 5}  # in a round, of calls with and without the heat map

Array = np.ndarray[Any, Any]
Ask = Callable[[Array], Any]


def main() -> None:
    # The arguments.
    parser = Parser(__doc__)
    parser.add_argument("--backbone", default="xception", choices=sorted(BACKBONES), metavar="NAME", help="(xception)")
    parser.add_argument("--size", type=int, default=299, metavar="PX", help="of its input (299)")
    parser.add_argument("--rounds", type=int, default=12, metavar="N", help="of everything in turn (12)")
    parser.add_argument(
        "--chart", type=Path, default=Path("runs/bench-export.png"), metavar="PNG", help="(%(default)s)"
    )
    args = parser.read()
    if args.rounds < 1:
        raise UserError("--rounds must be 1 or more.")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # openvino reports to its makers otherwise
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    # Build every contender.
    pictures = smooth(64, args.size)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        with quiet(stdout=True):
            model = seasoned(args.backbone, args.size, pictures)
            asks = contenders(model, args.size, pictures, Path(scratch), stack)
        # Measure and print.
        print(f"{args.backbone} {args.size}; {machine()}")
        print(f"medians of {args.rounds} rounds, ms a picture, and how many times as fast as {KERAS}\n")
        times = {batch: interleaved(asks, pictures[:batch], args.rounds) for batch in BATCHES}
        show(times)
        print()
        for name in (F32, BF16):
            show_heat(name, asks, pictures, args.rounds)
    # Draw the chart.
    draw(times, f"{args.backbone} {args.size}", args.chart)
    print(f"\nchart: {args.chart}")


# ---------------------------------------------------------------------------------------------------- contenders


def smooth(count: int, size: int) -> Array:
    coarse = np.random.default_rng(1).integers(0, 256, (count, 10, 10, 3)).astype(np.float32)
    return np.asarray(tf.cast(tf.image.resize(coarse, (size, size)), tf.uint8))


def seasoned(backbone: str, size: int, pictures: Array) -> keras.Model:
    keras.utils.set_random_seed(1)
    model = with_head(build_trunk(backbone, size, size), classes=CLASSES, head=0, dropout=0)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.3
    for start in range(0, 32, 8):
        model(pictures[start : start + 8].astype(np.float32), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model


def contenders(model: keras.Model, size: int, pictures: Array, scratch: Path, stack: ExitStack) -> dict[str, Ask]:
    model.export(scratch / "keras", verbose=False)
    asks: dict[str, Ask] = {KERAS: own_export(stack.enter_context(loaded(scratch / "keras")))}
    for name, precision in ((F32, "float32"), (BF16, "bfloat16")):
        card = Card("bench", tuple(map(str, range(CLASSES))), size, size, precision=precision)
        lean = in_precision(folded(flat(model)), precision)
        save(freeze(network_of(lean), card), card, scratch / precision)
        ask = stack.enter_context(loaded(scratch / precision))
        asks[name] = partial(frozen, ask, ["probabilities"])
        asks[name + HEAT] = partial(frozen, ask, ["probabilities", "heatmap"])
    if impossible := int8.quantise(scratch / "float32", scratch / "int8", pictures):
        raise UserError(f"{impossible}.")
    asks["OpenVINO float32"] = compiled(scratch / "float32", "f32")
    asks["OpenVINO bfloat16"] = compiled(scratch / "bfloat16", "bf16")
    asks["OpenVINO int8"] = compiled(scratch / "int8" / "model.xml", "f32")
    return asks


def own_export(ask: Any) -> Ask:
    """Return a call of Keras's export. Its input is float32: converted once, before any clock runs."""
    known: dict[int, Array] = {}

    def asked(pixels: Array) -> Any:
        fed = known.setdefault(len(pixels), pixels.astype(np.float32))
        return ask("serving_default", {"image": fed})

    return asked


def frozen(ask: Any, outputs: list[str], pixels: Array) -> Any:
    return ask("serving_default", {"image": pixels}, outputs=outputs)


def compiled(path: Path, precision: str) -> Ask:
    """Return a call of OpenVINO as the model server makes it; it computes every output, wanted or not."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(str(path)), "CPU", settings).create_infer_request()
    return lambda pixels: request.infer({0: pixels})


# ----------------------------------------------------------------------------------------------------------- measuring


def timed(ask: Ask, pixels: Array) -> float:
    started = time.perf_counter()
    ask(pixels)
    return (time.perf_counter() - started) * 1e3 / len(pixels)


def interleaved(asks: dict[str, Ask], pixels: Array, rounds: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in asks}
    names = list(asks)
    for number in range(rounds + 1):
        start = number % len(names)  # nobody always follows the same one
        for name in names[start:] + names[:start]:
            times = [timed(asks[name], pixels) for _ in range(1 + CALLS[len(pixels)])]
            if number:  # the first round warms up, as does the first call of each
                taken[name] += times[1:]
    return {name: statistics.median(times) for name, times in taken.items()}


def heat_cost(plain: Ask, with_heat: Ask, pixels: Array, pairs: int) -> tuple[float, float]:
    """Return the share by which the heat map takes longer, and its error (the 95 % interval of the median)."""
    for ask in (plain, with_heat):
        timed(ask, pixels), timed(ask, pixels)
    ratios = []
    for number in range(pairs):
        order = [(0, plain), (1, with_heat)]
        times = {variant: timed(ask, pixels) for variant, ask in (order if number % 2 else reversed(order))}
        ratios.append(times[1] / times[0])
    ratios.sort()
    offset = min(0.98 * pairs**0.5, (pairs - 1) / 2)  # ranks, by the binomial distribution
    middle = (pairs - 1) / 2
    spread = (ratios[round(middle + offset)] - ratios[round(middle - offset)]) / 2
    return statistics.median(ratios) - 1, spread


# ------------------------------------------------------------------------------------------------------------- showing


def machine() -> str:
    import openvino

    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flags = [flag for flag in ("avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8") if flag in info]
    versions = f"TensorFlow {tf.__version__}, OpenVINO {openvino.__version__.split('-')[0]}"
    return f"{os.cpu_count()} CPUs ({' '.join(flags) or 'none of the instructions for bfloat16 and int8'}), {versions}"


def show(times: dict[int, dict[str, float]]) -> None:
    print(f"{'':<30}" + "".join(f"{f'batch {batch}':>18}" for batch in times))
    for name in next(iter(times.values())):
        cells = "".join(f"{by_name[name]:>10.2f}{by_name[KERAS] / by_name[name]:>6.2f} ×" for by_name in times.values())
        print(f"{name:<30}{cells}")


def show_heat(name: str, asks: dict[str, Ask], pictures: Array, rounds: int) -> None:
    costs = []
    for batch in BATCHES:
        cost, spread = heat_cost(asks[name], asks[name + HEAT], pictures[:batch], max(4, PAIRS[batch] * rounds))
        costs.append(f"{cost:+.1%} ± {spread:.1%} at batch {batch}")
    print(f"the heat map costs, {name}: {', '.join(costs)}")


def draw(times: dict[int, dict[str, float]], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    names = list(next(iter(times.values())))
    for shift, (batch, by_name) in zip((-0.2, 0.2), times.items(), strict=True):
        positions = [number + shift for number in range(len(names))]
        bars = axes.barh(positions, [by_name[name] for name in names], 0.38, label=f"batch {batch}")
        axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("milliseconds a picture, median")
    axes.set_title(title)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    run_script(main)
