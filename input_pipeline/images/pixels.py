"""Image files to record bytes that TensorFlow decodes to what a viewer shows. Used by the converter and by prediction.

    data, image_format, (width, height), channels = encode(file.read(), Pixels(image_size=0, encoding="keep"))

The bytes pass through unchanged unless TensorFlow would decode them wrongly. Upright, opaque 8-bit RGB or gray JPEG and
PNG pass through. Everything else (EXIF rotation, CMYK, palette, alpha, 16 bits, animation, GIF, WebP, BMP, TIFF, AVIF,
...) is re-encoded once with Pillow (`rgb`), from its first frame: lossless sources become PNG with exactly Pillow's
pixels, lossy sources become JPEG.

Embedded color profiles are applied to CMYK only; RGB values are kept as stored (see `rgb`).
A truncated or damaged file raises, and `reason` describes the error in one line.
"""

import contextlib
import io
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from convoy.core.errors import UsageError
from convoy.input_pipeline.images.jpeg import decoded_jpeg
from convoy.input_pipeline.images.kinds import JpegHeader, jpeg_header, kind_of, unsupported_jpeg
from convoy.input_pipeline.images.rgb import as_rgb, draft_ratio, orientation, resized, stored_as

# Pillow's warnings about odd files are redundant here: each file is either decoded or left out with a reason.
warnings.filterwarnings("ignore", module="PIL")

JPEG_QUALITY = 92
# Common image formats. Pillow opens more, some by starting another program (EPS).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "PPM", "AVIF")
# Formats that TensorFlow decodes directly. A multi-picture object (MPO) is a JPEG followed by more data.
_PASSING = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}
# A PNG without any of these has no orientation, and Pillow need not decode it to find out.
_PNG_ORIENTATION_MARKS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
_CHROMA_HALVED = 2  # Pillow's code for 4:2:0
_TIFF_TAGS = (258, 277, 262)  # BitsPerSample, SamplesPerPixel, PhotometricInterpretation
# In messages of Pillow's decoders about files that are intact.
_UNSUPPORTED = re.compile(
    r"unsupported|not supported|unknown (pixel mode|compression|data)|not available", re.IGNORECASE
)
_DECODABLE_PIXELS = (2**29 - 1) // 3  # TensorFlow refuses larger JPEGs
_MIB = 2**20
Size = tuple[int, int]  # width and height in pixels


@dataclass(frozen=True)
class Limits:
    """Limits of image files; beyond them, reading one may take the machine's memory.

    Attributes:
      max_megapixels: width x height, in millions. The default is Pillow's.
      max_file_mib: size of a file in MiB. The default is larger than any image within the pixel limit, and refuses most
        videos with an image's extension.
      max_metadata_mib: size in MiB of a PNG's text or color profile, decompressed, which is read with the image; all
        texts of a PNG may have four times as much. Pillow's own limit, 1 MiB, refuses good images.

    Raises:
      UsageError: a limit is not positive.
    """

    max_megapixels: float = 89.478485
    max_file_mib: int = 1024
    max_metadata_mib: int = 64

    def __post_init__(self) -> None:
        """Checks the values."""
        for name, value in vars(self).items():
            if not value > 0:
                raise UsageError(f"--{name}={value:g}: must be above 0")

    @classmethod
    def with_defaults(cls, **given: Any) -> "Limits":
        """Returns limits with the given values; None stands for the default."""
        return cls(**{name: value for name, value in given.items() if value is not None})

    def check_file(self, size: int) -> None:
        """Raises ValueError if a file of `size` bytes must not be read."""
        if size > self.max_file_mib * _MIB:
            raise ValueError(f"the file has {size:,} bytes, more than --max_file_mib={self.max_file_mib} allows")

    def check_pixels(self, width: int, height: int) -> None:
        """Raises ValueError if an image of this size must not be decoded."""
        if width * height > round(self.max_megapixels * 1e6):
            raise ValueError(
                f"decompression bomb: {width:,}x{height:,} pixels, more than --max_megapixels={self.max_megapixels:g} "
                "allows"
            )

    def apply(self) -> None:
        """Makes Pillow, whose limits hold for the process, accept what these limits allow."""
        PngImagePlugin.MAX_TEXT_CHUNK = self.max_metadata_mib * _MIB
        PngImagePlugin.MAX_TEXT_MEMORY = 4 * self.max_metadata_mib * _MIB
        if Image.MAX_IMAGE_PIXELS is not None:
            Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, round(self.max_megapixels * 1e6))


@dataclass(frozen=True)
class Pixels:
    """How images are read, resized and encoded.

    Attributes:
      image_size: side of the square that images are resized to; 0 keeps their size.
      encoding: "keep", "jpeg", "png" or "raw" (uint8 RGB, row by row).
      limits: limits of the files.
    """

    image_size: int
    encoding: str
    limits: Limits = Limits()


class Encoded(NamedTuple):
    """An image's record bytes. `format` is "jpeg", "png" or "raw"; `size` is (width, height)."""

    data: bytes
    format: str
    size: Size
    channels: int


def encode(data: bytes, pixels: Pixels) -> Encoded:
    """Returns an image file's record bytes, without checking them with the reader's decoder.

    Raises:
      Exception: of any kind: not an image, or a damaged one. `reason` describes it.
    """
    return encode_where_checked(data, pixels, lambda data, image_format, size: True)[0]


def encode_where_checked(
    data: bytes, pixels: Pixels, check: Callable[[bytes, str, Size], bool]
) -> tuple[Encoded, np.ndarray | None]:
    """Returns an image's record bytes, and its pixels if it was re-encoded.

    Args:
      data: the file's bytes.
      pixels: target size and encoding.
      check: called with the file's bytes, format ("jpeg" or "png") and size. Returns whether the reader decodes the
        file correctly; if not, the image is re-encoded with Pillow. Raises if the image is damaged.

    Returns:
      The record bytes, and [height, width, 3] uint8 or None.

    Raises:
      Exception: of any kind: not an image, or a damaged one. `reason` describes it.
    """
    if not data:
        raise ValueError("the file is empty")
    pixels.limits.apply()
    try:
        return _encoded_where_checked(data, pixels, check)
    except Exception:
        if kind := unsupported_jpeg(data):
            raise ValueError(kind) from None
        raise


def _encoded_where_checked(
    data: bytes, pixels: Pixels, check: Callable[[bytes, str, Size], bool]
) -> tuple[Encoded, np.ndarray | None]:
    if plain := _plain_jpeg(data, pixels.limits):
        with contextlib.suppress(ValueError):
            if (result := _from_plain_jpeg(data, plain, pixels, check)) is not None:
                return result
    with _opened(data) as image:
        pixels.limits.check_pixels(*image.size)
        if not pixels.image_size and image.width * image.height > _DECODABLE_PIXELS:
            raise ValueError(f"{image.width:,}x{image.height:,} pixels, more than TensorFlow decodes: resize it")
        target = _target_format(image, data, pixels.encoding)
        if _passes(image, data, pixels.image_size, target):
            if check(data, target, image.size):
                return Encoded(data, target, image.size, len(image.getbands())), None
        elif image.format in ("JPEG", "MPO") and not pixels.image_size:
            # Pillow does not report pixels that libjpeg filled in for missing data. Skipped when images are resized:
            # the check would double the time per image.
            check(data, "jpeg", image.size)
        rgb = as_rgb(image, pixels.image_size)
        encoded = _encoded(rgb, target, _subsampling(image, pixels.image_size))
    return Encoded(encoded, target, rgb.size, 3), np.asarray(rgb)


def _plain_jpeg(data: bytes, limits: Limits) -> JpegHeader | None:
    """Returns the header of a JPEG that is shown as it is stored, without Pillow's work of opening it; else None."""
    header = jpeg_header(data)
    allowed = min(round(limits.max_megapixels * 1e6), _DECODABLE_PIXELS)
    is_plain = header is not None and header.is_plain and header.is_common and 0 < math.prod(header.size) <= allowed
    return header if is_plain else None


def _from_plain_jpeg(
    data: bytes, header: JpegHeader, pixels: Pixels, check: Callable[[bytes, str, Size], bool]
) -> tuple[Encoded, np.ndarray | None] | None:
    """Returns what `_encoded_where_checked` would, in less time; None if only Pillow can tell.

    Raises:
      ValueError: the image is damaged, of which Pillow may have more to say.
    """
    target = "jpeg" if pixels.encoding == "keep" else pixels.encoding
    side = pixels.image_size
    if target == "jpeg" and (not side or header.size == (side, side)):
        return (Encoded(data, target, header.size, header.channels), None) if check(data, target, header.size) else None
    if not side:
        return None
    ratio = draft_ratio(header.size, side)
    width, height = header.size
    box = 0, 0, width / ratio, height / ratio
    rgb = resized(Image.fromarray(decoded_jpeg(data, header, ratio)), side, box)
    return Encoded(_encoded(rgb, target, _CHROMA_HALVED), target, rgb.size, 3), np.asarray(rgb)


def reason(error: Exception) -> str:
    """Returns why an image was left out, in one line and without memory addresses, which differ between runs."""
    text = " ".join(re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "the file", str(error)).split())
    text = "".join(character if character.isprintable() else "?" for character in text)[:300]
    if isinstance(error, OSError) and error.strerror:
        return f"not readable: {error.strerror[:1].lower()}{error.strerror[1:]}"
    if isinstance(error, Image.DecompressionBombError):
        number = re.search(r"\d+", text)
        size = f"{int(number[0]):,} pixels, " if number else ""
        return f"decompression bomb: {size}more than --max_megapixels allows"
    if "MAX_TEXT" in text:
        allowed = f"--max_metadata_mib={PngImagePlugin.MAX_TEXT_CHUNK // _MIB}"
        return f"its text or color profile is larger than {allowed} allows"
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    if isinstance(error, EOFError) or any(sign in text.lower() for sign in ("truncated", "only got", "not enough")):
        return "truncated"
    if isinstance(error, ValueError) and text:
        return text
    if _UNSUPPORTED.search(text):
        return f"of a kind that Pillow cannot read ({text}): save it as PNG or JPEG"
    return f"damaged ({text or type(error).__name__})"


def refused_size(data: bytes) -> str:
    """Returns why an image of another tool's record is not decoded: its size; "" if it is not too large, or unknown."""
    allowed = Limits().max_megapixels
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
        if width * height <= round(allowed * 1e6):
            return ""
        size = f"{width:,}x{height:,}"
    except Image.DecompressionBombError as error:
        size = f"{int(re.findall(r'[0-9]+', str(error))[0]):,}"
    except Exception:  # a damaged header makes Pillow raise anything
        return ""
    return f"the image has {size} pixels, more than {allowed:.1f} million"


def _opened(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.UnidentifiedImageError, KeyError):  # KeyError: an older Pillow without AVIF
        kind = _unsupported_tiff(data) or kind_of(data) or f"not an image ({', '.join(FORMATS)})"
        raise ValueError(kind) from None


def _unsupported_tiff(data: bytes) -> str:
    """Returns which kind of TIFF this is if its first directory is intact; "" for other data."""
    try:
        directory = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        file = io.BytesIO(data)
        file.seek(directory.next)
        directory.load(file)
        bits, channels, photometric = (directory[tag] for tag in _TIFF_TAGS)
    except Exception:  # damaged bytes make Pillow raise anything
        return ""
    return (
        f"a TIFF of {channels} channels of {max(bits)} bits and photometric interpretation {photometric}, which Pillow "
        "cannot read: save it as 8-bit RGB"
    )


def _target_format(image: Image.Image, data: bytes, encoding: str) -> str:
    if encoding != "keep":
        return encoding
    # Re-encoded images: lossy sources become JPEG, lossless ones PNG.
    is_lossy = image.format in ("JPEG", "MPO", "AVIF") or (image.format == "WEBP" and b"VP8L" not in data)
    return "jpeg" if is_lossy else "png"


def _passes(image: Image.Image, data: bytes, image_size: int, target: str) -> bool:
    """Returns whether TensorFlow decodes the file to what viewers show, in the requested size and format."""
    if _PASSING.get(image.format or "") != target or (image_size and image.size != (image_size, image_size)):
        return False
    if image.mode not in ("RGB", "L") or "transparency" in image.info:
        return False
    if image.format == "PNG":
        # Pillow also opens 16-bit RGB and 2- and 4-bit gray in these modes.
        if stored_as(image) != image.mode or getattr(image, "is_animated", False):
            return False
        return not any(mark in data for mark in _PNG_ORIENTATION_MARKS) or orientation(image) == 1
    return orientation(image) == 1


def _subsampling(image: Image.Image, image_size: int) -> int:
    """Returns Pillow's chroma subsampling code for a new JPEG: 0 (none) if the source JPEG had full chroma."""
    if image_size or image.format not in ("JPEG", "MPO"):
        return _CHROMA_HALVED
    return _CHROMA_HALVED if JpegImagePlugin.get_sampling(image) == _CHROMA_HALVED else 0


def _encoded(rgb: Image.Image, target: str, subsampling: int) -> bytes:
    if target == "raw":
        return rgb.tobytes()
    buffer = io.BytesIO()
    rgb.info.clear()  # otherwise Pillow copies orientation, transparency and comments
    if target == "jpeg":
        rgb.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=subsampling)
    else:
        rgb.save(buffer, "PNG")
    return buffer.getvalue()
