"""Conversion of any image that Pillow opens to upright 8-bit RGB on white, as a viewer shows it.

    with Image.open(path) as image:
        rgb = as_rgb(image)

The result equals `image.convert("RGB")` except for:

- Transparency, premultiplied or not, becomes white; also a transparent gray of 2, 4 or 16 bits, which Pillow ignores.
- 16-bit and 12-bit pixels keep their highest 8 bits; `convert` clips them, or makes 12 bits nearly black.
- CMYK is converted with the ICC profile of the file, if valid: without it colors are garish. Profiles of RGB and gray
  images are not applied: training reads stored pixel values, and an image that had to be re-encoded (rotated,
  flattened) must not differ in color from one that did not.
- Pixels without a defined range (32-bit integers and floats) are rejected.
"""

import functools
import io
import math
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageFile, TiffImagePlugin

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Factors that scale PNG grays of few bits to a byte. Pillow does not scale the transparent one.
_GRAY_STEPS = {"L;2": 85, "L;4": 17}
# A JPEG is read at a half, a quarter or an eighth of its size if that leaves so many pixels per pixel of the result in
# each direction: enough for the filter, which averages the pixels around a place, to see what it would at full size.
_LEAST_REDUCTION = 1.4
_STRIP_PIXELS = 2**22
_TIFF_PHOTOMETRIC = 262
_WHITE_IS_ZERO = 0


def orientation(image: Image.Image) -> int:
    """Returns the EXIF or XMP orientation of an image, 1 (upright) to 8; 1 if it has none."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
        return value if value in _TURNS else 1
    except Exception:  # unreadable metadata does not affect the pixels
        return 1


def stored_as(image: Image.Image) -> str:
    """Returns Pillow's name for the pixel layout in the file of an image that is not loaded yet, such as "L;4"."""
    tiles = _tiles(image)
    arguments = tiles[0][3] if tiles else ""
    name = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return name if isinstance(name, str) else ""


def _tiles(image: Image.Image) -> list[Any]:
    return image.tile if isinstance(image, ImageFile.ImageFile) else []


def as_rgb(image: Image.Image, image_size: int = 0) -> Image.Image:
    """Decodes the first frame of an image.

    Args:
      image: opened, not loaded yet.
      image_size: side of the square to resize to, with antialiasing (bilinear), in pixels; 0 keeps the size.

    Returns:
      The image in mode RGB, upright, on a white background.

    Raises:
      ValueError: pixels without a defined range.
      Exception: any error of Pillow's decoders for damaged data.
    """
    # First, because reading the orientation of a PNG loads it, which drops this information.
    stored, transparent = stored_as(image), image.info.get("transparency")
    turn = 1
    if image.format != "TIFF":  # Pillow rotates TIFFs itself on loading
        turn = orientation(image)
    elif sum((right - left) * (bottom - top) for _, (left, top, right, bottom), *_ in _tiles(image)) < math.prod(
        image.size
    ):
        raise ValueError("truncated: its strips or tiles do not fill the image")  # Pillow would leave the rest black
    box = None
    if image_size:
        # Lets libjpeg skip high frequencies, which resizing discards anyway.
        ratio = draft_ratio(image.size, image_size)
        drafted = image.draft(image.mode, (image.width // ratio, image.height // ratio))
        if drafted and turn == 1:
            box = drafted[1]  # without the part of the last row and column that is beyond the image
    image.load()
    rgb = _on_white(image, stored, transparent)
    if turn != 1:
        rgb = rgb.transpose(_TURNS[turn])
    if image_size and rgb.size != (image_size, image_size):
        rgb = resized(rgb, image_size, box)
    return rgb


def draft_ratio(size: tuple[int, int], image_size: int) -> int:
    """Returns by how much libjpeg reduces a JPEG of this size that is then resized to `image_size`: 1, 2, 4 or 8."""
    reduction = min(size) // round(_LEAST_REDUCTION * image_size)
    return next((ratio for ratio in (8, 4, 2) if reduction >= ratio), 1)


def resized(image: Image.Image, image_size: int, box: tuple[float, float, float, float] | None = None) -> Image.Image:
    """Returns an image, or the part of it in `box`, resized to a square with antialiasing."""
    return image.resize((image_size, image_size), Image.Resampling.BILINEAR, box)


def _on_white(image: Image.Image, stored: str, transparent: int | bytes | tuple[int, ...] | None) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError("32-bit or signed pixels without a defined black and white; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_deep_gray(image, stored, transparent if isinstance(transparent, int) else None)
    if stored == "RGB;16B" and transparent is not None:
        raise ValueError("a transparent color of 3x16 bits, which Pillow truncates; save it with 8 bits, or with alpha")
    if stored in _GRAY_STEPS and transparent is not None:
        image.info["transparency"] = transparent * _GRAY_STEPS[stored]
    if image.mode == "La":
        image = image.convert("LA")
    if transparent is not None or image.mode in ("RGBA", "LA", "PA", "RGBa"):
        return _without_alpha(image)
    if image.mode == "CMYK" and (profile := image.info.get("icc_profile")):
        try:
            converted = ImageCms.applyTransform(image, _from_cmyk(profile))
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError):
            pass  # a damaged profile, or one for another color space, is ignored
    return image.convert("RGB")


def _without_alpha(image: Image.Image) -> Image.Image:
    rgb = Image.new("RGB", image.size)
    rows = max(1, _STRIP_PIXELS // image.width)  # limits memory: several copies of a large image may not fit
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        rgb.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), (0, top))
    return rgb


def _from_deep_gray(image: Image.Image, stored: str, transparent: int | None) -> Image.Image:
    deep = np.asarray(image)
    if image.mode == "I":
        deep = deep.clip(0, 65535).astype(np.uint16)
    gray = (deep >> (4 if stored == "I;12" else 8)).astype(np.uint8)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        gray = 255 - gray
    if transparent is not None:
        gray[deep == transparent] = 255
    return Image.fromarray(gray).convert("RGB")


@functools.lru_cache(maxsize=8)  # making one takes longer than decoding an image
def _from_cmyk(profile: bytes) -> ImageCms.ImageCmsTransform:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.buildTransform(
        source, ImageCms.createProfile("sRGB"), "CMYK", "RGB", ImageCms.Intent(ImageCms.getDefaultIntent(source))
    )
