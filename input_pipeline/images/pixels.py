"""From an image file to bytes that TensorFlow decodes to what a viewer shows, for the converter and for prediction.

    data, image_format, (width, height), channels = encode(file.read(), Pixels(image_size=0, encoding="keep"))

Bytes pass through untouched unless they must change, so that nothing is lost: a decoder sees what the camera or the
shop wrote. JPEG and PNG of 8-bit RGB or grey, upright and opaque, pass; everything else (turned by EXIF, CMYK, palette,
alpha, 16 bits, animation, GIF, WebP, BMP, TIFF, AVIF, ...) goes through Pillow once (`rgb`). Its first frame is taken.
What was lossless is a PNG then, with exactly the pixels that Pillow shows, and what was lossy a JPEG.

Embedded colour profiles are applied to CMYK only; the values of RGB pixels stay as they are stored (see `rgb`).
A truncated or damaged file raises, and `reason` words it in a line.
"""

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, JpegImagePlugin

from convoy.input_pipeline.images.rgb import as_rgb, orientation, stored_as

# What Pillow warns of in an odd file is settled here: it is decoded, or left out with a reason.
warnings.filterwarnings("ignore", module="PIL")

JPEG_QUALITY = 92
# More than any image of so many pixels as are accepted takes: a film under an image's name is not read into memory.
MAX_FILE_BYTES = 2**30
# What people keep photographs and drawings in. Pillow opens more, some by starting another program (EPS).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "PPM", "AVIF")
# Formats whose bytes TensorFlow decodes as they are. A multi-picture object (MPO) is a JPEG with more behind it.
_PASSING = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}
# Where a PNG holds none of these it has no orientation, and need not be decoded by Pillow to know it.
_PNG_ORIENTATION_MARKS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
_CHROMA_HALVED = 2  # as Pillow counts: 4:2:0
# What else is found under an image's name, by how it begins, white space and case aside.
_OTHER_THINGS = tuple(
    (re.compile(beginning, re.DOTALL), kind)
    for beginning, kind in (
        (rb"(<!--.*?-->\s*)?<(!doctype html|html|head|body|title|script)", "HTML, not an image"),
        (rb"(<[?!].*?)?<svg", "SVG, a drawing without pixels: save it as PNG"),
        (rb"<\?xml", "XML, not an image"),
        (rb"....ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)", "HEIC, which Pillow cannot read: save it as JPEG"),
        (rb"....ftyp(?!avi[fs])", "a video, not an image"),
        (rb"%pdf", "PDF, not an image"),
        (rb"pk\x03\x04|\x1f\x8b|rar!|7z\xbc\xaf", "a compressed archive, not an image"),
        (rb"8bps", "a Photoshop document: save it as PNG"),
        (rb"version https://git-lfs", "a Git LFS pointer, not the image: run git lfs pull"),
        (rb"[\[{]", "text, not an image"),
        (rb"\x00+\Z", "zero bytes, not an image"),
        (rb"\xff\xd8|\x89png|gif8|riff|bm|ii\*\x00|mm\x00\*|....ftyp|p[1-6]\s", "damaged or cut off in its header"),
    )
)
_SNIFFED = 1024
Size = tuple[int, int]  # width and height in pixels


@dataclass(frozen=True)
class Pixels:
    """What may happen to pixels.

    Attributes:
      image_size: side of the square that images are resized to; 0 leaves them their size.
      encoding: "keep", "jpeg", "png" or "raw" (uint8 RGB, row by row).
    """

    image_size: int
    encoding: str


class Encoded(NamedTuple):
    """An image's bytes as they go into the record. `format` is "jpeg", "png" or "raw"; `size` is (width, height)."""

    data: bytes
    format: str
    size: Size
    channels: int


def encode(data: bytes, pixels: Pixels) -> Encoded:
    """Returns the bytes of an image file as they go into the record, not checked with the reader's decoder.

    Raises:
      Exception: of any kind; the bytes are no image, or one that is damaged. `reason` words it.
    """
    return encode_where_checked(data, pixels, lambda data, image_format, size: True)[0]


def encode_where_checked(
    data: bytes, pixels: Pixels, check: Callable[[bytes, str, Size], bool]
) -> tuple[Encoded, np.ndarray | None]:
    """Returns an image's bytes as they go into the record, and its pixels where they were encoded anew.

    Args:
      data: the file's bytes.
      pixels: what may happen to them.
      check: is given the file, its format ("jpeg" or "png") and size, and says whether the reader decodes it well.
        False: it had better be given what Pillow makes of it. It raises where the image is damaged.

    Returns:
      The bytes, and [height, width, 3] uint8 or None.

    Raises:
      Exception: of any kind; the bytes are no image, or one that is damaged. `reason` words it.
    """
    if not data:
        raise ValueError("the file is empty")
    with _opened(data) as image:
        if image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise ValueError(
                f"decompression bomb: {image.width:,}x{image.height:,} pixels, more than {Image.MAX_IMAGE_PIXELS:,}"
            )
        target = _target_format(image, data, pixels.encoding)
        if _passes(image, data, pixels.image_size, target):
            if check(data, target, image.size):
                return Encoded(data, target, image.size, len(image.getbands())), None
        elif image.format in ("JPEG", "MPO") and not pixels.image_size:
            # Pillow does not tell where libjpeg made up what was missing. Where images are resized, this would take as
            # long as all the rest.
            check(data, "jpeg", image.size)
        rgb = as_rgb(image, pixels.image_size)
        encoded = _encoded(rgb, target, _subsampling(image, pixels.image_size))
    return Encoded(encoded, target, rgb.size, 3), np.asarray(rgb)


def reason(error: Exception) -> str:
    """Returns why an image was left out, in one line and without what differs between runs (addresses)."""
    text = " ".join(re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "the file", str(error)).split())
    text = "".join(character if character.isprintable() else "?" for character in text)[:300]
    if isinstance(error, OSError) and error.strerror:
        return f"not readable: {error.strerror[:1].lower()}{error.strerror[1:]}"
    if isinstance(error, Image.DecompressionBombError):
        number = re.search(r"\d+", text)
        return f"decompression bomb: {int(number[0]):,} pixels" if number else "decompression bomb"
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    if isinstance(error, EOFError) or any(sign in text.lower() for sign in ("truncated", "only got", "not enough")):
        return "truncated"
    if isinstance(error, ValueError) and text:
        return text
    return f"damaged ({text or type(error).__name__})"


def _opened(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.UnidentifiedImageError, KeyError):  # KeyError: an older Pillow without AVIF
        start = data[:_SNIFFED].removeprefix(b"\xef\xbb\xbf").strip().lower()
        kinds = (kind for beginning, kind in _OTHER_THINGS if beginning.match(start))
        raise ValueError(next(kinds, f"not an image ({', '.join(FORMATS)})")) from None


def _target_format(image: Image.Image, data: bytes, encoding: str) -> str:
    if encoding != "keep":
        return encoding
    # If pixels must change, lossy sources become JPEG and lossless ones PNG.
    is_lossy = image.format in ("JPEG", "MPO", "AVIF") or (image.format == "WEBP" and b"VP8L" not in data)
    return "jpeg" if is_lossy else "png"


def _passes(image: Image.Image, data: bytes, image_size: int, target: str) -> bool:
    """Whether TensorFlow decodes the file to what viewers show, in the requested size and format."""
    if _PASSING.get(image.format or "") != target or (image_size and image.size != (image_size, image_size)):
        return False
    if image.mode not in ("RGB", "L") or "transparency" in image.info:
        return False
    if image.format == "PNG":
        # Pillow opens RGB of 16 bits and grey of 2 and 4 under these modes too.
        if stored_as(image) != image.mode or getattr(image, "is_animated", False):
            return False
        return not any(mark in data for mark in _PNG_ORIENTATION_MARKS) or orientation(image) == 1
    return orientation(image) == 1


def _subsampling(image: Image.Image, image_size: int) -> int:
    """Returns how a JPEG's colours are to be stored, as Pillow counts: in full if made of one that had them so."""
    if image_size or image.format not in ("JPEG", "MPO"):
        return _CHROMA_HALVED
    return _CHROMA_HALVED if JpegImagePlugin.get_sampling(image) == _CHROMA_HALVED else 0


def _encoded(rgb: Image.Image, target: str, subsampling: int) -> bytes:
    if target == "raw":
        return rgb.tobytes()
    buffer = io.BytesIO()
    rgb.info.clear()  # or Pillow would carry orientation, transparency and comments over
    if target == "jpeg":
        rgb.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=subsampling)
    else:
        rgb.save(buffer, "PNG")
    return buffer.getvalue()
