"""What decoding a picture takes, as it is weighed before: against the memory that a process of its own then takes."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loupe.images.allowance import Allowance
from loupe.images.api import decode
from loupe.images.decode import decode_here
from loupe.images.weight import Weight, weigh_by_header
from tests.support.hostile_pictures import avif_declaring, png_of, scanned
from tests.support.pictures import encoded, picture
from tests.support.servers import ROOT

SIDE = 3600  # 13 megapixels
COLOURS: dict[str, Any] = {
    "L": 5,
    "1": 1,
    "P": 1,
    "LA": (5, 90),
    "RGB": (1, 2, 3),
    "RGBA": (1, 2, 3, 90),
    "CMYK": 4 * (9,),
}


def flat(mode: str, kind: str, side: int = SIDE, **options: Any) -> bytes:
    return encoded(Image.new(mode, (side, side), COLOURS[mode]), kind, **options)


def blocks(mode: str, kind: str, **options: Any) -> bytes:
    """Colours that hardly two places share."""
    few = np.random.default_rng(1).integers(0, 256, (SIDE // 8, SIDE // 8, len(mode)), np.uint8)
    return encoded(Image.fromarray(few.repeat(8, 0).repeat(8, 1)), kind, **options)


def deep(colour: int, channels: int) -> bytes:
    return png_of(SIDE, SIDE, bytes((SIDE * channels * 2 + 1) * SIDE), 16, colour)


def interlaced(data: bytes) -> bytes:
    """Of a flat PNG of bytes, whose rows are zeros, and come in seven passes instead."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    sizes = ((len(range(top, SIDE, down)), len(range(left, SIDE, right))) for top, left, down, right in passes)
    rows = zlib.compress(b"".join(bytes(1 + width * 8) * height for height, width in sizes), 1)
    name_and_head = b"IHDR" + data[16:28] + b"\1"
    return data[:8] + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (name_and_head, b"IDAT" + rows, b"IEND")
    )


PICTURES: dict[str, Callable[[], bytes]] = {
    **{f"PNG, {mode}": lambda mode=mode: flat(mode, "PNG") for mode in ("L", "1", "P", "LA", "RGB", "RGBA")},  # type: ignore[misc]
    "PNG, a clear colour": lambda: flat("RGB", "PNG", transparency=(1, 2, 3)),
    "PNG, a clear grey": lambda: flat("L", "PNG", transparency=5),
    "PNG, a clear entry of the palette": lambda: flat("P", "PNG", transparency=1),
    "PNG, 16 bits of grey": lambda: deep(0, 1),
    "PNG, 16 bits of RGBA": lambda: deep(6, 4),
    "PNG, 16 bits of RGBA, interlaced": lambda: interlaced(deep(6, 4)),
    "APNG": lambda: flat("RGBA", "PNG", save_all=True, append_images=[Image.new("RGBA", (SIDE, SIDE))]),
    "WebP, lossless": lambda: blocks("RGB", "WEBP", lossless=True, method=0, quality=0),
    "WebP, lossless, alpha": lambda: blocks("RGBA", "WEBP", lossless=True, method=0, quality=0),
    "WebP": lambda: blocks("RGB", "WEBP", method=0),
    "WebP, alpha": lambda: blocks("RGBA", "WEBP", method=0),
    "WebP, one colour": lambda: flat("RGB", "WEBP", lossless=True, method=0, quality=0),
    "GIF": lambda: flat("P", "GIF"),
    "GIF, moving": lambda: flat(
        "P", "GIF", save_all=True, append_images=[Image.new("P", (SIDE, SIDE), 2)], disposal=2, transparency=1
    ),
    "BMP": lambda: encoded(Image.new("RGB", (SIDE, SIDE)), "BMP"),
    "BMP, grey": lambda: flat("L", "BMP"),
    **{
        f"JPEG, progressive, {mode}": lambda mode=mode: flat(mode, "JPEG", side=6000, progressive=True)  # type: ignore[misc]
        for mode in ("L", "RGB", "CMYK")
    },
    "JPEG, progressive, colour of every pixel": lambda: flat("RGB", "JPEG", progressive=True, subsampling="4:4:4"),
    "JPEG, of many scans": lambda: scanned(20),
    "JPEG, a hundred times as high as wide": lambda: encoded(Image.new("RGB", (600, 60_000)), "JPEG"),
}


class Scales(Allowance):
    weight = Weight(0, 0)

    def take(self, weight: Weight) -> None:
        self.weight = weight


def memory_of(data: bytes) -> int:
    """Return the bytes that decoding takes at most."""
    code = """
import re, sys
from loupe import malloc
from loupe.images.decode import decode_here as decode
def kilobytes(name): return int(re.search(name + r":\\s*(\\d+)", open("/proc/self/status").read())[1])
malloc.settle()
data = sys.stdin.buffer.read()
decode(open("data/samples/cracked-1.jpg", "rb").read(), 224, 224)
open("/proc/self/clear_refs", "w").write("5")  # VmHWM counts from here
before = kilobytes("VmRSS")
decode(data, 224, 224)
print((kilobytes("VmHWM") - before) * 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, cwd=ROOT, check=True)
    return int(done.stdout)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_takes_what_it_weighs_and_at_least_half_of_it(name: str) -> None:
    data, scales = PICTURES[name](), Scales()
    decode(data, 224, 224, scales)
    taken = memory_of(data)
    print(f"{name}: {taken / 1e6:.0f} MB, weighed {scales.weight.memory / 1e6:.0f}")
    assert taken < scales.weight.memory + 4_000_000
    assert taken > scales.weight.memory / 2


def test_a_large_jpeg_weighs_what_it_is_decoded_to() -> None:
    scales = Scales()
    decode(encoded(Image.new("RGB", (4000, 3000))), 224, 224, scales)
    assert scales.weight.pixels == 1000 * 750
    assert scales.weight.memory < 8_000_000


def test_an_avif_weighs_what_it_says_of_its_size() -> None:
    small = encoded(Image.new("RGB", (640, 480)), "AVIF")
    assert weigh_by_header(small, 224, 224).pixels == 640 * 480
    assert weigh_by_header(avif_declaring(5000, 4000), 224, 224).memory > 16 * 5000 * 4000
    # Too large, or broken: refused once it is opened, and no reason to wait for room.
    for refused in (avif_declaring(60_000, 60_000), small[: small.index(b"ispe") + 9], b""):
        assert weigh_by_header(refused, 224, 224).memory < 2_000_000


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 5}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("frames", [1, 2])
def test_a_webp_weighs_the_same_by_its_header_as_opened(mode: str, options: dict[str, Any], frames: int) -> None:
    image = Image.new(mode, (643, 481), COLOURS[mode])
    moving = {"save_all": True, "append_images": [picture(643, 481, mode)]} if frames > 1 else {}
    data, scales = encoded(image, "WEBP", **options, **moving), Scales()
    decode_here(data, 224, 224, scales)
    assert weigh_by_header(data, 224, 224) == scales.weight
    assert scales.weight.pixels == 643 * 481


def test_it_is_asked_for_before_anything_is_allocated() -> None:
    class Full(Allowance):
        def take(self, weight: Weight) -> None:
            raise MemoryError

    for data in (flat("RGBA", "PNG", side=40), encoded(), encoded(kind="AVIF"), encoded(progressive=True)):
        with pytest.raises(MemoryError):
            decode(data, 8, 8, Full())
