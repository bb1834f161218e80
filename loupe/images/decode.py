"""Decode a picture's bytes to RGB pixels in this process.

    pixels = decode_here(data, height=224, width=224)      # uint8 [224, 224, 3]

Only the formats in FORMATS are read. The bytes tell the format, never a file name or a content type. HEIC needs the
package pillow-heif. Before any pixel is allocated the size is checked, and the caller's allowance asked (allowance.py).
A JPEG is decoded (jpeg.py) at the smallest scale that is still 2.5 times the target. The picture is then made RGB,
resized with antialiasing (resize.py), stretched to the target, and turned upright (EXIF). Only the first frame counts.
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

from loupe.errors import ImageError, LoupeError, TooManyPixels, UnsupportedImage
from loupe.images import jpeg, limits
from loupe.images.allowance import UNLIMITED, Allowance
from loupe.images.limits import MAX_PIXELS, MAX_SIDE
from loupe.images.resize import Box, Pixels, resized
from loupe.images.weight import weigh, weigh_plain_jpeg

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"]  # HEIF joins them with the first HEIC picture that can be read
NAMES = "JPEG, PNG, WebP, GIF, BMP or AVIF"
MAX_SCANS = 100  # of a progressive JPEG: each costs a pass over all pixels and only few bytes; cameras write about 10
MAX_SCANNED_PIXELS = 1_000_000_000  # pixels times scans
MAX_RLE_PIXELS = 1_000_000  # of a run-length encoded BMP, which Pillow unpacks in Python, byte by byte
MAX_EXIF = 1 << 20  # bytes; the orientation is not looked for in more
DRAFT = 2.5  # times the target: at 2, 1 % of samples are 5 levels off a full decode; at 2.5 they are at most 3 off
BEHIND_ALPHA = (255, 255, 255)
BAND_PIXELS = 250_000  # that are put before it at a time
RESIZE, FIT = "bilinear-antialiased", "stretch"  # how the card names what this module does

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
}
_SUFFIXES = {b"\x89PNG": "png", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp"}  # JPEGs have none of these
_UNSUPPORTED = (  # first bytes of known formats that are not read here
    (b"%PDF", b"%!PS", b"\xc5\xd0\xd3\xc6", b"8BPS", b"gimp xcf")  # PDF, PostScript, Photoshop, GIMP
    + (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"II\xbc", b"IIRO", b"FUJIFILM")  # TIFF and cameras' raw files
    + (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"\0\0\0\x0cJXL ", b"\xff\x0a")  # JPEG 2000, JPEG XL, each in two forms
    + (b"\0\0\1\0", b"\0\0\2\0", b"icns", b"FLIF", b"BPG\xfb", b"qoif", b"DDS ", b"\x8aMNG", b"\x8bJNG")  # icons first
    + (b"SIMPLE  =", b"#?RADIANCE", b"\x76\x2f\x31\x01", b"\xd7\xcd\xc6\x9a", b"AT&TFORM")  # FITS, HDR, EXR, WMF, DjVu
    + tuple(b"P%d%c" % (digit, space) for digit in range(1, 8) for space in b"\n\r ")  # PNM
)
_SVG = re.compile(  # the svg tag after any prolog; possessive quantifiers, so that any bytes take one pass
    rb"(?:\s++|<\?.*?\?>|<!--.*?-->|<!DOCTYPE[^>\[]*+(?:\[.*?\]\s*+)?>)*+<(?:[\w.-]+:)?svg[\s/>]",
    re.DOTALL | re.IGNORECASE,
)
_SVG_HEAD = 65_536  # bytes; the svg tag must begin within them
_ORIENTATION = 0x0112  # the EXIF tag
_EXIF_KEYS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # keys of Image.info with an orientation
_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: np.rot90,
}
_QUARTER_TURNS = (5, 6, 7, 8)  # the orientations that swap width and height

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # decode_here checks the size itself
warnings.filterwarnings("ignore", module=r"PIL\.")  # about odd metadata: up to 65,535 warnings for one file


def decode_here(data: bytes, height: int, width: int, allowance: Allowance = UNLIMITED) -> Pixels:
    if not data:
        raise ImageError("The picture is empty: 0 bytes; send the whole file.")
    # A plain JPEG that is not scaled down takes the fast path, without Pillow.
    jpeg_size = _plain_size(data, height, width)
    if jpeg_size:
        allowance.take(weigh_plain_jpeg(*jpeg_size, height, width))
        with suppress(ValueError):
            return resized(jpeg.decoded(data, *jpeg_size, smaller=False), height, width)
    # Decode any other, resize and turn upright.
    image = _open(data)
    pixels_of_scans = _check_size(image, data)
    try:
        exact = _draft(image, _draft_side(height, width))
        allowance.take(weigh(image, pixels_of_scans, height, width))
        rgb = _load_rgb(image, data, try_fast=not jpeg_size)
        orientation = _orientation(image)  # after loading: looking for a PNG's EXIF loads it, and hides errors
        rotated = orientation in _QUARTER_TURNS
        small = resized(rgb, width if rotated else height, height if rotated else width, exact, rotated)
        return np.ascontiguousarray(_UPRIGHT[orientation](small)) if orientation in _UPRIGHT else small
    except (LoupeError, MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # decoders raise errors of every type
        raise ImageError("The picture is damaged or cut short; send the whole file.") from error


def upright_size_here(data: bytes, allowance: Allowance = UNLIMITED) -> tuple[int, int]:
    limits.check_limits(data)
    image = _open(data)
    pixels_of_scans = _check_size(image, data)
    if image.format == "PNG":  # looking for its EXIF loads it
        allowance.take(weigh(image, pixels_of_scans, 1, 1))
    return (image.width, image.height) if _orientation(image) in _QUARTER_TURNS else (image.height, image.width)


def _check_size(image: Image.Image, data: bytes) -> int:
    """Refuse sizes and encodings that would take too long or too much memory. Return the pixels of a JPEG of several
    scans, which are all kept until the last of them, or 0."""
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        raise TooManyPixels(
            f"The picture is {image.width}×{image.height}; send one of at most {MAX_PIXELS // 1_000_000} megapixels, "
            f"with no side over {MAX_SIDE:,}."
        )
    pixel_count = image.width * image.height
    has_scans = _may_have_scans(image, data)
    scans = data.count(b"\xff\xda") if has_scans else 1
    if scans > MAX_SCANS or scans * pixel_count > MAX_SCANNED_PIXELS:
        raise ImageError("The picture comes in too many scans; save it as a plain JPEG.")
    if pixel_count > MAX_RLE_PIXELS and any(tile.codec_name == "bmp_rle" for tile in getattr(image, "tile", ())):
        raise ImageError("This BMP is too large to be packed; save it as a JPEG.")
    return pixel_count if has_scans else 0


def suffix_of(data: bytes) -> str:
    """Return the suffix for a file of these bytes, which can be decoded: "jpg", "png", …"""
    if data[4:8] == b"ftyp":
        return "heic" if data[8:12] in HEIC_BRANDS else "avif"
    return next((suffix for first_bytes, suffix in _SUFFIXES.items() if data.startswith(first_bytes)), "jpg")


def _plain_size(data: bytes, height: int, width: int) -> tuple[int, int] | None:
    """Return width and height of a plain JPEG that is not decoded smaller, else None. Opening it with Pillow would take
    a twentieth of what the gateway spends on a request, and tell nothing more."""
    size = limits.check_limits(data)
    fits = size and 0 < size[0] * size[1] <= MAX_PIXELS and min(size) < 2 * _draft_side(height, width)
    return size if fits else None


def _open(data: bytes) -> Image.Image:
    heic = data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS
    readable = heic and can_read_heic()
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise TooManyPixels(f"The picture is too large; send at most {MAX_PIXELS // 1_000_000} megapixels.") from error
    except UnidentifiedImageError as error:
        if heic and not readable:
            raise UnsupportedImage(
                f"HEIC is read only where pillow-heif is installed (pip install pillow-heif); send {NAMES}."
            ) from error
        if data.startswith(_UNSUPPORTED) or _is_svg(data):
            raise UnsupportedImage(f"This kind of picture is not read here; send {NAMES}.") from error
        raise ImageError(f"These bytes are not a picture that can be read; send {NAMES}.") from error
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError("The picture's header is damaged; send the whole file.") from error


def _may_have_scans(image: Image.Image, data: bytes) -> bool:
    """Return True if the decoder may read more than one scan. In a plain JPEG the first scan has all components, and
    the decoder reads no second one."""
    if not isinstance(image, JpegImageFile) or not image.fp:
        return False
    components = len(image.layer)
    if components > 4:
        return True
    length = 6 + 2 * components
    start = image.fp.tell() - length - 2  # Pillow stops reading at the end of the first scan's header
    is_complete = data[start : start + 5] == bytes((0xFF, 0xDA, 0, length, components))
    return "progressive" in image.info or not is_complete


def can_read_heic() -> bool:
    """Return True if pillow-heif is installed. It is imported with the first HEIC picture: it is large, and most users
    never need it."""
    if "HEIF" not in FORMATS:
        try:
            heif = importlib.import_module("pillow_heif")
            heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)  # the picture alone
        except ImportError:
            return False
        FORMATS.append("HEIF")
    return True


def _is_svg(data: bytes) -> bool:
    head = data[:_SVG_HEAD].removeprefix(b"\xef\xbb\xbf")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        head = head.decode("utf-16", "replace").encode()
    return _SVG.match(head) is not None


def _orientation(image: Image.Image) -> int:
    if image.format == "HEIF":  # its decoder has turned it already; the EXIF tag is a mere copy
        return 1
    if any(len(image.info.get(name) or b"") > MAX_EXIF for name in _EXIF_KEYS):
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:  # a damaged EXIF block does not damage the picture
        return 1


def _draft_side(height: int, width: int) -> int:
    """Return the least side to which a JPEG may be scaled down while decoding, whichever way up it is."""
    return math.ceil(max(height, width) * DRAFT)


def _draft(image: Image.Image, side: int) -> Box | None:
    """Set a JPEG up to be decoded smaller. Return the box of its pixels that is picture, if not all of them are: 3,731
    rows come as 467, and are 466.4. Without that fraction everything would be shifted by up to half a pixel of the
    target."""
    draft = image.draft(image.mode, (side, side)) if image.format in ("JPEG", "MPO") else None
    return draft[1] if draft and draft[1][2:] != image.size else None


def _load_rgb(image: Image.Image, data: bytes, try_fast: bool) -> Image.Image:
    """Return the pixels as RGB, RGBX or opaque RGBA. With `try_fast`, jpeg.py decodes a JPEG if it can."""
    if isinstance(image, JpegImageFile):
        if try_fast and image.mode == "RGB":
            with suppress(ValueError):  # on any problem fall back to Pillow
                return jpeg.decoded(data, *image.size, smaller=image.decoderconfig[0] > 1)
        image.decodermaxblock = len(data)  # else the data is copied twice, in blocks of 64 KB
    image.load()
    return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a sample: convert() would clip them, not scale them
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode == "RGBX" or (image.mode == "RGB" and "transparency" not in image.info):
        return image
    return _opaque(image) if image.has_transparency_data else image.convert("RGB")


def _opaque(image: Image.Image) -> Image.Image:
    """Return the picture before a background, as RGBA without transparency. It is changed in place and in bands: whole
    copies of a large picture would cost four times its memory."""
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        background = Image.new("RGBA", band.size, (*BEHIND_ALPHA, 255))
        image.paste(Image.alpha_composite(background, band), (0, top))
    return image
