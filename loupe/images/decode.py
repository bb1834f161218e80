"""Bytes → RGB pixels: the one path, for training and for serving, so that a model sees at work what it learnt from.

    pixels = decode_here(data, height=224, width=224)      # uint8 [224, 224, 3]

Formats are a list of what is allowed, judged by the bytes and never by a name or a label; HEIC is on it where the
package pillow-heif is installed. The size is checked before any pixel is allocated. A JPEG is decoded (jpeg.py) at the
smallest scale that is still 2.5 times the target; then it is made RGB, resized with antialiasing (resize.py),
stretched to the target, and turned upright (EXIF). Only the first frame counts.
"""

from __future__ import annotations

import importlib
import io
import math
import re
import warnings
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from loupe.errors import ImageError, TooManyPixels, UnsupportedImage
from loupe.images import jpeg, limits
from loupe.images.resize import Box, Pixels, resized

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"]  # HEIF joins them with the first HEIC picture that can be read
NAMES = "JPEG, PNG, WebP, GIF, BMP or AVIF"
MAX_PIXELS = 40_000_000
MAX_SIDE = 65_535  # as of a JPEG; Pillow keeps an address for each row, and 40 million rows cost 1.4 GB
MAX_SCANS = 100  # of a progressive JPEG: each costs a pass over all pixels, and few bytes; cameras write about 10
MAX_SCANNED = 1_000_000_000  # pixels times scans
MAX_RUNS = 10_000_000  # pixels of a BMP in runs, which are unpacked in Python
MAX_EXIF = 1 << 20  # bytes, in which an orientation is looked for
DRAFT = 2.5  # times the target: at 2, one sample in a hundred is 5 levels off a whole decode; at 2.5 it is at most 3
BEHIND_ALPHA = (255, 255, 255)
RESIZE, FIT = "bilinear-antialiased", "stretch"  # as the card calls what happens here

HEIC_BRANDS = {
    b"heic",
    b"heix",
    b"heim",
    b"heis",
    b"hevc",
    b"hevx",
    b"hevm",
    b"hevs",
    b"heif",
    b"mif1",
    b"msf1",
}  # brands
_OTHERS = (  # how the kinds of picture begin that are known and not read
    (b"%PDF", b"%!PS", b"\xc5\xd0\xd3\xc6", b"8BPS", b"gimp xcf")  # PDF, PostScript, the workshops' own
    + (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"II\xbc", b"IIRO", b"FUJIFILM")  # TIFF and cameras' raw files
    + (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"\0\0\0\x0cJXL ", b"\xff\x0a")  # JPEG 2000, JPEG XL, each in two forms
    + (b"\0\0\1\0", b"\0\0\2\0", b"icns", b"FLIF", b"BPG\xfb", b"qoif", b"DDS ", b"\x8aMNG", b"\x8bJNG")  # icons first
    + (b"SIMPLE  =", b"#?RADIANCE", b"\x76\x2f\x31\x01", b"\xd7\xcd\xc6\x9a", b"AT&TFORM")  # FITS, HDR, EXR, WMF, DjVu
    + tuple(b"P%d%c" % (kind, space) for kind in range(1, 8) for space in b"\n\r ")  # PNM
)
_SVG = re.compile(  # its own tag after any prolog; possessive, so that it takes one pass whatever the bytes
    rb"(?:\s++|<\?.*?\?>|<!--.*?-->|<!DOCTYPE[^>\[]*+(?:\[.*?\]\s*+)?>)*+<(?:[\w.-]+:)?svg[\s/>]",
    re.DOTALL | re.IGNORECASE,
)
_HEAD = 65_536  # bytes in which an SVG's own tag must begin
_ORIENTATION = 0x0112  # the EXIF tag
_EXIF = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # where Pillow looks for it
_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: np.rot90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)  # the orientations that swap width and height

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the size is judged here, and answered
warnings.filterwarnings("ignore", module=r"PIL\.")  # of what is odd in callers' files: a line for each of 65,535 tags


def decode_here(data: bytes, height: int, width: int) -> Pixels:
    if not data:
        raise ImageError("The picture is empty: 0 bytes; send the whole file.")
    plain = _plain_size(data, height, width)
    if plain:
        with suppress(ValueError):
            return resized(jpeg.decoded(data, *plain, smaller=False), height, width)
    image = _open(data)
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        raise TooManyPixels(
            f"The picture is {image.width}×{image.height}; send one of at most {MAX_PIXELS // 1_000_000} megapixels, "
            f"with no side over {MAX_SIDE:,}."
        )
    pixels = image.width * image.height
    scans = data.count(b"\xff\xda") if _may_have_scans(image, data) else 1
    if scans > MAX_SCANS or scans * pixels > MAX_SCANNED:
        raise ImageError("The picture comes in too many scans; save it as a plain JPEG.")
    if pixels > MAX_RUNS and any(tile.codec_name == "bmp_rle" for tile in getattr(image, "tile", ())):
        raise ImageError("This BMP is too large to be packed; save it as a JPEG.")
    try:
        exact = _draft(image, _least(height, width))
        whole = _loaded(image, data, straight=not plain)
        turn = _orientation(image)  # not before: to find a PNG's EXIF it is loaded, and what fails there is forgiven
        lies = turn in _ON_ITS_SIDE
        small = resized(whole, width if lies else height, height if lies else width, exact, lies)
        return np.ascontiguousarray(_UPRIGHT[turn](small)) if turn in _UPRIGHT else small
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # decoders raise whatever their format made them stumble over
        raise ImageError("The picture is damaged or cut short; send the whole file.") from error


def upright_size_here(data: bytes) -> tuple[int, int]:
    limits.judge(data)
    image = _open(data)
    return (image.width, image.height) if _orientation(image) in _ON_ITS_SIDE else (image.height, image.width)


def _plain_size(data: bytes, height: int, width: int) -> tuple[int, int] | None:
    """Width and height of a plain JPEG that is not decoded smaller. To open it, too, takes Pillow a twentieth of what
    the gateway spends on a request, and tells nothing more."""
    size = limits.judge(data)
    small = size and 0 < size[0] * size[1] <= MAX_PIXELS and min(size) < 2 * _least(height, width)
    return size if small else None


def _open(data: bytes) -> Image.Image:
    heic = data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS
    readable = heic and heic_is_read()
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise TooManyPixels(f"The picture is too large; send at most {MAX_PIXELS // 1_000_000} megapixels.") from error
    except UnidentifiedImageError as error:
        if heic and not readable:
            raise UnsupportedImage(
                f"HEIC is read only where pillow-heif is installed (pip install pillow-heif); send {NAMES}."
            ) from error
        if data.startswith(_OTHERS) or _is_svg(data):
            raise UnsupportedImage(f"This kind of picture is not read here; send {NAMES}.") from error
        raise ImageError(f"These bytes are not a picture that can be read; send {NAMES}.") from error
    except Exception as error:
        raise ImageError("The picture's header is damaged; send the whole file.") from error


def _may_have_scans(image: Image.Image, data: bytes) -> bool:
    """Of a plain JPEG the first scan has all components, and the decoder reads no second: nothing is to be counted."""
    if not isinstance(image, JpegImageFile) or not image.fp:
        return False
    components = len(image.layer)
    if components > 4:
        return True
    length = 6 + 2 * components
    begins = image.fp.tell() - length - 2  # Pillow stopped reading where the header of the first scan ends
    first = data[begins : begins + 5] == bytes((0xFF, 0xDA, 0, length, components))
    return "progressive" in image.info or not first


def heic_is_read() -> bool:
    """Looked for only when a HEIC picture comes: the library is large, and most never see one."""
    if "HEIF" not in FORMATS:
        try:
            heif = importlib.import_module("pillow_heif")
            heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)  # the picture alone
        except ImportError:
            return False
        FORMATS.append("HEIF")
    return True


def _is_svg(data: bytes) -> bool:
    head = data[:_HEAD].removeprefix(b"\xef\xbb\xbf")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        head = head.decode("utf-16", "replace").encode()
    return _SVG.match(head) is not None


def _orientation(image: Image.Image) -> int:
    if image.format == "HEIF":  # its decoder has turned it: there the EXIF tag is but a copy
        return 1
    if any(len(image.info.get(name) or b"") > MAX_EXIF for name in _EXIF):
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block does not damage the picture
        return 1


def _least(height: int, width: int) -> int:
    """What a side of a JPEG keeps that is decoded smaller, whichever way up it will be."""
    return math.ceil(max(height, width) * DRAFT)


def _draft(image: Image.Image, side: int) -> Box | None:
    """Has a JPEG decoded smaller, and tells what of its pixels is picture, if not all: 3,731 rows come as 467, and are
    466.4. Without that fraction everything would be shifted by up to half a pixel of the target."""
    told = image.draft(image.mode, (side, side)) if image.format in ("JPEG", "MPO") else None
    return told[1] if told and told[1][2:] != image.size else None


def _loaded(image: Image.Image, data: bytes, straight: bool) -> Image.Image:
    """As RGB or RGBX. `straight`: by jpeg.py, if it can be."""
    if isinstance(image, JpegImageFile):
        if straight and image.mode == "RGB":
            with suppress(ValueError):  # damaged or rare: what of that is borne is Pillow's to say
                return jpeg.decoded(data, *image.size, smaller=image.decoderconfig[0] > 1)
        image.decodermaxblock = len(data)  # else it is copied twice on its way, 64 KB at a time
    image.load()
    return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a sample: convert() would clip them, not scale them
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode == "RGBX" or (image.mode == "RGB" and "transparency" not in image.info):
        return image
    if image.has_transparency_data:
        over = Image.new("RGBA", image.size, (*BEHIND_ALPHA, 255))
        return Image.alpha_composite(over, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
