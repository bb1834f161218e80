"""Measure the model server against the bare loop: threads that do nothing but compute, in one process.

    python benchmarks/server.py      # half an hour; make bench-server
    python benchmarks/server.py --only bare,grpc --callers 2 --rounds 8
    python benchmarks/server.py --only processor \\
        --flags=--tensorflow_inter_op_parallelism=1

Callers ask again as soon as they are answered. Four ways to the same model, round by round in turns:

    bare        a thread for each caller, with an infer request of its own and
                pixels in memory; in streams of all cores and of one core each,
                by OpenVINO itself and (--tensorflow) by the tensorflow engine
    grpc        loupe.modelserver, asked over gRPC by another process that sends
                bytes prepared before
    gateway     the gateway in front of it: that process uploads JPEGs over
                connections that stay open

A ratio is the median of each round's, to that bare loop which is the fastest for so many callers: a machine is not as
quick in one minute as in the next, and only what was measured side by side compares. Behind it is the middle half of
the rounds' ratios. p50 and p99 are what callers wait, over all rounds. "p99 / turn" is 1 where nobody waits longer than
all callers' pictures take: each waiting time times its round's rate, by the callers, and of these the 99th percentile.

The other parts:

    processor   MobileNetV2: milliseconds of processor time a picture, and what
                is left without the bare loop's; the engine in streams of one
                core, whose threads never wait for each other in a loop
    wait        MobileNetV2: what a single caller waits
    memory      of the server at eight callers, by either engine
    start       from the start of the process to the answer to the first
                Predict, for Xception and the sample model

The weights are random. The server may answer as many calls at once as there are callers, and so may the gateway.
"""

from __future__ import annotations

import http.client
import multiprocessing
import os
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import grpc
import numpy as np

from benchmarks.gateway import FORM, TICKS, draw_photograph, form, jpeg, memory, processor_seconds
from loupe import proto
from loupe.cli import Parser, run_script
from loupe.errors import UserError
from loupe.images.api import decode
from tests.support.gateways import gateway
from tests.support.servers import PATIENCE, ROOT, free_port, model_server

PARTS = ("bare", "grpc", "gateway", "processor", "wait", "memory", "start")
PRECISIONS = ("float32", "bfloat16", "int8")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
MANY, FEW = ("xception", 299), ("mobilenetv2", 224)  # network and side: much to compute, and little
LEAST_CALLS = 2  # of each caller in a round, even if that takes longer than --seconds
PICTURES = 16
STARTS = 5
INSTRUCTIONS = ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_bf16", "amx_int8"]
INSTRUCTIONS += ["asimd", "bf16", "i8mm", "sve"]  # of ARM

Ask = Callable[[], object]
Caller = Callable[[int], AbstractContextManager[Ask]]  # number of the caller → its connection
Measure = Callable[[int, float], "Slice"]  # callers, seconds


@dataclass(frozen=True)
class Slice:
    """Measurements of a few seconds."""

    waited: list[float]  # seconds, of each picture
    seconds: float
    processor: tuple[float, ...] = ()  # seconds that each process measured spent

    @property
    def rate(self) -> float:
        return len(self.waited) / self.seconds


@dataclass(frozen=True)
class Contender:
    name: str
    measure: Measure
    bare: bool = False


@dataclass
class Rounds:
    """Measurements of one contender with one number of callers, a slice for each round."""

    slices: list[Slice] = field(default_factory=list)

    def rates(self) -> list[float]:
        return [slice_.rate for slice_ in self.slices]

    def rate(self) -> float:
        return statistics.median(self.rates())

    def wait(self, percent: int) -> float:
        """Return a percentile in milliseconds."""
        return float(np.percentile([seconds for slice_ in self.slices for seconds in slice_.waited], percent)) * 1e3

    def turns(self, callers: int) -> float:
        scaled = [seconds * slice_.rate / callers for slice_ in self.slices for seconds in slice_.waited]
        return float(np.percentile(scaled, 99))

    def processor(self, process: int = 0) -> list[float]:
        """Return milliseconds a picture, of each round."""
        return [slice_.processor[process] * 1e3 / len(slice_.waited) for slice_ in self.slices]


Results = dict[int, dict[str, Rounds]]  # callers → contender → measurements


@dataclass(frozen=True)
class Bench:
    """What all parts need: the options, the folder of models, and the process that asks."""

    parts: list[str]
    callers: list[int]
    rounds: int
    seconds: float
    tensorflow: bool
    flags: list[str]
    work: Path
    client: Executor

    @property
    def most(self) -> int:
        return max(8, *self.callers)

    def server_flags(self) -> list[str]:
        return [f"--grpc_max_threads={self.most}", *self.flags]


def main() -> None:
    # The arguments.
    parser = Parser(__doc__)
    parser.add_argument("--only", default=",".join(PARTS), metavar="PARTS", help="(%(default)s)")
    parser.add_argument("--callers", default="1,2,8,32", metavar="N,…", help="at once (%(default)s)")
    parser.add_argument("--precision", default=",".join(PRECISIONS), metavar="P,…", help="of Xception (%(default)s)")
    parser.add_argument("--rounds", type=int, default=6, metavar="N", help="of everything in turn (%(default)s)")
    parser.add_argument("--seconds", type=float, default=2, metavar="S", help="of each in a round (%(default)s)")
    parser.add_argument("--tensorflow", action="store_true", help="the bare loop by the tensorflow engine as well")
    parser.add_argument("--flags", default="", help="of the model server, separated by spaces")
    parser.add_argument("--work", type=Path, metavar="DIR", help="a folder that keeps the models for the next time")
    arguments = parser.read()
    parts, precisions = chosen(arguments.only, PARTS, "only"), chosen(arguments.precision, PRECISIONS, "precision")
    callers = [int(word) for word in arguments.callers.split(",") if word.isdecimal() and int(word)]
    if not callers or arguments.rounds < 1 or not arguments.seconds > 0:
        raise UserError("--callers, --rounds and --seconds must be positive.")
    # The models, and the client.
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        work = (arguments.work or Path(scratch)).resolve()
        pictures = [jpeg(draw_photograph(seed), 85) for seed in range(PICTURES)]
        client = stack.enter_context(process(remember, pictures))
        options = (parts, callers, arguments.rounds, arguments.seconds, arguments.tensorflow, arguments.flags.split())
        bench = Bench(*options, work, client)
        print(machine(), flush=True)
        # The parts.
        if {"bare", "grpc", "gateway"} & set(parts):
            for precision in precisions:
                compare(bench, precision)
        if {"processor", "wait"} & set(parts):
            alone(bench, pictures)
        if "memory" in parts:
            show_memory(bench)
        if "start" in parts:
            show_starts(bench)


def chosen(text: str, known: Sequence[str], flag: str) -> list[str]:
    words = [word for word in text.split(",") if word]
    if unknown := set(words) - set(known):
        raise UserError(f"--{flag} has {', '.join(known)}; not {', '.join(sorted(unknown))}.")
    return words


def machine() -> str:
    info = Path("/proc/cpuinfo")
    words = info.read_text().split() if info.exists() else []
    found = [name for name in INSTRUCTIONS if name in words] or ["unknown instructions"]
    load = f"; load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{CORES} cores, {' '.join(found)}{load}"


# --------------------------------------------------------------------------------------------------------------- parts


def compare(bench: Bench, precision: str) -> None:
    """Measure Xception in one precision, and print it."""
    with ExitStack() as stack:
        contenders = []
        if "bare" in bench.parts:
            contenders += bare_loops(bench, stack, MANY, precision)
        if {"grpc", "gateway"} & set(bench.parts):
            contenders += served(bench, stack, MANY, precision, bench.server_flags())
        results = in_turns(bench, f"xception 299 {precision}", contenders, bench.callers)
    bare = [contender.name for contender in contenders if contender.bare]
    print(f"Xception 299, {precision}: {bench.rounds} rounds\n{'':31}pictures/s   ratio   middle half", end="")
    print(f"{'p50 ms':>11}{'p99 ms':>9}{'p99 / turn':>12}")
    for callers, by_name in results.items():
        best = max(bare, key=lambda name: by_name[name].rate(), default="")
        for name, rounds in by_name.items():
            ratio = spread_of(ratios(rounds, by_name[best])) if best else f"{'':22}"
            waits = f"{rounds.wait(50):11.1f}{rounds.wait(99):9.1f}{rounds.turns(callers):12.2f}"
            print(f"{callers:3} at once  {name:18}{rounds.rate():10.1f}{ratio}{waits}{'  best bare' * (name == best)}")
    sys.stdout.flush()


def alone(bench: Bench, pictures: list[bytes]) -> None:
    """Measure MobileNetV2: processor time without the engine's, and a single caller's waiting time."""
    # Measure in streams of one core, then as the server is by itself.
    network, side = FEW
    for part, callers in (("processor", [1, 8]), ("wait", [1])):
        if part not in bench.parts:
            continue
        streams, flags = 1, bench.server_flags()
        if part == "processor":
            streams, flags = CORES, [f"--tensorflow_inter_op_parallelism={CORES}", *flags]
        with ExitStack() as stack:
            contenders = bare_loops(bench, stack, FEW, "float32", [streams])
            contenders += served(bench, stack, FEW, "float32", flags, ("grpc", "gateway"))
            results = in_turns(bench, f"{network} {side}, {part}", contenders, callers)
        names = list(results[callers[0]])
        # Print.
        if part == "processor":
            print(f"MobileNetV2 224: processor ms a picture, {bench.rounds} rounds\n{'':48}all   engine's   rest")
            for count, by_name in results.items():
                bare, server, behind = (by_name[name] for name in names)
                show_rest(count, "server", server.processor(), bare.processor())
                show_rest(count, "server behind the gateway", behind.processor(), bare.processor())
                show_rest(count, "gateway", behind.processor(1), [0.0] * bench.rounds)
        else:
            bare, server, behind = (results[1][name] for name in names)
            decoding = decoding_seconds(pictures, side)
            print("MobileNetV2 224, one caller: p50 in ms, and beyond the bare loop's in the same round")
            for name, rounds in (("bare", bare), ("server", server), ("gateway", behind)):
                beyond = [
                    (statistics.median(mine.waited) - statistics.median(other.waited)) * 1e3
                    for mine, other in zip(rounds.slices, bare.slices, strict=True)
                ]
                print(f"  {name:12}{rounds.wait(50):8.2f}{spread_of(beyond)}")
            print(f"  {'decoding':12}{statistics.median(decoding) * 1e3:8.2f}   alone, of the same JPEGs", flush=True)


def show_rest(callers: int, name: str, spent: list[float], engine: list[float]) -> None:
    rest = [mine - other for mine, other in zip(spent, engine, strict=True)]
    medians = f"{statistics.median(spent):10.2f}{statistics.median(engine):10.2f}"
    print(f"{callers:3} at once  {name:28}{medians}{spread_of(rest)}", flush=True)


def show_memory(bench: Bench) -> None:
    print("\nMemory of the server with Xception 299, float32, at 8 callers: MB, PSS and RSS, the most in 5 s")
    for engine in ("openvino", "tensorflow"):
        folder = models(bench, MANY, "float32")
        with model_server(folder, "float32", *bench.server_flags(), engine=engine) as server:
            loading = bench.client.submit(ask_server, server.port, "float32", MANY[1], 8, 5.0)
            pss, rss = (max(values) for values in zip(*memory_while(loading, server.process.pid), strict=True))
        print(f"  {engine:12}{pss:8.0f}{rss:8.0f}", flush=True)


def memory_while(loading: Future[Slice], pid: int) -> list[tuple[float, float]]:
    seen: list[tuple[float, float]] = []
    while not loading.done() or not seen:
        seen.append(memory([pid]))
        time.sleep(0.2)
    loading.result()
    return seen


def show_starts(bench: Bench) -> None:
    print(f"\nSeconds from the start of the process to the first answer, {STARTS} starts: median, least and most")
    folder = models(bench, MANY, "float32")
    seconds: dict[str, list[float]] = {"Xception 299": [], "models/tires": []}
    for _ in range(STARTS):
        seconds["Xception 299"].append(first_answer(folder, "float32", MANY[1]))
        seconds["models/tires"].append(first_answer(ROOT / "models", "tires"))
    for name, taken in seconds.items():
        print(f"  {name:14}{statistics.median(taken):6.2f}{min(taken):8.2f}{max(taken):6.2f}", flush=True)


def first_answer(folder: Path, name: str, side: int | None = None) -> float:
    if side is None:
        from loupe.card import Card

        newest = max((folder / name).iterdir(), key=lambda version: int(version.name) if version.name.isdigit() else 0)
        side = Card.from_json((newest / "assets.extra" / "card.json").read_text()).height
    request, port = request_bytes(name, np.zeros((1, side, side, 3), np.uint8)), free_port()
    began = time.perf_counter()
    with model_server(folder, name, f"--port={port}", ready=False) as server:
        while True:
            assert server.process.poll() is None, server.stderr()
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=PATIENCE):
                break
            time.sleep(0.002)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            predict_on(channel)(request, timeout=PATIENCE)
        return time.perf_counter() - began


def decoding_seconds(pictures: list[bytes], side: int) -> list[float]:
    taken = []
    for _ in range(10):
        for picture in pictures:
            began = time.perf_counter()
            decode(picture, side, side)
            taken.append(time.perf_counter() - began)
    return taken


# ----------------------------------------------------------------------------------------------------------- measuring


def in_turns(bench: Bench, title: str, contenders: list[Contender], numbers: list[int]) -> Results:
    results: Results = {callers: {contender.name: Rounds() for contender in contenders} for callers in numbers}
    foreign: list[float] = []  # cores that other processes had meanwhile
    for number in range(bench.rounds + 1):  # the first is to warm up
        print(f"{title}: round {number} of {bench.rounds}", file=sys.stderr, flush=True)
        start = number % len(contenders)  # nobody always follows the same one
        for callers in numbers:
            for contender in contenders[start:] + contenders[:start]:
                before, began = foreign_seconds(), time.monotonic()
                measured = contender.measure(callers, bench.seconds if number else min(0.3, bench.seconds))
                if number:
                    results[callers][contender.name].slices.append(measured)
                    foreign.append((foreign_seconds() - before) / (time.monotonic() - began))
    middle, most = np.percentile(foreign, [50, 90])
    print(f"\nOther processes took {middle:.2f} of {CORES} cores in the middle, {most:.2f} in a tenth of the time")
    return results


def foreign_seconds() -> float:
    """Return the processor seconds that others have had: the machine's without this process's and its children's."""
    if not Path("/proc/stat").exists():
        return 0.0
    # Everybody's.
    user, nice, system, _, _, interrupts, soft, stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    seconds = (user + nice + system + interrupts + soft + stolen) / TICKS
    # Ours.
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    waiting = [os.getpid()]
    while waiting:
        with suppress(OSError):
            seconds -= processor_seconds(waiting[-1])
        waiting += children.get(waiting.pop(), [])
    return seconds


def drive(caller: Caller, callers: int, seconds: float) -> Slice:
    """Let so many callers ask, each again as soon as it is answered."""
    barrier = threading.Barrier(callers)

    def call(number: int) -> tuple[float, float, list[float]]:
        waited: list[float] = []
        with caller(number) as ask:
            barrier.wait(PATIENCE)
            began = time.perf_counter()
            while time.perf_counter() < began + seconds or len(waited) < LEAST_CALLS:
                sent = time.perf_counter()
                ask()
                waited.append(time.perf_counter() - sent)
        return began, time.perf_counter(), waited

    with ThreadPoolExecutor(callers) as threads:
        ended = list(threads.map(call, range(callers)))
    began, end = min(times[0] for times in ended), max(times[1] for times in ended)
    return Slice([seconds for _, _, waited in ended for seconds in waited], end - began)


def ratios(rounds: Rounds, base: Rounds) -> list[float]:
    return [mine / other for mine, other in zip(rounds.rates(), base.rates(), strict=True)]


def spread_of(values: list[float]) -> str:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:9.3f}{low:8.3f}{high:7.3f}"


# ---------------------------------------------------------------------------------------------------------- contenders


@contextmanager
def process(prepare: Callable[..., None], *arguments: Any) -> Iterator[Executor]:
    """Start a process that runs functions for this one, one at a time."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=prepare, initargs=arguments) as executor:
        yield executor


def leave_interrupts() -> None:
    """Leave Ctrl-C to the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def bare_loops(
    bench: Bench, stack: ExitStack, model: tuple[str, int], precision: str, streams: Sequence[int] = (1, CORES)
) -> list[Contender]:
    folder = models(bench, model, precision) / precision / "1"
    engines = ["openvino", *["tensorflow"] * (bench.tensorflow and precision == "float32" and model == MANY)]
    contenders = []
    for engine in engines:
        for count in sorted(set(streams)):
            loop = stack.enter_context(process(load_engine, engine, folder, precision, model[1], count))
            name = f"{'bare' if engine == 'openvino' else engine} {count}×{max(1, CORES // count)}"
            contenders.append(Contender(name, in_process(loop), bare=True))
    return contenders


def in_process(loop: Executor) -> Measure:
    return lambda callers, seconds: loop.submit(compute, callers, seconds).result()


def served(
    bench: Bench,
    stack: ExitStack,
    model: tuple[str, int],
    precision: str,
    flags: Sequence[str],
    parts: Sequence[str] = (),
) -> list[Contender]:
    """Start the server, and the gateway if it is asked for. The processes measured are the server, then the gateway."""
    parts = parts or bench.parts
    server = stack.enter_context(model_server(models(bench, model, precision), precision, *flags))
    contenders = []
    if "grpc" in parts:
        told = (server.port, precision, model[1])
        contenders.append(Contender("grpc", asked(bench.client, ask_server, told, lambda: [[server.process.pid]])))
    if "gateway" in parts:
        here = stack.enter_context(
            gateway(f"localhost:{server.port}", precision, LOUPE_THREADS=str(bench.most), LOUPE_MAX_WAIT="60")
        )
        pids = lambda: [[server.process.pid], here.workers()]  # noqa: E731
        contenders.append(Contender("gateway", asked(bench.client, ask_gateway, (here.port,), pids)))
    return contenders


def asked(
    client: Executor, ask: Callable[..., Slice], arguments: tuple[Any, ...], pids: Callable[[], list[list[int]]]
) -> Measure:
    def measure(callers: int, seconds: float) -> Slice:
        processes = pids()
        before = [processor_seconds(*group) for group in processes]
        try:
            measured = client.submit(ask, *arguments, callers, seconds).result()
        except (OSError, http.client.HTTPException, grpc.RpcError) as error:
            raise UserError(f"{ask.__name__} failed: {error}") from error
        spent = [processor_seconds(*group) - start for group, start in zip(processes, before, strict=True)]
        return Slice(measured.waited, measured.seconds, tuple(spent))

    return measure


# What runs in the process of a bare loop.

_callers: list[Caller] = []


def load_engine(engine: str, folder: Path, precision: str, side: int, streams: int) -> None:
    leave_interrupts()
    threads = max(1, CORES // streams) * streams
    pixels = photographs(side)
    if engine == "tensorflow":
        from loupe.engines import savedmodel, tensorflow_engine
        from loupe.engines.engine import Options

        session = tensorflow_engine.open_model(savedmodel.read(folder), Options(threads // streams, streams))
        inputs = [{"image": picture} for picture in pixels]
        _callers.append(
            lambda number: nullcontext(
                turning(lambda fed: session.run("serving_default", fed, ["probabilities"]), inputs)
            )
        )
        return
    # OpenVINO, without any of the server's code.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    settings = {"NUM_STREAMS": str(streams), "INFERENCE_NUM_THREADS": str(threads), "PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_PRECISION_HINT"] = "bf16" if precision == "bfloat16" else "f32"
    core = openvino.Core()
    variant = folder / "assets.extra" / "openvino-int8" / "model.xml"
    model = core.read_model(str(variant if precision == "int8" else folder))
    compiled = core.compile_model(model, "CPU", settings)
    requests: list[Any] = []

    def caller(number: int) -> AbstractContextManager[Ask]:
        while len(requests) <= number:
            requests.append(compiled.create_infer_request())
        return nullcontext(turning(lambda picture: requests[number].infer({0: picture}), pixels))

    _callers.append(caller)


def turning(function: Callable[[Any], object], arguments: Sequence[Any]) -> Ask:
    """Return a call of the function with one argument after the other."""
    calls = iter(range(sys.maxsize))
    return lambda: function(arguments[next(calls) % len(arguments)])


def compute(callers: int, seconds: float) -> Slice:
    before = time.process_time()
    measured = drive(_callers[0], callers, seconds)
    return Slice(measured.waited, measured.seconds, (time.process_time() - before,))


def photographs(side: int) -> list[np.ndarray[Any, Any]]:
    return [decode(jpeg(draw_photograph(seed), 85), side, side)[None] for seed in range(4)]


# What runs in the process of the clients.

_bodies: list[bytes] = []
_channels: dict[int, Any] = {}
_requests: dict[tuple[str, int], list[bytes]] = {}


def remember(pictures: list[bytes]) -> None:
    leave_interrupts()
    _bodies.extend(form(picture) for picture in pictures)


def ask_server(port: int, name: str, side: int, callers: int, seconds: float) -> Slice:
    if port not in _channels:
        _channels[port] = predict_on(grpc.insecure_channel(f"127.0.0.1:{port}"))
    if (name, side) not in _requests:
        _requests[name, side] = [request_bytes(name, pixels) for pixels in photographs(side)]
    predict, requests = _channels[port], _requests[name, side]
    return drive(
        lambda number: nullcontext(turning(lambda request: predict(request, timeout=PATIENCE), requests)),
        callers,
        seconds,
    )


def predict_on(channel: grpc.Channel) -> Callable[..., bytes]:
    """Return the call of Predict that sends and receives bytes."""
    call: Callable[..., bytes] = channel.unary_unary(proto.PREDICT.path)
    return call


def request_bytes(name: str, pixels: np.ndarray[Any, Any]) -> bytes:
    request: bytes = proto.predict_request(name, {"image": pixels}, outputs=["probabilities"]).SerializeToString()
    return request


def ask_gateway(port: int, callers: int, seconds: float) -> Slice:
    @contextmanager
    def caller(number: int) -> Iterator[Ask]:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
            connection.connect()

            def upload(body: bytes) -> None:
                connection.request("POST", "/predict", body, FORM)
                response = connection.getresponse()
                answer = response.read()
                if response.status != 200:
                    raise OSError(f"status {response.status}, {answer[:200]!r}")

            yield turning(upload, _bodies)

    return drive(caller, callers, seconds)


# -------------------------------------------------------------------------------------------------------------- models


def models(bench: Bench, model: tuple[str, int], precision: str) -> Path:
    """Return the folder of a network's models, named by their precision. They are made if they are not there."""
    network, side = model
    folder = bench.work / f"{network}-{side}"
    if not (folder / precision).exists():
        print(f"making {network} {side}, {precision}", file=sys.stderr, flush=True)
        with process(leave_interrupts) as maker:
            maker.submit(make, network, side, precision, folder).result()
    return folder


def make(network: str, side: int, precision: str, folder: Path) -> None:
    """Write the model as train.py would, with random weights."""
    from benchmarks.export import CLASSES, seasoned, smooth
    from loupe.card import Card
    from loupe.export.graph.savedmodel import freeze, network_of, save
    from loupe.export.graph.simplify import flat, folded, in_precision
    from loupe.export.variants import int8
    from loupe.quiet import quiet

    # The SavedModel.
    staging = folder / f".part-{os.getpid()}"
    pixels = smooth(32, side)
    with quiet(stdout=True):
        computed = "float32" if precision == "int8" else precision
        card = Card("bench", tuple(map(str, range(CLASSES))), side, side, precision=computed)
        lean = in_precision(folded(flat(seasoned(network, side, pixels))), computed)
        staging.mkdir(parents=True)
        save(freeze(network_of(lean), card), card, staging / "1")
        # The int8 variant.
        if precision == "int8":
            if problem := int8.quantise(staging / "1", staging / "1" / int8.FOLDER, pixels):
                raise UserError(f"{problem}.")
            int8.bind(staging / "1")
    shutil.rmtree(folder / precision, ignore_errors=True)
    staging.rename(folder / precision)


if __name__ == "__main__":
    run_script(main)
