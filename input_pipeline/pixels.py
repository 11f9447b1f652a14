"""From an image file to bytes that TensorFlow decodes to what a viewer shows, for the converter and for prediction.

Bytes pass through untouched unless they must change, so that nothing is lost: a decoder sees what the camera or the
shop wrote. What must change goes through Pillow once: oriented, flattened onto white, 8-bit RGB.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

# What Pillow warns of in an odd file is settled here: it is decoded, or left out with a reason.
warnings.filterwarnings("ignore", module="PIL")

JPEG_QUALITY = 92
ORIENTATION_TAG = 0x0112
# Formats whose bytes TensorFlow decodes as they are. A multi-picture object (MPO) is a JPEG with more behind it.
_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}
# Where a PNG holds none of these it has no orientation, and need not be decoded by Pillow to know it.
_PNG_ORIENTATION_MARKS = (b"eXIf", b"Raw profile type exif", b"tiff:Orientation")
_PNG_BIT_DEPTH_BYTE = 24


@dataclass(frozen=True)
class Pixels:
    """What may happen to pixels.

    Attributes:
      image_size: side of the square that images are resized to; 0 leaves them their size.
      encoding: "keep", "jpeg", "png" or "raw" (uint8 RGB, row by row).
    """

    image_size: int
    encoding: str


def encode(data: bytes, pixels: Pixels) -> tuple[bytes, str, tuple[int, int], int]:
    """Returns an image's bytes as they go into the record.

    Args:
      data: the file's bytes.
      pixels: what may happen to them.

    Returns:
      (bytes, format, (width, height), channels): format is "jpeg", "png" or "raw".

    Raises:
      Exception: the bytes are no image, or cannot be decoded where they must change.
    """
    with Image.open(io.BytesIO(data)) as image:
        if image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels: more than {Image.MAX_IMAGE_PIXELS:,}")
        image_format = _FORMATS.get(image.format, "")
        size, channels = image.size, len(image.getbands())
        target = _target_format(image, pixels.encoding)
        if image_format != target or _must_change(image, data, pixels.image_size):
            rgb = _as_rgb(image, pixels.image_size)
            data, size, channels = _encoded(rgb, target), rgb.size, 3
    return data, target, size, channels


def reason(error: Exception) -> str:
    """Returns why an image was left out, in one line and without what differs between runs (addresses)."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or of a format that Pillow does not know"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:300] or type(error).__name__


def _target_format(image: Image.Image, encoding: str) -> str:
    if encoding != "keep":
        return encoding
    # What was lossy becomes JPEG where it must change, and what was lossless PNG.
    return "jpeg" if image.format in ("JPEG", "MPO", "WEBP", "AVIF") else "png"


def _must_change(image: Image.Image, data: bytes, image_size: int) -> bool:
    """Says whether TensorFlow's decoder would give other pixels than a viewer shows, or another size was asked for."""
    if image_size and image.size != (image_size, image_size):
        return True
    if image.mode not in ("RGB", "L") or "transparency" in image.info:
        return True
    if image.format == "PNG":
        # Pillow opens 16-bit RGB under mode "RGB" too, so the depth is read from the header.
        return (
            data[_PNG_BIT_DEPTH_BYTE] != 8
            or getattr(image, "is_animated", False)
            or (any(mark in data for mark in _PNG_ORIENTATION_MARKS) and _orientation(image) != 1)
        )
    return _orientation(image) != 1


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION_TAG, 1) or 1
    except Exception:  # metadata that cannot be parsed says nothing about the pixels
        return 1


def _as_rgb(image: Image.Image, image_size: int) -> Image.Image:
    """Decodes the first frame: oriented, on white, 8-bit RGB, resized to a square with antialiasing (bilinear)."""
    orientation = _orientation(image)
    if image_size:
        # Lets libjpeg skip the finest frequencies, which a resize to less than half throws away anyway.
        image.draft(image.mode, (2 * image_size, 2 * image_size))
    image.load()
    if orientation != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    elif "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    image = image.convert("RGB")
    if image_size and image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return image


def _encoded(rgb: Image.Image, target: str) -> bytes:
    if target == "raw":
        return rgb.tobytes()
    buffer = io.BytesIO()
    rgb.info.clear()  # or Pillow would carry orientation, transparency and comments over
    if target == "jpeg":
        rgb.save(buffer, "JPEG", quality=JPEG_QUALITY)
    else:
        rgb.save(buffer, "PNG")
    return buffer.getvalue()
