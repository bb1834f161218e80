"""Pictures that are none, that lie, or that few programs write: sent to a gateway under gunicorn."""

from __future__ import annotations

import os
import random
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import pytest
from PIL import Image

from tests.support.gateways import Answer, Gateway
from tests.support.hostile import PICTURE, answered, check_problem, defended, in_time, refused, unharmed
from tests.support.hostile_pictures import (
    BESIDE,
    HONEST,
    HUGE,
    NO_PICTURE,
    OTHER_KINDS,
    avif_of_frames,
    deep_png,
    flat_webp,
    moving,
    scanned,
)
from tests.support.pace import seconds
from tests.support.pictures import AWKWARD, encoded, exif, picture
from tests.support.servers import free_port

KINDS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"]


@pytest.fixture(scope="module")
def started(sample_models: Path) -> Iterator[Gateway]:
    with defended(sample_models) as running:
        yield running


@pytest.fixture
def here(started: Gateway) -> Iterator[Gateway]:
    with unharmed(started):
        yield started


@pytest.fixture(scope="module")
def hurried(sample_models: Path) -> Iterator[Gateway]:
    """One whose requests may decode for two seconds, with metrics."""
    with defended(sample_models, LOUPE_DECODE_TIMEOUT="2", LOUPE_METRICS_PORT=str(free_port())) as running:
        yield running


def peak(here: Gateway) -> int:
    return sum(memory(process, "VmHWM") for process in processes(here))


def processes(here: Gateway) -> list[int]:
    """The workers, and those that decode for them."""
    tasks = [task for worker in here.workers() for task in Path(f"/proc/{worker}/task").iterdir()]
    return here.workers() + [int(child) for task in tasks for child in (task / "children").read_text().split()]


def memory(process: int, name: str) -> int:
    return int(Path(f"/proc/{process}/status").read_text().split(f"{name}:")[1].split()[0])  # kB


def forget_peak(here: Gateway) -> None:
    for process in processes(here):
        Path(f"/proc/{process}/clear_refs").write_text("5")


def spent(here: Gateway) -> float:
    """Seconds of processor time of the workers and of the processes that decode for them, those that ended included."""
    stats = [Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split() for process in processes(here)]
    return sum(int(number) for stat in stats for number in stat[11:15]) / os.sysconf("SC_CLK_TCK")


def timed(asked: Callable[[], Answer]) -> tuple[Answer, float]:
    started = time.monotonic()
    return asked(), time.monotonic() - started


@pytest.mark.parametrize("name", NO_PICTURE)
def test_what_is_no_picture_is_called_broken(here: Gateway, name: str) -> None:
    """Hostile inputs 25 and 26."""
    data = NO_PICTURE[name]()
    refused(lambda: here.post("/predict", data, "image/jpeg"), 422, "broken_image")


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_other_kinds_of_picture_are_not_opened(here: Gateway, name: str) -> None:
    """Hostile inputs 32."""
    data = OTHER_KINDS[name]()
    refused(lambda: here.post("/predict", data, "image/png"), 415, "unsupported_image")


@pytest.mark.timing
@pytest.mark.parametrize("name", HUGE)
def test_a_small_file_that_declares_a_huge_picture_costs_nothing(here: Gateway, name: str) -> None:
    """Hostile inputs 27. Some go to a process of their own, which is there before."""
    assert here.post("/predict", encoded(kind="WEBP", lossless=True), "image/webp").status == 200
    data, before = HUGE[name](), peak(here)
    answer = in_time(lambda: here.post("/predict", data, "image/png"), seconds(2))
    print(name, answer.status, answer.json().get("code"))
    refused(lambda: answer, 422, answer.json()["code"])
    assert peak(here) - before < 20_000, "kB"


@pytest.mark.parametrize("name", BESIDE)
def test_what_lies_beside_the_pixels_cannot_hurt(here: Gateway, name: str) -> None:
    """Hostile inputs 31: an answer or a 422, soon, and without unpacking what nobody asked for."""
    data, before = BESIDE[name](), peak(here)
    assert len(data) < 10_000_000
    answer = in_time(lambda: here.post("/predict", data, "image/jpeg"))
    print(name, answer.status)
    if answer.status == 200:
        answered(lambda: answer)
    else:
        refused(lambda: answer, 422, "broken_image")
    assert peak(here) - before < 120_000, (
        "kB: where another process decodes, its start and what it may take beside pixels"
    )


@pytest.mark.parametrize("name", [*AWKWARD, *HONEST])
def test_a_picture_that_is_odd_and_honest_is_answered(here: Gateway, name: str) -> None:
    """Hostile inputs 28 and 30."""
    data = {**AWKWARD, **HONEST}[name]()
    answered(lambda: here.post("/predict", data, "image/x-whatever"))


def test_every_orientation_gets_the_same_prediction(here: Gateway) -> None:
    """Hostile inputs 29."""
    upright = picture(96, 64)
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation → the turn that stores an upright picture so
    answers = []
    for orientation in range(1, 9):
        stored = upright.transpose(Image.Transpose(back[orientation])) if orientation > 1 else upright
        data = encoded(stored, "PNG", exif=exif(orientation))
        answers.append(answered(lambda data=data: here.post("/predict", data))["scores"])  # type: ignore[misc]
    assert all(scores == answers[0] for scores in answers)
    unturned = answered(lambda: here.post("/predict", encoded(upright.transpose(Image.Transpose(2)), "PNG")))
    assert unturned["scores"] != answers[0], "the orientation matters to this model"


def test_alpha_lies_over_a_fixed_colour(here: Gateway) -> None:
    """Hostile inputs 30."""
    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    white = answered(lambda: here.post("/predict", encoded(Image.new("RGB", (40, 40), "white"), "PNG")))["scores"]
    for data in (encoded(clear, "PNG"), encoded(clear, "WEBP", lossless=True), encoded(clear.convert("LA"), "PNG")):
        assert answered(lambda data=data: here.post("/predict", data))["scores"] == white  # type: ignore[misc]


# ------------------------------------------------------------------------------------------- damage, byte by byte


def post_all(here: Gateway, pictures: list[bytes]) -> Counter[tuple[int, str]]:
    """One kept-alive connection. Each answer is checked, and none is slow."""
    connection, counts = HTTPConnection("127.0.0.1", here.port, timeout=60), Counter[tuple[int, str]]()
    for data in pictures:

        def ask(data: bytes = data) -> Answer:
            connection.request("POST", "/predict", data, {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())

        answer = in_time(ask)
        if answer.status == 200:
            answered(lambda answer=answer: answer)  # type: ignore[misc]
        else:
            refused(lambda answer=answer: answer, answer.status)  # type: ignore[misc]
        counts[answer.status, answer.json().get("code", "")] += 1
    connection.close()
    return counts


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_at_any_byte_is_refused_or_whole_enough(here: Gateway, kind: str) -> None:
    """Hostile inputs 26."""
    data = encoded(picture(16, 12), kind)
    counts = post_all(here, [data[:kept] for kept in range(len(data))])
    print(kind, counts)
    assert {status for status, _ in counts} <= {200, 422}
    assert counts[422, "broken_image"] > 0.9 * len(data)


@pytest.mark.parametrize("kind", [*KINDS, "MPO", "APNG"])
def test_a_file_with_flipped_bits_is_answered_or_refused(here: Gateway, kind: str) -> None:
    """Hostile inputs 26, 27 and 31, by chance."""
    source = random.Random(kind)
    data = moving("PNG", 2) if kind == "APNG" else encoded(picture(32, 24), kind)
    spoilt = []
    for _ in range(100):
        bad = bytearray(data)
        for _ in range(source.choice((1, 1, 2, 8))):
            bad[source.randrange(len(bad) if source.random() < 0.5 else min(len(bad), 120))] ^= 1 << source.randrange(8)
        spoilt.append(bytes(bad))
    counts = post_all(here, spoilt)
    print(kind, counts)
    assert {status for status, _ in counts} <= {200, 415, 422}


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_many_of_the_largest_pictures_leave_memory_bounded(started: Gateway, mode: str) -> None:
    """Hostile inputs 33: 39 megapixels each, sent at once; what is too much is told to come again."""
    large = encoded(Image.new(mode, (6500, 6000), (9, 99, 199, 128)[: len(mode)]), "PNG")

    def ask(_: int) -> Answer:
        return started.post("/predict", large, "image/png")

    with unharmed(started), ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(ask, range(60)))
    counts = Counter(answer.status for answer in answers)
    print(counts, peak(started))
    assert counts[200] > 0 and counts[503] > 0 and set(counts) == {200, 503}, counts
    for answer in answers:
        if answer.status == 503:
            assert int(answer.headers["Retry-After"]) >= 1
            assert refused(lambda answer=answer: answer, 503)["code"] == "busy"  # type: ignore[misc]
    assert peak(started) < 2_500_000, "kB"


# ------------------------------------------------------------------------------------------- what decoding may take


@pytest.mark.timing
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_eight_tiny_files_of_forty_megapixels_take_turns_and_nobody_else_waits_for_them(
    here: Gateway, mode: str
) -> None:
    """Hostile inputs 34: who waits longer than LOUPE_MAX_WAIT is told to come again."""
    tiny = flat_webp(mode)
    assert len(tiny) < 100
    forget_peak(here)
    with ThreadPoolExecutor(8) as pool:
        attack = [pool.submit(here.post, "/predict", tiny, "image/webp") for _ in range(8)]
        honest, probes = [], []
        while not all(each.done() for each in attack):
            honest.append(timed(lambda: here.post("/predict", PICTURE, "image/jpeg")))
            probes.append(timed(lambda: here.get("/healthz")))
            time.sleep(0.02)
    counts = Counter(each.result().status for each in attack)
    slowest = [max(wall for _, wall in asked) for asked in (honest, probes)]
    print(mode, counts, f"{peak(here)} kB; slowest picture beside it {slowest[0]:.2f} s, probe {slowest[1]:.2f} s")
    assert peak(here) < 1_200_000, "kB"
    assert counts[200] > 0 and set(counts) <= {200, 503}
    for each in attack:
        if each.result().status == 503:
            refused(each.result, 503, "busy")
    assert {answer.status for answer, _ in honest} <= {200, 503}
    assert slowest[0] < seconds(4) and slowest[1] < seconds(0.5)


@pytest.mark.timing
@pytest.mark.parametrize("make", [flat_webp, deep_png])
def test_a_request_is_decoded_up_to_its_pixels(here: Gateway, make: Callable[[], bytes]) -> None:
    """Hostile inputs 35: five pictures of forty megapixels, and the small one after them; the others are told why."""
    large = make()
    before = spent(here)
    answer = here.post_files("/predict", *[large] * 30, PICTURE)
    took = spent(here) - before
    print(f"{took:.1f} s of processor time")
    assert answer.status == 200
    results = answer.json()["predictions"]
    assert ["label" in result for result in results] == [True] * 5 + [False] * 25 + [True]
    for result in results[5:30]:
        check_problem(result["error"], 422, "too_many_pixels")
    assert took < seconds(15)


@pytest.mark.timing
def test_a_request_is_decoded_up_to_its_time(hurried: Gateway) -> None:
    """Hostile inputs 35: JPEGs of many scans count few pixels, since they are decoded smaller, and take long."""
    slow = scanned(24)
    with unharmed(hurried), ThreadPoolExecutor(1) as pool:
        before = spent(hurried)
        asked = pool.submit(hurried.post_files, "/predict", *[slow] * 32)
        gauges = []
        while not asked.done():
            gauges.append(decode_memory(hurried))
            time.sleep(0.02)
        took = spent(hurried) - before
    results = asked.result().json()["predictions"]
    answers = ["label" in result for result in results]
    print(Counter(answers), f"{took:.1f} s of processor time")
    count = sum(answers)
    assert 1 <= count < 32
    assert answers == [True] * count + [False] * (32 - count)
    for result in results[count:]:
        check_problem(result["error"], 422, "too_slow_to_decode")
    assert took < 2 + seconds(4), "at most one picture begins before the time is over"
    assert max(taken for taken, _ in gauges) > 80_000_000, "bytes: its coefficients"
    assert decode_memory(hurried) == (0, 640_000_000)


def decode_memory(here: Gateway) -> tuple[float, float]:
    """What /metrics says is taken, and the limit."""
    port = Path(f"/proc/{here.process.pid}/environ").read_bytes().split(b"LOUPE_METRICS_PORT=")[1].split(b"\0")[0]
    lines = Gateway(here.process, int(port), here.log).get("/metrics").body.decode().splitlines()
    values = dict(line.split() for line in lines if line.startswith("loupe_decode_memory_"))
    return float(values["loupe_decode_memory_bytes"]), float(values["loupe_decode_memory_limit_bytes"])


@pytest.mark.timing
def test_beside_avifs_that_keep_their_decoder_busy_a_small_one_is_answered_or_refused_in_time(hurried: Gateway) -> None:
    """Hostile inputs 36."""
    slow, small = avif_of_frames(300), encoded(picture(64, 64), "AVIF")
    with unharmed(hurried), ThreadPoolExecutor(3) as pool:
        answered(lambda: hurried.post("/predict", small, "image/avif"))
        attack = [pool.submit(hurried.post_files, "/predict", *[slow] * 6) for _ in range(3)]
        asked = []
        while not all(each.done() for each in attack):
            headers = {"X-Request-Timeout": "1"}
            asked.append(timed(lambda: hurried.post("/predict", small, "image/avif", **headers)))  # noqa: B023
    counts = Counter(answer.status for answer, _ in asked)
    slowest = max(wall for _, wall in asked)
    print(counts, f"slowest {slowest:.2f} s", Counter(each.result().status for each in attack))
    assert counts[200] > 0 and set(counts) <= {200, 503, 504}
    assert slowest < seconds(2)
    for each in attack:
        body = refused(each.result, each.result().status)
        assert body["code"] in ("all_failed", "busy")
        codes = [error["code"] for error in body.get("errors", [])]
        assert codes == sorted(codes), "first those that took too long, then those that were not begun"
        assert not codes or codes[-1] == "too_slow_to_decode"


def test_where_memory_ends_the_answer_is_503_and_the_worker_goes_on(here: Gateway) -> None:
    """Hostile inputs 34: a picture that has its turn, where the system has less memory than the settings say."""
    large = encoded(Image.new("RGB", (6300, 6300)), "PNG")
    answered(lambda: here.post("/predict", large, "image/png"))
    (worker,) = here.workers()
    unlimited = resource.prlimit(worker, resource.RLIMIT_AS)
    resource.prlimit(worker, resource.RLIMIT_AS, (memory(worker, "VmSize") * 1024 + 60_000_000, unlimited[1]))
    try:
        problem = refused(lambda: here.post("/predict", large, "image/png"), 503, "busy")
        assert "memory" in problem["detail"]
        answered(lambda: here.post("/predict", PICTURE))
    finally:
        resource.prlimit(worker, resource.RLIMIT_AS, unlimited)
    answered(lambda: here.post("/predict", large, "image/png"))
