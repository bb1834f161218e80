from __future__ import annotations

import contextlib
import importlib.util
import io
import resource
import struct
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loupe.errors import ImageError, TooManyPixels, UnsupportedImage
from loupe.images.api import decode
from loupe.images.decode import FORMATS, decode_here
from tests.support.pace import seconds
from tests.support.pictures import encoded, exif, picture, png_that_declares
from tests.support.servers import ROOT

HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None
with_heif = pytest.mark.skipif(not HAS_HEIF, reason="pillow-heif is not installed")
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,  # what undoes the camera's turn
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"])
def test_every_allowed_format_becomes_rgb_of_the_wanted_size(format_name: str) -> None:
    pixels = decode(encoded(kind=format_name), 30, 40)
    assert pixels.shape == (30, 40, 3)
    assert pixels.dtype == np.uint8
    wanted = np.asarray(picture().resize((40, 30), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(pixels - wanted).mean() < 12  # lossy, but the same picture


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_gives_the_same_pixels(orientation: int) -> None:
    upright = picture(64, 48)
    stored = upright.transpose(TURNS[orientation]) if orientation in TURNS else upright
    data = encoded(stored, "PNG", exif=exif(orientation))
    for size in ((32, 40), (48, 30), (20, 64), (100, 90)):
        assert np.array_equal(decode(data, *size), decode(encoded(upright, "PNG"), *size))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_every_mode_shows_the_same_grey(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((20, 20), 200 * 257, np.uint16))
    elif mode == "1":
        image = Image.new("1", (20, 20), 1)
    else:
        grey = Image.new("RGB", (20, 20), (200, 200, 200))
        image = grey.quantize(4) if mode == "P" else grey.convert("L" if mode == "LA" else "RGB").convert(mode)
    format_name = "JPEG" if mode == "CMYK" else "PNG"
    wanted = 255 if mode == "1" else 200
    assert np.abs(decode(encoded(image, format_name), 8, 8).astype(int) - wanted).max() <= 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode: str) -> None:
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    data = encoded(clear, "GIF") if mode == "P" else encoded(clear.convert(mode), "PNG")
    assert (decode(data, 8, 8) == 255).all()


def test_a_large_jpeg_is_decoded_small_and_stays_the_same_picture() -> None:
    large = picture(3000, 2000)
    pixels = decode(encoded(large, quality=95), 100, 150).astype(int)
    whole = np.asarray(large.resize((150, 100), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(pixels - whole).mean() < 2


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (3, 2)])
def test_odd_sizes_are_pictures_too(size: tuple[int, int]) -> None:
    assert decode(encoded(picture(*size)), 16, 16).shape == (16, 16, 3)


@pytest.mark.parametrize("size", [(1, 65_535), (65_535, 1), (600, 65_535), (65_535, 600)])
def test_a_picture_as_long_as_any_may_be_costs_little_more_memory_than_its_pixels(size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", size, (9, 99, 199)), "PNG")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (decode(data, 299, 299) == (9, 99, 199)).all()
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 350_000
    )  # kB: 157 MB of pixels, 78 of the first pass


@pytest.mark.parametrize("size", [(1, 65_535), (65_535, 1)])
@pytest.mark.parametrize("orientation", [1, 8])
def test_one_that_is_long_and_thin_needs_no_room_between_rows_and_columns(
    size: tuple[int, int], orientation: int
) -> None:
    thin = encoded(Image.linear_gradient("L").resize(size).convert("RGB"), "PNG", exif=exif(orientation))
    assert most_memory(thin) < 20_000  # kB


@pytest.mark.parametrize(("mode", "most"), [("RGB", 190_000), ("RGBA", 190_000), ("LA", 350_000), ("P", 240_000)])
def test_transparency_costs_a_large_picture_no_copies(mode: str, most: int) -> None:
    clear = Image.new(mode, (6300, 6300), 1 if mode == "P" else tuple(range(50, 50 + 30 * len(mode), 30)))
    data = encoded(clear, "PNG", **({"transparency": 1} if mode == "P" else {}))
    assert most_memory(data) < most  # kB: 159 for the pixels as RGB or RGBA, twice that where they are made from LA


def most_memory(data: bytes) -> int:
    """Return the kB that decoding takes. In a process of its own: this one may have needed more before."""
    code = (
        "import re, sys; from loupe.images.api import decode\n"
        "def most(): return int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])\n"
        "data = sys.stdin.buffer.read(); before = most(); decode(data, 299, 299); print(most() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, cwd=ROOT, check=True)
    return int(done.stdout)


def test_what_lies_over_white_is_the_same_in_bands_and_at_once() -> None:
    noise = np.random.default_rng(3).integers(0, 256, (1300, 1700, 4), np.uint8)
    image = Image.fromarray(noise)
    at_once = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    assert (decode(encoded(image, "PNG"), 64, 64) == decode(encoded(at_once, "PNG"), 64, 64)).all()


@pytest.mark.parametrize("size", [(50_000, 50_000), (2**31 - 1, 2**31 - 1), (6400, 6400), (65_536, 1), (1, 40_000_000)])
def test_a_small_file_that_declares_a_huge_picture_is_refused_before_anything_is_allocated(
    size: tuple[int, int],
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TooManyPixels):
        decode(png_that_declares(*size), 16, 16)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"])
def test_a_file_cut_short_anywhere_is_broken(format_name: str) -> None:
    data = encoded(kind=format_name)
    for kept in (1, 10, len(data) // 4, len(data) // 2, len(data) * 3 // 4):
        with pytest.raises(ImageError):
            decode(data[:kept], 16, 16)


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"hello", b"\xff\xd8\xff", bytes(range(256)) * 20])
def test_bytes_that_are_no_picture_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        decode(data, 16, 16)


def test_formats_that_are_not_allowed_are_not_even_opened() -> None:
    for data in (encoded(kind="TIFF"), encoded(kind="JPEG2000"), encoded(kind="PDF"), encoded(kind="EPS"), b"8BPS\0\1",
                 b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", b"SIMPLE  ="):  # fmt: skip
        with pytest.raises(UnsupportedImage):
            decode(data, 16, 16)


BEGINNINGS = {
    "ICO": b"\0\0\1\0\1\0\x10\x10",
    "JPEG XL, bare": b"\xff\x0a\xfa\x0f",
    "JPEG XL, boxed": b"\0\0\0\x0cJXL \r\n\x87\n",
    "JPEG 2000, bare": b"\xff\x4f\xff\x51\0\x2f",
    "FLIF": b"FLIF31\0\x63",
    "BPG": b"BPG\xfb\0\0",
    "QOI": b"qoif\0\0\0\x40",
    "DDS": b"DDS |\0\0\0",
    "BigTIFF": b"II+\0\x08\0\0\0",
    "JPEG XR": b"II\xbc\x01",
    "PNM": b"P6\n64 48\n255\n",
    "Radiance": b"#?RADIANCE\n",
    "OpenEXR": b"\x76\x2f\x31\x01\2\0\0\0",
    "GIMP": b"gimp xcf v011",
    "DjVu": b"AT&TFORM\0\0\0\0DJVU",
}


@pytest.mark.parametrize("format_name", BEGINNINGS)
def test_other_known_kinds_of_picture_are_called_unsupported_and_not_broken(format_name: str) -> None:
    with pytest.raises(UnsupportedImage, match="send JPEG"):
        decode(BEGINNINGS[format_name] + b"\0" * 100, 16, 16)


SVG = b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"


@pytest.mark.parametrize(
    "before",
    [
        b" \r\n\t" * 300,
        b"\xef\xbb\xbf",
        b"\xef\xbb\xbf<?xml version='1.0' encoding='UTF-8' standalone='no'?>\n",
        b"<?xml version='1.0'?>\n<!-- " + b"a licence, a history > and so on " * 900 + b"-->\n<!-- more -->",
        b"<!DOCTYPE svg PUBLIC '-//W3C//DTD SVG 1.1//EN' 'http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd'>",
        b"<!DOCTYPE svg [\n<!ENTITY a 'http://ns.adobe.com/'>\n" + b"<!ENTITY b 'c'>" * 90 + b"] >\n",
    ],
)
def test_an_svg_is_known_whatever_stands_before_its_tag(before: bytes) -> None:
    for data in (before + SVG, before + SVG.replace(b"<svg xmlns", b"<svg:svg xmlns:svg")):
        with pytest.raises(UnsupportedImage):
            decode(data, 16, 16)


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-be"])
def test_an_svg_is_known_in_two_bytes_a_letter(coding: str) -> None:
    with pytest.raises(UnsupportedImage):
        decode(("\ufeff" * (coding == "utf-16-be") + "<?xml version='1.0'?> " + SVG.decode()).encode(coding), 16, 16)


@pytest.mark.parametrize(
    "data",
    [
        b"<!doctype html><html><body>" + SVG,
        b"<html><!-- <svg> -->" + SVG,
        b"words, then " + SVG,
        b"<svgs/>",
        b"<!-- <svg>",
    ],
)
def test_a_page_that_only_holds_an_svg_is_none(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data, 16, 16)
    assert not isinstance(caught.value, UnsupportedImage)


@pytest.mark.timing
@pytest.mark.parametrize(
    "piece", [b"<!--", b"<!---->", b"<?", b"<??>", b" ", b"<!DOCTYPE[", b"<!DOCTYPE[]", b"]", b"<"]
)
def test_looking_for_an_svg_takes_one_pass_whatever_the_bytes(piece: bytes) -> None:
    start = time.monotonic()
    for data in (piece * 1_000_000, b"<!-- --" * 9000 + piece * 1_000_000, b"<!DOCTYPE[" + piece * 1_000_000):
        with pytest.raises(ImageError):
            decode(data, 16, 16)
    assert time.monotonic() - start < seconds(1)


HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + b"\0" * 100


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"hevc", b"mif1", b"heif"])
def test_without_its_package_heic_is_unsupported_and_the_answer_says_how_to_have_it(
    brand: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not there, where it is
    monkeypatch.setattr("loupe.images.decode.FORMATS", [name for name in FORMATS if name != "HEIF"])
    with pytest.raises(UnsupportedImage, match="pip install pillow-heif") as caught:
        decode_here(HEIC.replace(b"heic", brand, 1), 16, 16)
    assert caught.value.status == 415


def heic(image: Image.Image, **options: Any) -> bytes:
    importlib.import_module("pillow_heif").register_heif_opener()
    return encoded(image, "HEIF", **options)


@with_heif
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_with_its_package_heic_is_the_same_picture(mode: str) -> None:
    image = picture(640, 427)
    wanted = decode(encoded(image.convert(mode), "PNG"), 30, 40).astype(int)
    assert np.abs(decode(heic(image.convert(mode), quality=90), 30, 40) - wanted).mean() < 3
    assert np.abs(decode(encoded(image.convert(mode), "PNG"), 30, 40) - wanted).max() == 0  # and the rest go on


@with_heif
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_heic_picture_is_turned_upright_once(orientation: int) -> None:
    upright = picture(64, 48)
    stored = upright.transpose(TURNS[orientation]) if orientation in TURNS else upright
    pixels = decode(heic(stored, quality=95, exif=exif(orientation)), 32, 32).astype(int)
    assert np.abs(pixels - decode(encoded(upright, "PNG"), 32, 32)).mean() < 6


@with_heif
@pytest.mark.parametrize("size", [(6400, 6400), (12_000, 12_000), (30_000, 30_000)])
def test_a_heic_that_declares_a_huge_picture_is_refused_before_anything_is_allocated(size: tuple[int, int]) -> None:
    data = bytearray(heic(picture(320, 200)))  # smaller ones are padded and cropped
    position = data.index(b"ispe") + 8
    data[position : position + 8] = struct.pack(">II", *size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TooManyPixels):
        decode(bytes(data), 16, 16)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB


@with_heif
def test_a_heic_that_declares_too_little_is_refused_before_its_pixels_are_allocated() -> None:
    data = heic(Image.new("RGB", (6000, 6000), "red"), quality=10).replace(
        b"ispe\0\0\0\0" + struct.pack(">II", 6000, 6000), b"ispe\0\0\0\0" + struct.pack(">II", 64, 64)
    )
    with pytest.raises(ImageError):
        decode(data, 16, 16)


@with_heif
def test_a_damaged_heic_is_broken_and_nothing_past_the_error_tree() -> None:
    data = heic(picture())
    for kept in (12, 30, len(data) // 4, len(data) // 2, len(data) * 3 // 4):
        with pytest.raises(ImageError) as caught:
            decode(data[:kept], 16, 16)
        assert not isinstance(caught.value, UnsupportedImage)
    random = np.random.default_rng(3)
    for _ in range(150):
        spoilt = bytearray(data)
        spoilt[random.integers(len(data))] = random.integers(256)
        with contextlib.suppress(ImageError):
            assert decode(bytes(spoilt), 8, 8).shape == (8, 8, 3)


def test_a_damaged_exif_block_does_not_damage_the_picture() -> None:
    data = encoded(exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40)
    assert decode(data, 16, 16).shape == (16, 16, 3)


def test_a_progressive_jpeg_of_endless_scans_is_refused_at_once() -> None:
    """Each repeated scan of some bytes costs a pass over every pixel: 10 MB of them would take most of an hour."""
    data = encoded(picture(400, 300), progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    assert decode(data, 16, 16).shape == (16, 16, 3)
    with pytest.raises(ImageError, match="scans"):
        decode(data[:-2] + last * 100 + b"\xff\xd9", 16, 16)


def test_a_plain_jpeg_of_endless_scans_costs_no_more_than_a_whole_one() -> None:
    """Scans of one component each, without data, are passes over every pixel too; after a scan of all none is read."""
    data = encoded(picture(4000, 3000))
    start = data.index(b"\xff\xda")
    luma = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0"
    with pytest.raises(ImageError, match="scans"):
        decode(data[:start] + luma * 101 + b"\xff\xd9", 16, 16)
    started = time.process_time()
    decode(data, 16, 16)
    whole = time.process_time() - started
    repeated = data[:-2] + data[start:-2] * 30 + b"\xff\xd9"
    started = time.process_time()
    with contextlib.suppress(ImageError):
        decode(repeated, 16, 16)
    assert time.process_time() - started < 3 * whole + 0.1


def test_only_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert (decode(file.getvalue(), 4, 4) == np.array([255, 0, 0])).all()


@pytest.mark.parametrize("times", [150, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"])
def test_changing_any_one_byte_never_leads_past_the_error_tree(format_name: str, times: int) -> None:
    random = np.random.default_rng(3)
    data = encoded(kind=format_name)
    for _ in range(times):
        spoilt: Any = bytearray(data)
        spoilt[random.integers(len(data))] = random.integers(256)
        with contextlib.suppress(ImageError):
            assert decode(bytes(spoilt), 8, 8).shape == (8, 8, 3)
