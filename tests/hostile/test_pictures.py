"""Pictures that are none, that lie, or that few programs write: sent to a gateway under gunicorn."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import pytest
from PIL import Image

from tests.support.gateways import Answer, Gateway
from tests.support.hostile import answered, defended, in_time, refused, unharmed
from tests.support.hostile_pictures import BESIDE, HONEST, HUGE, NO_PICTURE, OTHER_KINDS, moving
from tests.support.pace import seconds
from tests.support.pictures import AWKWARD, encoded, exif, picture

KINDS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"]


@pytest.fixture(scope="module")
def started(sample_models: Path) -> Iterator[Gateway]:
    with defended(sample_models) as running:
        yield running


@pytest.fixture
def here(started: Gateway) -> Iterator[Gateway]:
    with unharmed(started):
        yield started


def peak(here: Gateway) -> int:
    return sum(
        int(Path(f"/proc/{worker}/status").read_text().split("VmHWM:")[1].split()[0]) for worker in here.workers()
    )


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
    """Hostile inputs 27."""
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
    assert peak(here) - before < 80_000, "kB"


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
            return Answer(response.status, dict(response.getheaders()), response.read())

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


def test_many_of_the_largest_pictures_leave_memory_bounded(started: Gateway) -> None:
    """Hostile inputs 33: 39 megapixels each, sent at once; what is too much is told to come again."""
    large = encoded(Image.new("RGB", (6500, 6000), "gray"), "PNG")

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
