"""Host work on one image: decode, cut out a random part, resize. What follows the crop is `augmentation`'s."""

import math
from typing import NamedTuple

import tensorflow as tf

from convoy.input_pipeline.augment.pipeline import CROP_DRAWS
from convoy.input_pipeline.reading.cache import PixelCache

_MAX_LOG_ASPECT = math.log(4 / 3)


class Crop(NamedTuple):
    """What the host makes of an image.

    Attributes:
      size: side of the square result in pixels.
      min_area: smallest share of the image's area that a random crop keeps, in (0, 1]; 1 keeps the whole image. Below
        1, aspect ratios vary from 3:4 to 4:3 ("Inception" crop, Szegedy et al. 2015).
      max_area: largest share, from `min_area` to 1.
    """

    size: int
    min_area: float = 1.0
    max_area: float = 1.0


def decode_and_crop_all(
    features: dict[str, tf.Tensor],
    randomness: tf.Tensor | None,
    crop: Crop,
    usual_number: int,
    cache: PixelCache | None = None,
) -> tf.Tensor:
    """Returns several images, each as `decode_and_crop` gives it.

    Args:
      features: as there, each [n].
      randomness: [n, CROP_DRAWS or more] float32; may be None where whole images are kept.
      crop: as there.
      usual_number: the n to be fast for.
      cache: gives images that are `kept`, and is given those `to_keep`, by `index`: whole ones where `crop` is random,
        else as they are returned. All three are features then, [n].

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
        return decode_and_crop(*inputs, crop)

    def one_that_fits(encoded: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.io.decode_image(encoded, channels=3, expand_animations=False), image.shape)

    def all_decoded() -> tf.Tensor:
        return tf.map_fn(one, (encoded_images, randomness), fn_output_signature=image, parallel_iterations=1)

    def all_as_they_come() -> tf.Tensor:
        if not cache:
            return all_decoded()
        return tf.cond(
            tf.reduce_any(columns["kept"] | columns["to_keep"]),
            lambda: _all_through_the_cache(columns, randomness, crop, cache),
            all_decoded,
        )

    def all_that_fit() -> tf.Tensor:
        images = tf.stack([one_that_fits(columns["encoded"][k]) for k in range(usual_number)])
        if not cache:
            return images
        return tf.cond(tf.reduce_any(columns["to_keep"]), lambda: cache.keep(columns["index"], images), lambda: images)

    if crop.min_area < 1:
        return all_as_they_come()
    # A loop and an image's own conditions cost half as much as its decoding; mostly neither is needed.
    fits = (columns["format"] != "raw") & (columns["height"] == crop.size) & (columns["width"] == crop.size)
    if cache:
        fits &= ~columns["kept"]
    ways = [(tf.reduce_all(fits) & (number == usual_number), all_that_fit)]
    if cache:
        ways.append((tf.reduce_all(columns["kept"]), lambda: cache.take_all(columns["index"], crop.size)))
    return tf.case(ways, default=all_as_they_come)


def _all_through_the_cache(
    columns: dict[str, tf.Tensor], randomness: tf.Tensor, crop: Crop, cache: PixelCache
) -> tf.Tensor:
    pixels, places = cache.take(columns["index"], columns["kept"])

    def one(inputs: tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]) -> tf.Tensor:
        features, draws, place = inputs

        def taken() -> tf.Tensor:
            start, height, width = tf.unstack(place, num=3)
            return tf.reshape(pixels[start : start + height * width * 3], [height, width, 3])

        def decoded() -> tf.Tensor:
            image = decode(features) if crop.min_area < 1 else decode_and_crop(features, draws, crop)
            return tf.cond(features["to_keep"], lambda: cache.keep(features["index"], image), lambda: image)

        image = tf.cond(features["kept"], taken, decoded)
        if crop.min_area < 1:
            return crop_and_resize(image, draws, crop)
        return tf.ensure_shape(image, [crop.size, crop.size, 3])

    image = tf.TensorSpec([crop.size, crop.size, 3], tf.uint8)
    return tf.map_fn(one, (columns, randomness, places), fn_output_signature=image, parallel_iterations=1)


def decode_and_crop(features: dict[str, tf.Tensor], randomness: tf.Tensor, crop: Crop) -> tf.Tensor:
    """Returns one image as the device takes it.

    Args:
      features: `encoded` (bytes), `format` (`jpeg`, `png`, ... or `raw`), `height` and `width` in pixels (int64; 0
        where they are not known), all scalars.
      randomness: [CROP_DRAWS] float32 in [0, 1); not read where the whole image is kept.
      crop: what to cut out.

    Returns:
      [size, size, 3] uint8. Downsizing averages over areas, upsizing interpolates linearly.
    """
    return crop_and_resize(decode(features), randomness, crop)


def decode(features: dict[str, tf.Tensor]) -> tf.Tensor:
    """Returns one image, [height, width, 3] uint8, whole. `features` are those of `decode_and_crop`."""
    encoded, height, width = features["encoded"], features["height"], features["width"]

    def raw_pixels() -> tf.Tensor:
        # A side of -1 would be whatever fits, and an image of no pixels fails only once it is resized.
        sides = [tf.maximum(height, 1), tf.maximum(width, 1), 3]
        return tf.reshape(tf.io.decode_raw(encoded, tf.uint8), sides)

    return tf.cond(
        features["format"] == "raw",
        raw_pixels,
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )


def crop_and_resize(image: tf.Tensor, randomness: tf.Tensor, crop: Crop) -> tf.Tensor:
    """Returns one image, [height, width, 3] uint8, as `decode_and_crop` returns what it decoded."""
    if crop.min_area < 1:
        image = _random_crop(image, randomness, crop)
    return resize(image, crop.size)


def _random_crop(image: tf.Tensor, randomness: tf.Tensor, crop: Crop) -> tf.Tensor:
    shape = tf.shape(image)
    height, width = tf.cast(shape[0], tf.float32), tf.cast(shape[1], tf.float32)
    area = height * width * (crop.min_area + (crop.max_area - crop.min_area) * randomness[0])
    aspect = tf.exp((2.0 * randomness[1] - 1.0) * _MAX_LOG_ASPECT)  # width to height
    # Where one side does not fit into the image, the other grows until the area is kept.
    crop_height = tf.clip_by_value(tf.round(tf.maximum(tf.sqrt(area / aspect), area / width)), 1.0, height)
    crop_width = tf.clip_by_value(tf.round(tf.maximum(tf.sqrt(area * aspect), area / height)), 1.0, width)
    top = tf.cast(tf.floor(randomness[2] * (height - crop_height + 1.0)), tf.int32)
    left = tf.cast(tf.floor(randomness[3] * (width - crop_width + 1.0)), tf.int32)
    return image[top : top + tf.cast(crop_height, tf.int32), left : left + tf.cast(crop_width, tf.int32)]


def resize(image: tf.Tensor, size: int) -> tf.Tensor:
    """Returns an image, [height, width, 3] uint8, as [size, size, 3] uint8; area when larger, else bilinear."""
    shape = tf.shape(image)

    def resized(method: str) -> tf.Tensor:
        return tf.cast(tf.round(tf.image.resize(image, [size, size], method=method)), tf.uint8)

    image = tf.cond(
        tf.reduce_all(shape[:2] == size),
        lambda: image,
        lambda: tf.cond(tf.reduce_any(shape[:2] > size), lambda: resized("area"), lambda: resized("bilinear")),
    )
    return tf.ensure_shape(image, [size, size, 3])
