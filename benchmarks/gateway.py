"""Measure what the gateway itself costs, beside the gateway of the usual tutorials, over a model of one multiplication.

    python benchmarks/gateway.py                           # made-up photographs
    python benchmarks/gateway.py --pictures clothing/train # real ones

The large ones of the real pictures are these, enlarged, with grain.

Both gateways run under gunicorn with the same number of workers and threads, the tutorial's in gunicorn's own gthread
(benchmarks/tutorial_gateway.py) over a float32 model; both models under loupe.modelserver. A client of another process
uploads forms over connections that stay open, to one gateway and then the other, round by round; what is printed are
the medians. A ratio is the median of each round's: a machine is not as quick in one minute as in the next, least of all
one that others use, and only what was measured side by side compares. Both are started anew several times: where a
process happens to have its memory makes decoding a JPEG dear or cheap (loupe/images/jpeg.py) for as long as it lives.
The last column is the ratios of the single starts.

A rate is requests by the seconds of processor time that the gateway's worker spent on them, system calls included, so
that client, model server and whatever else the machine does hardly count; "with the model server" adds what that spent:
pixels that are large to send are also large to take. p50 is what a client waits. "of its pixels alone" is a gateway
that does nothing but decode and resize, as either does it, in this process: no service can be faster.
"""

from __future__ import annotations

import http.client
import io
import logging
import multiprocessing
import os
import runpy
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from keras_image_helper import create_preprocessor
from PIL import Image

from loupe.cli import Parser, run_script
from loupe.errors import UserError
from loupe.images.api import decode
from tests.support.gateways import Gateway, gateway, running
from tests.support.servers import PATIENCE, ROOT, free_port, model_server

SIDE = 299  # Xception's, which the tutorials use and train.py starts with
UPLOAD, CAMERA = (400, 533), (3024, 4032)  # width, height
CONCURRENT = (1, 4)
TICKS = os.sysconf("SC_CLK_TCK")  # a second
BOUNDARY = "----WebKitFormBoundary7MA4YWxkTrZu0gW"  # as browsers write it
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
OURS, THEIRS = "loupe", "tutorial"  # the models' names, too


@dataclass(frozen=True)
class PictureSet:
    """Pictures of one size to upload."""

    name: str
    bodies: list[bytes]
    requests: int  # a round
    target: float  # at least so many times the tutorial's rate


@dataclass
class Measurements:
    """Measurements of one gateway since its start, of each round and number of simultaneous requests."""

    rate: dict[int, list[float]] = field(default_factory=lambda: {n: [] for n in CONCURRENT})  # requests a CPU second
    both: dict[int, list[float]] = field(default_factory=lambda: {n: [] for n in CONCURRENT})  # …of the server, too
    p50: dict[int, list[float]] = field(default_factory=lambda: {n: [] for n in CONCURRENT})  # ms
    memory: tuple[float, float] = (0.0, 0.0)  # MB: PSS, RSS


@dataclass(frozen=True)
class Side:
    gateway: Gateway
    server: int  # process id of the model server behind it


def main() -> None:
    # The arguments.
    parser = Parser(__doc__)
    parser.add_argument("--starts", type=int, default=5, help="of both gateways (5)")
    parser.add_argument("--rounds", type=int, default=3, help="of each start; each is both gateways in turn (3)")
    parser.add_argument("--requests", type=int, default=200, help="uploads of a round, a tenth of it large (200)")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="a folder of real JPEGs to upload")
    arguments = parser.read()
    picture_sets = pictures(arguments.pictures, max(8, arguments.requests))
    # Measure both gateways, started anew several times.
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        write_models(Path(scratch))
        bodies = [picture_set.bodies for picture_set in picture_sets]
        spawn = multiprocessing.get_context("spawn")
        client = stack.enter_context(ProcessPoolExecutor(1, spawn, initializer=_remember, initargs=(bodies,)))
        measured: list[list[dict[str, Measurements]]] = [[] for _ in picture_sets]
        for start in range(1, arguments.starts + 1):
            with started(Path(scratch)) as sides:
                for number, picture_set in enumerate(picture_sets):
                    print(f"{picture_set.name}: start {start} of {arguments.starts}", file=sys.stderr, flush=True)
                    measured[number].append(compare(sides, client, number, picture_set, arguments.rounds))
        # Print the medians.
        for picture_set, starts in zip(picture_sets, measured, strict=True):
            show(picture_set, [start[OURS] for start in starts], [start[THEIRS] for start in starts])


@contextmanager
def started(scratch: Path) -> Iterator[dict[str, Side]]:
    with ExitStack() as stack:
        sides = {}
        for name, start in ((OURS, gateway), (THEIRS, tutorial)):
            server = stack.enter_context(model_server(scratch, name))
            here = stack.enter_context(start(f"localhost:{server.port}", name))
            sides[name] = Side(here, server.process.pid)
        yield sides


def compare(
    sides: dict[str, Side], client: Executor, number: int, picture_set: PictureSet, rounds: int
) -> dict[str, Measurements]:
    measured = {name: Measurements() for name in sides}
    for round_number in range(rounds + 1):  # the first is to warm up
        for concurrent in CONCURRENT:
            for name, side in sides.items():
                rate, both, p50 = measure(side, client, number, picture_set.requests, concurrent)
                if round_number:
                    measured[name].rate[concurrent].append(rate)
                    measured[name].both[concurrent].append(both)
                    measured[name].p50[concurrent].append(p50)
    for name, side in sides.items():
        measured[name].memory = memory(side.gateway.workers())
    return measured


def measure(side: Side, client: Executor, number: int, requests: int, concurrent: int) -> tuple[float, float, float]:
    workers = side.gateway.workers()
    workers_before, server_before = processor_seconds(*workers), processor_seconds(side.server)
    try:
        waited = client.submit(load, side.gateway.port, number, requests, concurrent).result()
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"A gateway failed: {error}. Its log ends: {side.gateway.log.read_text()[-500:]}") from error
    spent = processor_seconds(*workers) - workers_before
    server_spent = processor_seconds(side.server) - server_before
    return requests / spent, requests / (spent + server_spent), statistics.median(waited) * 1000


def processor_seconds(*processes: int) -> float:
    fields = [Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split() for process in processes]
    return sum(int(user) + int(system) for *_, user, system in (line[:13] for line in fields)) / TICKS


def memory(processes: list[int]) -> tuple[float, float]:
    """Return PSS and RSS in MB: memory shared with other processes counted in parts, and in full."""
    text = "".join(Path(f"/proc/{process}/smaps_rollup").read_text() for process in processes)
    lines = [line.split() for line in text.splitlines()]
    pss, rss = (sum(int(line[1]) for line in lines if line[0] == name) / 1000 for name in ("Pss:", "Rss:"))
    return pss, rss


def show(picture_set: PictureSet, ours: list[Measurements], theirs: list[Measurements]) -> None:
    """Print the medians of all starts."""
    # A head with the size of the pictures.
    size = statistics.mean(map(len, picture_set.bodies))
    print(
        f"\n{picture_set.name}, {size / 1e6:.1f} MB each"
        if size > 1e6
        else f"\n{picture_set.name}, {size / 1e3:.0f} KB each"
    )
    print(f"{'':35}{OURS:>10}{THEIRS:>10}{'ratio':>8}   {'target':16}of the starts")
    # Rates and waiting times, then decoding alone, then memory.
    pairs = list(zip(ours, theirs, strict=True))
    for n in CONCURRENT:
        wanted = f"≥ {picture_set.target}"
        row(f"requests a second a core, {n} at once", [(a.rate[n], b.rate[n]) for a, b in pairs], wanted)
        row("            with the model server", [(a.both[n], b.both[n]) for a, b in pairs])
        row("                        p50 in ms", [(a.p50[n], b.p50[n]) for a, b in pairs])
    row(
        "           of its pixels alone",
        [(pixels_alone(picture_set, decode_as_loupe), pixels_alone(picture_set, decode_as_tutorial))],
    )
    for number, title in enumerate(("a worker's memory in MB, PSS", "                         RSS")):
        row(title, [([a.memory[number]], [b.memory[number]]) for a, b in pairs], "≤ 0.2")
    sys.stdout.flush()


def pixels_alone(picture_set: PictureSet, decode: Callable[[bytes], object]) -> list[float]:
    pictures = [body[body.index(b"\r\n\r\n") + 4 : body.rindex(b"\r\n--")] for body in picture_set.bodies]
    rates = []
    for _ in range(5):
        started = time.process_time()
        for picture in pictures:
            decode(picture)
        rates.append(len(pictures) / (time.process_time() - started))
    return rates


def decode_as_loupe(picture: bytes) -> object:
    return decode(picture, SIDE, SIDE)


def decode_as_tutorial(picture: bytes) -> object:
    return create_preprocessor("xception", target_size=(SIDE, SIDE)).from_path(io.BytesIO(picture))


def row(name: str, starts: list[tuple[list[float], list[float]]], target: str = "") -> None:
    first, second = (statistics.median(value for start in starts for value in start[side]) for side in (0, 1))
    ratios = [[mine / other for mine, other in zip(a, b, strict=True)] for a, b in starts]
    ratio = statistics.median(value for start in ratios for value in start)
    single = " ".join(f"{statistics.median(start):.2f}" for start in ratios) if starts[1:] else ""
    if target:
        sign, limit = target.split()
        target += "  met" if (ratio >= float(limit) if sign == "≥" else ratio <= float(limit)) else "  MISSED"
    print(f"{name:35}{first:10.1f}{second:10.1f}{ratio:8.2f}   {target:16}{single}".rstrip())


def write_models(folder: Path) -> None:
    """Write each side's model: one pixel of a picture, times a constant."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    from tests.support.models import card

    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    # What both models have in common.
    sign = tf.compat.v1.saved_model.signature_def_utils.predict_signature_def
    size = {"height": SIDE, "width": SIDE, "resize": "bilinear-antialiased", "fit": "stretch"}
    names = {OURS: (tf.uint8, "image", "probabilities"), THEIRS: (tf.float32, "input_8", "dense_7")}
    # The graph of each, saved with its card.
    for side, (dtype, input_name, output_name) in names.items():
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            pixels = tf.compat.v1.placeholder(dtype, [None, SIDE, SIDE, 3], name=input_name)
            scores = tf.multiply(tf.cast(pixels[:, 0, 0, :], tf.float32), 1 / 255, name=output_name)
            request = tf.compat.v1.placeholder(tf.string, [None], name="request")
            card_json = tf.identity(tf.fill(tf.shape(request), tf.constant(card(side, input=size))), name="card")
            signatures = {
                "serving_default": sign({input_name: pixels}, {output_name: scores}),
                "describe": sign({"request": request}, {"card": card_json}),
            }
            (folder / side).mkdir()
            builder = tf.compat.v1.saved_model.Builder(str(folder / side / "1"))
            builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=signatures)
            builder.save()
        (folder / side / "1" / "assets.extra").mkdir()
        (folder / side / "1" / "assets.extra" / "card.json").write_text(card(side, input=size))


@contextmanager
def tutorial(target: str, model: str) -> Iterator[Gateway]:
    ours = runpy.run_path(str(ROOT / "gunicorn.conf.py"))
    port = free_port()
    command = [
        sys.executable, "-m", "gunicorn", f"--bind=127.0.0.1:{port}",
        "--worker-class=gthread", f"--workers={ours['workers']}", f"--threads={ours['threads']}",
        f"--keep-alive={ours['keepalive']}", "--no-control-socket", "tutorial_gateway:app",
    ]  # fmt: skip
    environment = {**os.environ, "TF_SERVING_HOST": target, "MODEL_NAME": model, "TF_CPP_MIN_LOG_LEVEL": "3"}
    with running(command, ROOT / "benchmarks", environment, port) as here:
        yield here


_bodies: list[list[bytes]] = []  # in the client's process


def _remember(bodies: list[list[bytes]]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is its parent's to handle
    _bodies.extend(bodies)


def load(port: int, number: int, requests: int, concurrent: int) -> list[float]:
    """Upload pictures and return the seconds that each took."""

    def upload(numbers: range) -> list[float]:
        seconds = []
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
            for index in numbers:
                started = time.perf_counter()
                connection.request("POST", "/predict", _bodies[number][index % len(_bodies[number])], FORM)
                response = connection.getresponse()
                answer = response.read()
                seconds.append(time.perf_counter() - started)
                if response.status != 200:
                    raise OSError(f"status {response.status}, {answer[:200]!r}")
        return seconds

    with ThreadPoolExecutor(concurrent) as threads:
        return sum(threads.map(upload, [range(n, requests, concurrent) for n in range(concurrent)]), [])


def pictures(folder: Path | None, requests: int) -> list[PictureSet]:
    small = read_jpegs(folder) if folder else [jpeg(draw_photograph(seed), 85) for seed in range(16)]
    sources = [Image.open(io.BytesIO(data)).convert("RGB") for data in small[:4]]
    large = [jpeg(enlarge(source, seed), 90) for seed, source in enumerate(sources)]
    return [
        PictureSet("400×533 JPEGs", [form(data) for data in small], requests, 2.5),
        PictureSet("12-megapixel JPEGs", [form(data) for data in large], max(4, requests // 10), 2.0),
    ]


def read_jpegs(folder: Path) -> list[bytes]:
    jpegs = [path.read_bytes() for path in sorted(folder.rglob("*.jpg")) if Image.open(path).size == UPLOAD][:16]
    if not jpegs:
        raise UserError(f"In {folder} lies no JPEG of {UPLOAD[0]}×{UPLOAD[1]}.")
    return jpegs


def draw_photograph(seed: int) -> Image.Image:
    """Draw a picture like a photograph: the finer the detail, the fainter it is."""
    random = np.random.default_rng(seed)
    total = np.full((*UPLOAD[::-1], 3), 128.0, np.float32)
    for cells in (3, 6, 12, 25, 50, 100, 200):
        for channels, strength in ((1, 90), (3, 30)):
            coarse = random.normal(0, strength / cells**0.75, (cells * 4 // 3, cells, channels)).clip(-127, 127) + 128
            layer = Image.fromarray(np.repeat(coarse, 3 // channels, 2).astype(np.uint8))
            total += np.asarray(layer.resize(UPLOAD, Image.Resampling.BICUBIC), np.float32) - 128
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def enlarge(picture: Image.Image, seed: int) -> Image.Image:
    """Enlarge to 12 megapixels, with so much of a sensor's grain that the JPEG has a camera's 3 to 5 MB."""
    large = np.asarray(picture.resize(CAMERA, Image.Resampling.BICUBIC), np.float32)
    grain = np.random.default_rng(seed).normal(0, 7.0, (*large.shape[:2], 1)).astype(np.float32)
    return Image.fromarray((large + grain).clip(0, 255).astype(np.uint8))


def jpeg(picture: Image.Image, quality: int) -> bytes:
    picture.save(file := io.BytesIO(), "JPEG", quality=quality)
    return file.getvalue()


def form(picture: bytes) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="picture.jpg"\r\n'
    return f"{head}Content-Type: image/jpeg\r\n\r\n".encode() + picture + f"\r\n--{BOUNDARY}--\r\n".encode()


if __name__ == "__main__":
    run_script(main)
