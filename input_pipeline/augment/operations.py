"""Batched image operations: pure functions of images and of one or two numbers per image.

    images = geometry(images, degrees=tf.constant([30.0, -10.0]))      # [2, height, width, 3] uint8
    images = to_bytes(contrast(tf.cast(images, tf.float32), tf.constant([1.4, 0.8])))

Byte operations take and return uint8. Float operations take and return float32 in [0, 255] (results may exceed the
range) and run on any device, with or without XLA. The result for an image is bit-identical whatever other images are in
the batch: sums over an image add integers that float32 represents exactly, and functions whose last bits depend on an
element's position in a vector, such as the sine, are computed in float64 and rounded.

The formulas, and the results on bytes, are Pillow's (`ImageOps`, `ImageEnhance`, `Image.transform`) unless a docstring
says otherwise. Geometry samples the nearest pixel and fills with black.
"""

import math
from collections.abc import Sequence

import tensorflow as tf

_GREY = (19595.0, 38470.0, 7471.0)  # weights of red, green and blue in 65536ths: ITU-R 601, as rounded by Pillow
_ERASED = 128.0
_ERASED_LOG_ASPECT = math.log(1 / 0.3)


def to_bytes(pixels: tf.Tensor) -> tf.Tensor:
    """Converts float32 pixels to uint8: clipped, then rounded down, as in Pillow."""
    return tf.cast(tf.clip_by_value(pixels, 0.0, 255.0), tf.uint8)


def flip(images: tf.Tensor, chosen: tf.Tensor) -> tf.Tensor:
    """Flips the images where `chosen`, [n] bool, horizontally. Any dtype."""
    return tf.where(_each(chosen), tf.reverse(images, [2]), images)


def add_brightness(pixels: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Adds `share`, [n] in [-1, 1], of the full range. Unlike Pillow's enhancement, this changes black too."""
    return pixels + 255.0 * _each(share)


def brightness(pixels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Multiplies values by `factor`, [n]."""
    return pixels * _each(factor)


def contrast(pixels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Scales the distance from the mean grey by `factor`, [n]."""
    rows = tf.reduce_sum(_grey(pixels), 2)
    # Row sums are integers below 2**24; the sum of a large image needs float64.
    number = tf.cast(tf.reduce_prod(tf.shape(pixels)[1:3]), tf.float64)
    mean = tf.reduce_sum(tf.cast(rows, tf.float64), 1) / number
    mean = tf.cast(tf.floor(mean + 0.5), tf.float32)[:, tf.newaxis, tf.newaxis]
    return mean + (pixels - mean) * _each(factor)


def saturation(pixels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Scales the distance from each pixel's grey by `factor`, [n]."""
    grey = _grey(pixels)
    return grey + (pixels - grey) * _each(factor)


def hue(pixels: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Rotates hues by `share`, [n], of the colour circle, in floating point (Pillow quantizes to 256 hues)."""
    hsv = tf.image.rgb_to_hsv(tf.clip_by_value(pixels, 0.0, 255.0) / 255.0)
    turned = tf.math.floormod(hsv[..., :1] + _each(share), 1.0)
    return 255.0 * tf.image.hsv_to_rgb(tf.concat([turned, hsv[..., 1:]], -1))


def sharpness(pixels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Scales the distance from the 3x3-smoothed image by `factor`, [n]; border pixels are unchanged."""
    height, width = tf.shape(pixels)[1], tf.shape(pixels)[2]
    # The centre has weight 5, its neighbours 1: sum all nine, then add the centre four more times.
    columns = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
    sums = columns[:, :, :-2] + columns[:, :, 1:-1] + columns[:, :, 2:] + 4.0 * pixels[:, 1:-1, 1:-1]
    smooth = tf.pad(tf.floor(sums / 13.0 + 0.5), [[0, 0], [1, 1], [1, 1], [0, 0]])
    rows, places = tf.range(height)[:, tf.newaxis], tf.range(width)
    inside = (rows > 0) & (rows < height - 1) & (places > 0) & (places < width - 1)
    smooth = tf.where(inside[..., tf.newaxis], smooth, pixels)
    return smooth + (pixels - smooth) * _each(factor)


def posterize(images: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Keeps the `bits` most significant bits, [n] int32 in [0, 8], of each byte."""
    return tf.bitwise.bitwise_and(images, _each(tf.cast(256 - tf.bitwise.left_shift(1, 8 - bits), tf.uint8)))


def solarize(images: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """Inverts bytes of at least `threshold`, [n] float32."""
    return tf.where(tf.cast(images, tf.float32) < _each(threshold), images, 255 - images)


def autocontrast(images: tf.Tensor) -> tf.Tensor:
    """Stretches each channel's bytes so that the least becomes 0 and the largest 255; one of a single value stays."""
    low = tf.cast(tf.reduce_min(images, [1, 2]), tf.float64)[..., tf.newaxis]  # [n, 3, 1]
    high = tf.cast(tf.reduce_max(images, [1, 2]), tf.float64)[..., tf.newaxis]
    values = tf.range(256, dtype=tf.float64)
    scale = tf.where(high > low, 255.0 / tf.maximum(high - low, 1.0), 1.0)
    offset = tf.where(high > low, -low * scale, 0.0)
    return _looked_up(images, tf.cast(tf.clip_by_value(values * scale + offset, 0.0, 255.0), tf.uint8))


def equalize(images: tf.Tensor) -> tf.Tensor:
    """Makes each channel's bytes as evenly frequent as a function of the byte can."""
    counts = tf.math.bincount(_places_in_tables(images), minlength=768 * tf.shape(images)[0])
    counts = tf.reshape(counts, [-1, 3, 256])
    last = tf.reduce_max(tf.where(counts > 0, tf.range(256), 0), 2, keepdims=True)
    of_last = tf.gather(counts, last, batch_dims=2)
    step = (tf.reduce_sum(counts, 2, keepdims=True) - of_last) // 255
    spread = (step // 2 + tf.cumsum(counts, 2, exclusive=True)) // tf.maximum(step, 1)
    return _looked_up(images, tf.cast(tf.where(step > 0, tf.minimum(spread, 255), tf.range(256)), tf.uint8))


def erase(
    images: tf.Tensor, chosen: tf.Tensor, area: tf.Tensor, aspect: tf.Tensor, top: tf.Tensor, left: tf.Tensor
) -> tf.Tensor:
    """Paints a rectangle grey (Zhong et al. 2020, "Random erasing data augmentation", with a constant). Of any dtype.

    Args:
      images: [n, height, width, 3].
      chosen: [n] bool, which of them.
      area: [n] float32 in (0, 1], of the rectangle as a share of the image; where a side does not fit, it is cut off.
      aspect: [n] float32 in [0, 1): of height to width from 0.3 to 1 / 0.3, evenly on a logarithmic scale.
      top: [n] float32 in [0, 1), where it lies between the upper and the lower edge.
      left: likewise.
    """
    height, width = (tf.cast(side, tf.float32) for side in (tf.shape(images)[1], tf.shape(images)[2]))
    ratio = tf.cast(tf.exp(tf.cast(2.0 * aspect - 1.0, tf.float64) * _ERASED_LOG_ASPECT), tf.float32)
    rows = tf.clip_by_value(tf.round(tf.sqrt(area * height * width * ratio)), 1.0, height)
    columns = tf.clip_by_value(tf.round(tf.sqrt(area * height * width / ratio)), 1.0, width)
    first_row, first_column = tf.floor(top * (height - rows + 1.0)), tf.floor(left * (width - columns + 1.0))
    y, x = tf.range(height)[:, tf.newaxis, tf.newaxis], tf.range(width)[:, tf.newaxis]
    inside = (y >= _each(first_row)) & (y < _each(first_row + rows))
    inside &= (x >= _each(first_column)) & (x < _each(first_column + columns))
    return tf.where(inside & _each(chosen), tf.cast(_ERASED, images.dtype), images)


def affine(images: tf.Tensor, matrix: Sequence[tf.Tensor | float]) -> tf.Tensor:
    """Takes each pixel of the bytes from where a matrix sends it.

    Args:
      images: [n, height, width, 3] uint8.
      matrix: a, b, c, d, e, f, each [n] float32 or a number: what is at (x, y) in the result was at
        (a x + b y + c, d x + e y + f), counted in pixels from the upper left corner.
    """
    a, b, c, d, e, f = (tf.broadcast_to(tf.cast(entry, tf.float32), tf.shape(images)[:1]) for entry in matrix)
    none = tf.zeros_like(a)
    # TensorFlow counts from the centre of the first pixel.
    centred = [a, b, c + 0.5 * (a + b) - 0.5, d, e, f + 0.5 * (d + e) - 0.5, none, none]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack(centred, 1),
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )


def geometry(
    images: tf.Tensor,
    *,
    shear_x: tf.Tensor | float = 0.0,
    shear_y: tf.Tensor | float = 0.0,
    move_x: tf.Tensor | float = 0.0,
    move_y: tf.Tensor | float = 0.0,
    degrees: tf.Tensor | float = 0.0,
) -> tf.Tensor:
    """Slants, moves or turns the bytes of each image; what does two of these at once adds up their matrices.

    Args:
      images: [n, height, width, 3] uint8.
      shear_x: by what share of its distance from the upper edge each row moves to the left.
      shear_y: by what share of its distance from the left edge each column moves up.
      move_x: pixels to the right.
      move_y: pixels down.
      degrees: of a turn about the centre, counterclockwise.
    """
    height, width = (tf.cast(side, tf.float32) for side in (tf.shape(images)[1], tf.shape(images)[2]))
    angle = tf.cast(degrees, tf.float64) * (math.pi / 180.0)
    sine, cosine = tf.cast(tf.sin(angle), tf.float32), tf.cast(tf.cos(angle), tf.float32)
    centre_x = (width - cosine * width + sine * height) / 2.0
    centre_y = (height - sine * width - cosine * height) / 2.0
    return affine(images, [cosine, shear_x - sine, centre_x - move_x, shear_y + sine, cosine, centre_y - move_y])


def _each(values: tf.Tensor) -> tf.Tensor:
    """Returns a number an image, [n], as it goes with pixels, [n, 1, 1, 1]."""
    return values[:, tf.newaxis, tf.newaxis, tf.newaxis]


def _grey(pixels: tf.Tensor) -> tf.Tensor:
    """Returns each pixel's grey, [n, height, width, 1] float32, a whole number."""
    # No product of matrices: on a GPU it would round to TensorFloat-32.
    red, green, blue = tf.unstack(pixels, axis=-1)
    weighted = _GREY[0] * red + _GREY[1] * green + _GREY[2] * blue
    return tf.floor((weighted + 32768.0) / 65536.0)[..., tf.newaxis]


def _places_in_tables(images: tf.Tensor) -> tf.Tensor:
    """Returns where each byte stands in tables of 256 entries a channel and image, one after another; int32, flat."""
    first = 256 * tf.reshape(tf.range(3 * tf.shape(images)[0]), [-1, 1, 1, 3])
    return tf.reshape(tf.cast(images, tf.int32) + first, [-1])


def _looked_up(images: tf.Tensor, tables: tf.Tensor) -> tf.Tensor:
    """Returns the entry of each byte in its channel's table, of [n, 3, 256] uint8."""
    return tf.reshape(tf.gather(tf.reshape(tables, [-1]), _places_in_tables(images)), tf.shape(images))
