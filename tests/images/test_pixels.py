"""Freeze the pixels that `loupe/images` makes of awkward pictures: a model must be served the pixels it was trained on.

`pixels.json` holds a checksum of the pixels where the format keeps every bit, and a grid of 4 × 4 mean colours where
an encoder of another version may lose others. A change of it changes what every trained model sees; where that is
meant, remake it and say so in CHANGELOG:

    python -m tests.images.test_pixels

The photographs are those of data/clothing where `data/fetch.py` has brought them, or of the folder that PHOTOGRAPHS
names.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loupe.card import Card
from loupe.errors import ImageError
from loupe.gateway.decoding import DecodeMemory
from loupe.gateway.predictions import Batch
from loupe.gateway.request.body import SentPictures
from loupe.gateway.settings import Settings
from loupe.images import limits, resize
from loupe.images.api import decode
from loupe.images.resize import resized
from loupe.training.data.dataset import File, decode_all
from tests.support.pictures import AWKWARD, LOSSLESS, encoded, exif, photograph
from tests.support.servers import ROOT

HEIGHT, WIDTH = 40, 56  # of no picture in the table, and not square: a swap would show
CARD = Card("any", ("one", "other"), HEIGHT, WIDTH)
TABLE = Path(__file__).with_name("pixels.json")
PHOTOGRAPHS = Path(os.environ.get("PHOTOGRAPHS", ROOT / "data" / "clothing"))
TARGETS = (150, 224, 299)
SETTINGS = Settings.from_environment({})


def frozen_form(name: str) -> Any:
    """Return what the table holds of a picture."""
    pixels = decode(AWKWARD[name](), HEIGHT, WIDTH)
    if name in LOSSLESS:
        return hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
    return pixels.reshape(4, HEIGHT // 4, 4, WIDTH // 4, 3).mean((1, 3)).round(1).tolist()


def test_the_table_holds_every_picture() -> None:
    assert json.loads(TABLE.read_text()).keys() == AWKWARD.keys()
    assert len(AWKWARD) >= 40


@pytest.mark.parametrize("name", AWKWARD)
def test_the_pixels_are_those_of_the_frozen_table(name: str) -> None:
    frozen, now = json.loads(TABLE.read_text())[name], frozen_form(name)
    if name in LOSSLESS:
        if not resize.WITH_VECTORS:
            pytest.skip("Pillow resizes here: a sample may be one level off")
        assert now == frozen
    else:
        assert np.abs(np.subtract(now, frozen)).max() <= 1


@pytest.mark.slow
@pytest.mark.skipif(not resize.WITH_VECTORS, reason="only Pillow is here to resize")
def test_where_pillow_resizes_a_sample_is_at_most_one_level_off(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [make() for make in AWKWARD.values()] + list(photographs().values())[:4]
    fast = [decode(data, HEIGHT, WIDTH).astype(int) for data in pictures]
    monkeypatch.setattr(resize, "WITH_VECTORS", False)
    off = [np.abs(decode(data, HEIGHT, WIDTH) - before) for data, before in zip(pictures, fast, strict=True)]
    assert max(difference.max() for difference in off) == 1, "they are not the same code"


PLAIN: dict[str, dict[str, Any]] = {
    "every pixel's own colours": {"subsampling": "4:4:4"},
    "colours of two": {"subsampling": "4:2:2"},
    "colours of four": {"subsampling": "4:2:0"},
    "red, green and blue as they are": {"keep_rgb": True},
    "a profile of 200 KB": {"icc_profile": bytes(range(256)) * 800},
    "a comment, and restarts": {"comment": b"made for a test", "restart_marker_rows": 1},
}


@pytest.mark.parametrize("options", PLAIN.values(), ids=PLAIN)
def test_a_plain_jpeg_has_the_same_pixels_without_pillow(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = encoded(photograph(133, 101), **options)
    turned_by_nothing = plain[:2] + b"\xff\xe1\0\x0e" + exif(1)[:12] + plain[2:]  # what only Pillow reads
    assert limits.check_limits(plain) == (133, 101)
    assert limits.check_limits(turned_by_nothing) is None
    asked = decode(turned_by_nothing, HEIGHT, WIDTH)
    monkeypatch.setattr(Image, "open", None)
    assert (decode(plain, HEIGHT, WIDTH) == asked).all()


def test_a_damaged_plain_jpeg_is_judged_by_pillow() -> None:
    """Test that Pillow decodes it if a decoder can get over the damage."""
    data = encoded(photograph(133, 101))
    pixels = data.index(b"\xff\xda") + 14
    assert decode(data[:pixels] + b"\xff\xd3" + data[pixels:], HEIGHT, WIDTH).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(ImageError):
        decode(data[: pixels + 200], HEIGHT, WIDTH)


BESIDE = {
    "no JFIF": b"\xff\xe0\0\x06JFIF",
    "EXIF": b"\xff\xe1\0\x0cExif\0\0II*\0",
    "XMP": b"\xff\xe1\0\x1fhttp://ns.adobe.com/xap/1.0/\0",
    "half a profile": b"\xff\xe2\0\x10ICC_PROFILE\0\1\1",
    "more frames": b"\xff\xe2\0\x16MPF\0" + bytes(16),
    "Photoshop's": b"\xff\xed\0\x10Photoshop 3.0\0",
    "half of Adobe's": b"\xff\xee\0\x07Adobe",
}


@pytest.mark.parametrize("segment", BESIDE.values(), ids=BESIDE)
def test_what_pillow_reads_in_a_jpeg_is_left_to_it(segment: bytes) -> None:
    data = encoded(photograph(133, 101))
    assert limits.check_limits(data[:2] + segment + data[2:]) is None


def test_training_and_the_gateway_see_identical_pixels(tmp_path: Path) -> None:
    pictures = {name: make() for name, make in AWKWARD.items()}
    files = [File(tmp_path / str(place), "any") for place in range(len(pictures))]
    for file, data in zip(files, pictures.values(), strict=True):
        file.path.write_bytes(data)
    learnt, read, skipped = decode_all(files, HEIGHT, WIDTH, tmp_path)
    batch = Batch(SentPictures(list(pictures.values()), is_batch=True), SETTINGS, DecodeMemory(SETTINGS.decode_memory))
    batch.fetch_urls()
    served = batch.pixels(CARD)
    assert not skipped
    assert [picture.file for picture in read] == files
    assert len(served) == len(learnt) == len(pictures)
    differ = [
        name for name, ours, theirs in zip(pictures, learnt, served, strict=True) if not np.array_equal(ours, theirs)
    ]
    assert not differ


def mosaic(paths: list[Path], across: int) -> Image.Image:
    """A large picture as sharp as a camera's best: photographs beside each other, each at its own scale."""
    images = [Image.open(path).convert("RGB").resize((400, 533)) for path in paths]
    large = Image.new("RGB", (400 * across, 533 * across))
    for place, image in enumerate(images):
        large.paste(image, (place % across * 400, place // across * 533))
    return large


@functools.cache
def photographs() -> dict[str, bytes]:
    """JPEGs that are decoded smaller: 12 megapixels, and sizes that 2 or 4 just divides."""
    # Made pictures and samples.
    samples = sorted((ROOT / "data" / "samples").glob("*.jpg"))
    made = photograph(4000, 3000)
    large = {
        "made, 12 megapixels": made,
        "made, odd": made.crop((0, 0, 3001, 2001)),
        "made, barely 4": made.crop((0, 0, 1500, 2250)),
        "a sample, 12 megapixels": Image.open(samples[0]).resize((3000, 4000), Image.Resampling.LANCZOS),
        "samples, 3 × 3": mosaic((samples * 2)[:9], 3),
    }
    # Photographs, where there are any.
    if paths := sorted(PHOTOGRAPHS.glob("train/*/*.jpg"))[::40][:64]:
        sharp = mosaic(paths, 8)
        for side in (300, 375, 448, 560, 598, 748):  # 2 and 2.5 times the targets
            for factor in (2, 4):
                box = (77, 99, 77 + side * factor, 99 + side * factor * 4 // 3)
                large[f"clothes, {factor} times {side}"] = sharp.crop(box)
        large["clothes, 12 megapixels"] = sharp.crop((1, 2, 2999, 4001))
        large["one of clothes, 12 megapixels"] = Image.open(paths[3]).resize((3000, 4000), Image.Resampling.LANCZOS)
    # Each in two subsamplings.
    options = ({"subsampling": "4:4:4"}, {"subsampling": "4:2:0"})
    return {
        f"{name}, {option['subsampling']}": encoded(image.convert("RGB"), quality=92, **option)
        for name, image in large.items()
        for option in options
    }


def test_a_jpeg_decoded_smaller_is_at_least_twice_the_target_and_hardly_differs_from_a_whole_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Test a difference of at most 1 level on average, and at most 3 for 99 of 100 samples."""
    sizes: list[tuple[int, int]] = []

    def spy(image: Image.Image, *how: Any) -> Any:
        sizes.append(image.size)
        return resized(image, *how)

    # Compare each picture with one that is decoded whole.
    wrong, reduced = [], 0
    for name, data in photographs().items():
        with Image.open(io.BytesIO(data)) as image:
            whole = image.convert("RGB")
        for target in TARGETS:
            wanted = np.asarray(whole.resize((target, target), Image.Resampling.BILINEAR)).astype(int)
            with monkeypatch.context() as patch:
                patch.setattr("loupe.images.decode.resized", spy)
                off = np.abs(decode(data, target, target) - wanted)
            reduced += sizes[-1] != whole.size
            if min(sizes[-1]) < 2 * target or off.mean() > 1 or np.percentile(off, 99) > 3:
                wrong.append(f"{name} at {target}: {sizes[-1]}, {off.mean():.2f}, {np.percentile(off, 99):.0f}")
    assert not wrong
    assert reduced > len(sizes) / 2


@pytest.mark.parametrize(
    "orientation", [pytest.param(n, marks=[pytest.mark.slow] * (n not in (1, 3, 6))) for n in range(1, 9)]
)
def test_a_jpeg_decoded_smaller_lies_where_a_whole_one_does_whichever_way_up(orientation: int) -> None:
    """Test a picture whose last row and column are only part of a pixel; a turn takes them to another edge."""
    image = photograph(1003, 1203)
    data = encoded(image, quality=95, exif=exif(orientation))
    with Image.open(io.BytesIO(data)) as stored:
        whole = decode(encoded(stored.convert("RGB"), "PNG", exif=exif(orientation)), 50, 100)
    off = np.abs(decode(data, 50, 100).astype(int) - whole)
    assert off.mean() < 0.5
    assert np.percentile(off, 99) <= 2


def test_what_cannot_be_read_is_the_same_in_training_and_in_the_gateway(tmp_path: Path) -> None:
    data = [b"", b"hello", encoded(kind="TIFF"), encoded()[:400], encoded(kind="PNG")]
    files = [File(tmp_path / str(place), "any") for place in range(len(data))]
    for file, content in zip(files, data, strict=True):
        file.path.write_bytes(content)
    _, read, skipped = decode_all(files, HEIGHT, WIDTH, tmp_path)
    batch = Batch(SentPictures(list(data), is_batch=True), SETTINGS, DecodeMemory(SETTINGS.decode_memory))
    batch.fetch_urls()
    assert len(batch.pixels(CARD)) == len(read) == 1
    assert [file.path for file in files[:4]] == [picture.path for picture in skipped]
    for content in data[:4]:
        with pytest.raises(ImageError):
            decode(content, HEIGHT, WIDTH)


if __name__ == "__main__":
    rows = (f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(frozen_form(name))}" for name in AWKWARD)
    TABLE.write_text("{\n" + ",\n".join(rows) + "\n}\n")
