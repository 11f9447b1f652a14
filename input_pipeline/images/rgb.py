"""What a picture looks like: any image that Pillow opens, oriented, on white, as 8-bit RGB.

    with Image.open(path) as image:
        rgb = as_rgb(image)

It is what a viewer shows, and `image.convert("RGB")` wherever that is right. Where it is not:

- Transparency shows white, premultiplied or not, also a transparent grey of 2, 4 or 16 bits, which Pillow misses.
- Sixteen and twelve bits become eight by their highest ones; `convert` clips them, or shows twelve as nearly black.
- CMYK goes through the file's own ICC profile, if it has one that works: without it inks come out garish. Profiles of
  RGB and grey images are not applied: training reads pixel values as they are stored, and an image that had to be
  re-encoded (turned, flattened) must not get other colours than its neighbour that had not.
- Pixels whose range nobody states (32-bit integers and floats) are refused rather than guessed at.
"""

import functools
import io
import math

import numpy as np
from PIL import Image, ImageCms

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
# What a PNG's grey of few bits is multiplied by to fill a byte. Pillow leaves the transparent one as it stands.
_GREY_STEPS = {"L;2": 85, "L;4": 17}
_STRIP_PIXELS = 2**22
_TIFF_PHOTOMETRIC = 262
_WHITE_IS_ZERO = 0


def orientation(image: Image.Image) -> int:
    """Returns how an image is to be turned, 1 (not at all) to 8, by its EXIF or XMP data; 1 where they do not say."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
        return value if value in _TURNS else 1
    except Exception:  # metadata that cannot be parsed says nothing about the pixels
        return 1


def stored_as(image: Image.Image) -> str:
    """Returns Pillow's name for pixels as they stand in the file of an image that is not loaded yet, such as "L;4"."""
    arguments = image.tile[0][3] if image.tile else ""
    name = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return name if isinstance(name, str) else ""


def as_rgb(image: Image.Image, image_size: int = 0) -> Image.Image:
    """Decodes an image's first frame.

    Args:
      image: as opened, not loaded yet.
      image_size: side of the square to resize to, with antialiasing (bilinear); 0 leaves the size.

    Returns:
      Mode RGB, oriented, on white.

    Raises:
      Exception: what Pillow's decoders throw at damaged data, and ValueError for pixels without a stated range.
    """
    # First, because asking a PNG for its orientation loads it, and a transparent colour named after pixels is none.
    stored, transparent = stored_as(image), image.info.get("transparency")
    turn = 1
    if image.format != "TIFF":  # which turns itself while it is loaded
        turn = orientation(image)
    elif sum((right - left) * (bottom - top) for _, (left, top, right, bottom), *_ in image.tile) < math.prod(
        image.size
    ):
        raise ValueError("truncated: its strips or tiles do not fill the image")  # Pillow leaves the rest black
    if image_size:
        # Lets libjpeg skip the finest frequencies, which a resize to less than half throws away anyway.
        image.draft(image.mode, (2 * image_size, 2 * image_size))
    image.load()
    rgb = _on_white(image, stored, transparent)
    if turn != 1:
        rgb = rgb.transpose(_TURNS[turn])
    if image_size and rgb.size != (image_size, image_size):
        rgb = rgb.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return rgb


def _on_white(image: Image.Image, stored: str, transparent: int | bytes | tuple[int, ...] | None) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError("32-bit or signed pixels, whose black and white are nowhere stated; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_deep_grey(image, stored, transparent)
    if stored == "RGB;16B" and transparent is not None:
        raise ValueError(
            "a transparent colour of 3x16 bits, of which Pillow keeps 8; save it with 8 bits, or with alpha"
        )
    if stored in _GREY_STEPS and transparent is not None:
        image.info["transparency"] = transparent * _GREY_STEPS[stored]
    if image.mode == "La":
        image = image.convert("LA")
    if transparent is not None or image.mode in ("RGBA", "LA", "PA", "RGBa"):
        return _without_alpha(image)
    if image.mode == "CMYK" and (profile := image.info.get("icc_profile")):
        try:
            return ImageCms.applyTransform(image, _from_cmyk(profile))
        except (ImageCms.PyCMSError, OSError):
            pass  # a damaged profile, or one of another colour space: as without one
    return image.convert("RGB")


def _without_alpha(image: Image.Image) -> Image.Image:
    rgb = Image.new("RGB", image.size)
    rows = max(1, _STRIP_PIXELS // image.width)  # several copies of a large image would not fit into memory
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        rgb.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), (0, top))
    return rgb


def _from_deep_grey(image: Image.Image, stored: str, transparent: int | None) -> Image.Image:
    deep = np.asarray(image)
    if image.mode == "I":
        deep = deep.clip(0, 65535).astype(np.uint16)
    grey = (deep >> (4 if stored == "I;12" else 8)).astype(np.uint8)
    if image.format == "TIFF" and image.tag_v2.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    if transparent is not None:
        grey[deep == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


@functools.lru_cache(maxsize=8)  # making one takes longer than decoding an image
def _from_cmyk(profile: bytes) -> ImageCms.ImageCmsTransform:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.buildTransform(
        source, ImageCms.createProfile("sRGB"), "CMYK", "RGB", ImageCms.Intent(ImageCms.getDefaultIntent(source))
    )
