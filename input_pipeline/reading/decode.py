"""Per-image work on the host: parse the record, decode, take a random crop, resize. `augment` does the rest."""

import functools
import math
from typing import NamedTuple

import tensorflow as tf

from convoy.input_pipeline.augment.signatures import CROP_DRAWS
from convoy.input_pipeline.dataset.open import Split
from convoy.input_pipeline.reading.cache import PixelCache
from convoy.input_pipeline.reading.viewed import decode_as_viewed

_JPEG = b"\xff\xd8\xff"
_SCALES = (1, 2, 4, 8)  # divisors of the size at which libjpeg decodes from fewer frequencies of a block
VIEWED = "viewed"  # format of encoded images that are decoded by `decode_as_viewed`
_MAX_ASPECT = 4 / 3
_PADDING = 128  # mid-gray, which models that scale pixels to [-1, 1] see as 0; also the color of `erase`


class Crop(NamedTuple):
    """How the host crops and resizes an image.

    Attributes:
      size: side of the square result in pixels.
      min_area: smallest share of the image's area in a random crop, in (0, 1]; 1 keeps the whole image. Below 1, aspect
        ratios vary from 3:4 to 4:3 ("Inception" crop, Szegedy et al. 2015).
      max_area: largest share, in [`min_area`, 1].
      resize: how an image that is not square becomes square. "squash": without keeping its aspect ratio. "crop": the
        central square; random crops take their share of its area, from anywhere in the image. "pad": the whole image,
        on gray; random crops have the aspect ratio of the image as their middle, and fill the same place.
      decode: "exact": every pixel. "fast": JPEG files at a half, quarter or eighth of their size, if that leaves every
        crop as many pixels as the result has.
    """

    size: int
    min_area: float = 1.0
    max_area: float = 1.0
    resize: str = "squash"
    decode: str = "exact"

    @property
    def whole(self) -> "Crop":
        """The same without random crops, as in evaluation."""
        return self._replace(min_area=1.0, max_area=1.0)


def parse_records(payloads: tf.Tensor, split: Split, shown_otherwise: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
    """Returns the features of records [n]: `encoded`, `format`, `height` and `width`, each [n].

    In records of other programs, height and width are 0 for all but raw pixels, and the other formats are `VIEWED`
    wherever that may differ from what is stored.

    Args:
      payloads: the records, [n].
      split: the split that they are of.
      shown_otherwise: `may_be_shown_otherwise` of each, [n] bool; None for unknown.
    """
    image_key = split.keys.image
    features = {
        image_key: tf.io.FixedLenFeature([], tf.string, ""),  # a missing image fails like a damaged one
        "image/format": tf.io.FixedLenFeature([], tf.string, "jpeg"),
        "image/height": tf.io.FixedLenFeature([], tf.int64, 0),
        "image/width": tf.io.FixedLenFeature([], tf.int64, 0),
    }
    parsed = tf.io.parse_example(payloads, features)
    columns = {"encoded" if name == image_key else name.removeprefix("image/"): parsed[name] for name in features}
    is_raw = columns["format"] == "raw"
    if not split.states_true_sizes:
        columns |= {side: columns[side] * tf.cast(is_raw, tf.int64) for side in ("height", "width")}
    if split.as_viewed:
        is_stored = is_raw
        if shown_otherwise is not None:
            encoded = columns["encoded"]
            is_jpeg = tf.strings.substr(encoded, 0, 3) == _JPEG
            is_png = tf.strings.substr(encoded, 0, 4) == b"\x89PNG"
            is_stored |= ~shown_otherwise & (is_jpeg | is_png)
        columns["format"] = tf.where(is_stored, columns["format"], VIEWED)
    return columns


def decode_and_crop_all(
    features: dict[str, tf.Tensor],
    randomness: tf.Tensor | None,
    crop: Crop,
    expected_number: int,
    cache: PixelCache | None = None,
    *,
    any_viewed: bool = True,
) -> tf.Tensor:
    """Returns a batch of images, each as from `decode_and_crop`.

    Args:
      features: as in `decode_and_crop`, each [n].
      randomness: [n, CROP_DRAWS or more] float32 in [0, 1); may be None where whole images are kept.
      crop: as in `decode_and_crop`.
      expected_number: the n to optimize for; other values of n work too.
      cache: provides the images marked `kept` and stores those marked `to_keep`, by `index`: whole images where `crop`
        is random, else the result. Needs the features `index` [n] int64, `kept` and `to_keep` [n] bool.
      any_viewed: as in `decode`.

    Returns:
      [n, size, size, 3] uint8.
    """
    encoded_images = {name: features[name] for name in ("encoded", "format", "height", "width")}
    columns = {**encoded_images, **{name: features[name] for name in ("index", "kept", "to_keep") if cache}}
    image = tf.TensorSpec([crop.size, crop.size, 3], tf.uint8)
    number = tf.size(columns["encoded"])
    if randomness is None:
        randomness = tf.zeros([number, CROP_DRAWS])

    def one(inputs: tuple[dict[str, tf.Tensor], tf.Tensor]) -> tf.Tensor:
        return decode_and_crop(*inputs, crop, any_viewed=any_viewed)

    def decode_same_size(encoded: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.io.decode_image(encoded, channels=3, expand_animations=False), image.shape)

    def decode_each() -> tf.Tensor:
        return tf.map_fn(one, (encoded_images, randomness), fn_output_signature=image, parallel_iterations=1)

    def any_sizes() -> tf.Tensor:
        if not cache:
            return decode_each()
        return tf.cond(
            tf.reduce_any(columns["kept"] | columns["to_keep"]),
            lambda: _decode_each_cached(columns, randomness, crop, cache, any_viewed),
            decode_each,
        )

    def all_same_size() -> tf.Tensor:
        images = tf.stack([decode_same_size(columns["encoded"][k]) for k in range(expected_number)])
        if not cache:
            return images
        return tf.cond(tf.reduce_any(columns["to_keep"]), lambda: cache.keep(columns["index"], images), lambda: images)

    if crop.min_area < 1:
        return any_sizes()
    # The loop and its per-image conditions cost half as much as decoding; usually neither is needed.
    fits = (columns["format"] != "raw") & (columns["height"] == crop.size) & (columns["width"] == crop.size)
    if cache:
        fits &= ~columns["kept"]
    branches = [(tf.reduce_all(fits) & (number == expected_number), all_same_size)]
    if cache:
        branches.append((tf.reduce_all(columns["kept"]), lambda: cache.take_all(columns["index"], crop.size)))
    return tf.case(branches, default=any_sizes)


def _decode_each_cached(
    columns: dict[str, tf.Tensor], randomness: tf.Tensor, crop: Crop, cache: PixelCache, any_viewed: bool
) -> tf.Tensor:
    pixels, places = cache.take(columns["index"], columns["kept"])

    def one(inputs: tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]) -> tf.Tensor:
        features, draws, place = inputs

        def from_cache() -> tf.Tensor:
            start, height, width = tf.unstack(place, num=3)
            return tf.reshape(pixels[start : start + height * width * 3], [height, width, 3])

        def decode_and_keep() -> tf.Tensor:
            image = decode(features, crop, any_viewed=any_viewed)
            image = image if crop.min_area < 1 else crop_and_resize(image, draws, crop)
            return tf.cond(features["to_keep"], lambda: cache.keep(features["index"], image), lambda: image)

        image = tf.cond(features["kept"], from_cache, decode_and_keep)
        if crop.min_area < 1:
            return crop_and_resize(image, draws, crop)
        return tf.ensure_shape(image, [crop.size, crop.size, 3])

    image = tf.TensorSpec([crop.size, crop.size, 3], tf.uint8)
    return tf.map_fn(one, (columns, randomness, places), fn_output_signature=image, parallel_iterations=1)


def decode_and_crop(
    features: dict[str, tf.Tensor], randomness: tf.Tensor, crop: Crop, *, any_viewed: bool = True
) -> tf.Tensor:
    """Returns one image, decoded, cropped and resized.

    Args:
      features: `encoded` (bytes), `format` (`jpeg`, `png`, ..., `VIEWED` or `raw`), `height` and `width` in pixels
        (int64; 0 if unknown), all scalars.
      randomness: [CROP_DRAWS] float32 in [0, 1); unused if the whole image is kept.
      crop: how to crop and resize.
      any_viewed: as in `decode`.

    Returns:
      [size, size, 3] uint8. Downsizing averages over areas, upsizing interpolates linearly.
    """
    return crop_and_resize(decode(features, crop, any_viewed=any_viewed), randomness, crop)


def decode(features: dict[str, tf.Tensor], crop: Crop | None = None, *, any_viewed: bool = True) -> tf.Tensor:
    """Returns one whole image, [height, width, 3] uint8.

    Args:
      features: as in `decode_and_crop`.
      crop: what it is decoded for; None: every pixel of it.
      any_viewed: whether the format may be `VIEWED`. Its branch has hundreds of operations, which take longer to trace
        than the rest of a reader.
    """
    encoded, height, width = features["encoded"], features["height"], features["width"]

    def raw_pixels() -> tf.Tensor:
        # reshape would infer a side of -1, and an empty image would fail only later, in resize.
        sides = [tf.maximum(height, 1), tf.maximum(width, 1), 3]
        return tf.reshape(tf.io.decode_raw(encoded, tf.uint8), sides)

    branches = [(features["format"] == "raw", raw_pixels)]
    if any_viewed:
        branches.append((features["format"] == VIEWED, lambda: _as_viewed(encoded)))
    if crop and crop.decode == "fast":
        branches.append((tf.strings.substr(encoded, 0, 3) == _JPEG, functools.partial(_decode_scaled, encoded, crop)))
    return tf.case(branches, default=lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False))


def _decode_scaled(encoded: tf.Tensor, crop: Crop) -> tf.Tensor:
    """Returns a JPEG file at the smallest scale at which no crop has to be enlarged, [height, width, 3] uint8."""
    sides = tf.image.extract_jpeg_shape(encoded)[:2]
    needed = _padded_sides(sides, crop.size) if crop.resize == "pad" else tf.constant([crop.size, crop.size])
    if crop.min_area < 1:
        shortest = math.sqrt(crop.min_area / _MAX_ASPECT)  # side of the smallest crop, as a share of the image's
        needed = tf.cast(tf.math.ceil(tf.cast(needed, tf.float32) / shortest), tf.int32)
    fits = tf.reduce_all([-(-sides // scale) >= needed for scale in _SCALES[1:]], 1)
    decoders = [functools.partial(tf.io.decode_jpeg, encoded, channels=3, ratio=scale) for scale in _SCALES]
    return tf.switch_case(tf.reduce_sum(tf.cast(fits, tf.int32)), decoders)


# As one node of the graph: TensorFlow visits every node of a branch that is inlined, also where it is not taken.
_as_viewed = tf.function(
    decode_as_viewed,
    input_signature=[tf.TensorSpec([], tf.string)],
    autograph=False,
    experimental_attributes={"_noinline": True},
)


def crop_and_resize(image: tf.Tensor, randomness: tf.Tensor, crop: Crop) -> tf.Tensor:
    """Crops and resizes a decoded image, [height, width, 3] uint8; returns [size, size, 3] uint8."""
    region = image
    if crop.min_area < 1:
        region = _random_crop(image, randomness, crop)
    elif crop.resize == "crop":
        region = _central_square(image)
    if crop.resize == "pad":
        return _padded(_scaled(region, _padded_sides(tf.shape(image)[:2], crop.size)), crop.size)
    return tf.ensure_shape(_scaled(region, [crop.size, crop.size]), [crop.size, crop.size, 3])


def resize(image: tf.Tensor, crop: Crop) -> tf.Tensor:
    """Resizes a whole image as evaluation does; arguments and result as `crop_and_resize`."""
    return crop_and_resize(image, tf.zeros([CROP_DRAWS]), crop.whole)


def _random_crop(image: tf.Tensor, randomness: tf.Tensor, crop: Crop) -> tf.Tensor:
    shape = tf.shape(image)
    height, width = tf.cast(shape[0], tf.float32), tf.cast(shape[1], tf.float32)
    shortest = tf.minimum(height, width)
    whole = shortest * shortest if crop.resize == "crop" else height * width
    area = whole * (crop.min_area + (crop.max_area - crop.min_area) * randomness[0])
    aspect = tf.exp((2.0 * randomness[1] - 1.0) * math.log(_MAX_ASPECT))  # width to height
    if crop.resize == "pad":
        aspect *= width / height
    # If one side exceeds the image, the other grows to preserve the area.
    crop_height = tf.clip_by_value(tf.round(tf.maximum(tf.sqrt(area / aspect), area / width)), 1.0, height)
    crop_width = tf.clip_by_value(tf.round(tf.maximum(tf.sqrt(area * aspect), area / height)), 1.0, width)
    top = tf.cast(tf.floor(randomness[2] * (height - crop_height + 1.0)), tf.int32)
    left = tf.cast(tf.floor(randomness[3] * (width - crop_width + 1.0)), tf.int32)
    return image[top : top + tf.cast(crop_height, tf.int32), left : left + tf.cast(crop_width, tf.int32)]


def _central_square(image: tf.Tensor) -> tf.Tensor:
    sides = tf.shape(image)[:2]
    side = tf.reduce_min(sides)
    top, left = tf.unstack((sides - side) // 2)
    return image[top : top + side, left : left + side]


def _padded_sides(sides: tf.Tensor, size: int) -> tf.Tensor:
    """Returns height and width, [2] int32, of an image with these sides once its longer one is `size`."""
    longest = tf.reduce_max(sides)
    return tf.maximum((2 * sides * size + longest) // (2 * longest), 1)


def _padded(image: tf.Tensor, size: int) -> tf.Tensor:
    """Centers an image of at most `size` by `size` on gray."""
    missing = size - tf.shape(image)[:2]
    before = missing // 2
    margins = tf.concat([tf.stack([before, missing - before], 1), [[0, 0]]], 0)
    padded = tf.pad(image, margins, constant_values=tf.constant(_PADDING, tf.uint8))
    return tf.ensure_shape(padded, [size, size, 3])


def _scaled(image: tf.Tensor, sides: tf.Tensor | list[int]) -> tf.Tensor:
    """Scales [height, width, 3] uint8 to [*sides, 3] uint8: area averaging if a side is larger, else bilinear."""
    shape = tf.shape(image)[:2]

    def scaled(method: str) -> tf.Tensor:
        return tf.cast(tf.round(tf.image.resize(image, sides, method=method)), tf.uint8)

    return tf.cond(
        tf.reduce_all(shape == sides),
        lambda: image,
        lambda: tf.cond(tf.reduce_any(shape > sides), lambda: scaled("area"), lambda: scaled("bilinear")),
    )
