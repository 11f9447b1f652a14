"""Batched image operations: pure functions of images and of one or two numbers per image.

    images = geometry(images, degrees=tf.constant([30.0, -10.0]))      # [2, height, width, 3] uint8
    images = to_bytes(contrast(tf.cast(images, tf.float32), tf.constant([1.4, 0.8])))

Byte operations take and return uint8. Float operations take and return float32 in [0, 255] (results may exceed the
range) and run on any device, with or without XLA. The result for an image is bit-identical whatever other images are in
the batch: sums over an image add integers that float32 represents exactly, and functions whose last bits depend on an
element's position in a vector, such as the sine, are computed in float64 and rounded.

The formulas, and the results on bytes, are Pillow's (`ImageOps`, `ImageEnhance`, `Image.transform`) unless a docstring
notes otherwise. Geometry samples the nearest pixel and fills with black.
"""

import math
from collections.abc import Sequence

import tensorflow as tf

_GRAY = (19595.0, 38470.0, 7471.0)  # weights of red, green and blue in 65536ths: ITU-R 601, as rounded by Pillow
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
    """Scales the distance from the mean gray by `factor`, [n]."""
    rows = tf.reduce_sum(_gray(pixels), 2)
    # Row sums are integers below 2**24; the sum of a large image needs float64.
    num_pixels = tf.cast(tf.reduce_prod(tf.shape(pixels)[1:3]), tf.float64)
    mean = tf.reduce_sum(tf.cast(rows, tf.float64), 1) / num_pixels
    mean = tf.cast(tf.floor(mean + 0.5), tf.float32)[:, tf.newaxis, tf.newaxis]
    return mean + (pixels - mean) * _each(factor)


def saturation(pixels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Scales the distance from each pixel's gray by `factor`, [n]."""
    gray = _gray(pixels)
    return gray + (pixels - gray) * _each(factor)


def hue(pixels: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Rotates hues by `share`, [n], of the color circle, in floating point (Pillow quantizes to 256 hues)."""
    hsv = tf.image.rgb_to_hsv(tf.clip_by_value(pixels, 0.0, 255.0) / 255.0)
    rotated = tf.math.floormod(hsv[..., :1] + _each(share), 1.0)
    return 255.0 * tf.image.hsv_to_rgb(tf.concat([rotated, hsv[..., 1:]], -1))


def sharpness(pixels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Scales the distance from the 3x3-smoothed image by `factor`, [n]; border pixels are unchanged."""
    height, width = tf.shape(pixels)[1], tf.shape(pixels)[2]
    # The center has weight 5, its neighbors 1: sum all nine, then add the center four more times.
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
    """Scales each channel so that its minimum becomes 0 and its maximum 255. A constant channel is unchanged."""
    low = tf.cast(tf.reduce_min(images, [1, 2]), tf.float64)[..., tf.newaxis]  # [n, 3, 1]
    high = tf.cast(tf.reduce_max(images, [1, 2]), tf.float64)[..., tf.newaxis]
    values = tf.range(256, dtype=tf.float64)
    scale = tf.where(high > low, 255.0 / tf.maximum(high - low, 1.0), 1.0)
    offset = tf.where(high > low, -low * scale, 0.0)
    return _looked_up(images, tf.cast(tf.clip_by_value(values * scale + offset, 0.0, 255.0), tf.uint8))


def equalize(images: tf.Tensor) -> tf.Tensor:
    """Equalizes the histogram of each channel."""
    counts = tf.math.bincount(_table_indices(images), minlength=768 * tf.shape(images)[0])
    counts = tf.reshape(counts, [-1, 3, 256])
    last = tf.reduce_max(tf.where(counts > 0, tf.range(256), 0), 2, keepdims=True)
    last_count = tf.gather(counts, last, batch_dims=2)
    step = (tf.reduce_sum(counts, 2, keepdims=True) - last_count) // 255
    spread = (step // 2 + tf.cumsum(counts, 2, exclusive=True)) // tf.maximum(step, 1)
    return _looked_up(images, tf.cast(tf.where(step > 0, tf.minimum(spread, 255), tf.range(256)), tf.uint8))


def erase(
    images: tf.Tensor, chosen: tf.Tensor, area: tf.Tensor, aspect: tf.Tensor, top: tf.Tensor, left: tf.Tensor
) -> tf.Tensor:
    """Fills a rectangle with gray (Zhong et al. 2020, "Random erasing data augmentation", with a constant).

    Args:
      images: [n, height, width, 3], any dtype.
      chosen: [n] bool, the images to change.
      area: [n] float32 in (0, 1], the rectangle's share of the image area; sides are limited to the image.
      aspect: [n] float32 in [0, 1), the aspect ratio height / width from 0.3 to 1 / 0.3, on a logarithmic scale.
      top: [n] float32 in [0, 1), vertical position: 0 is the upper edge.
      left: [n] float32 in [0, 1), horizontal position: 0 is the left edge.
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
    """Applies an affine transformation with nearest-neighbor sampling; pixels from outside the image are 0.

    Args:
      images: [n, height, width, 3] uint8.
      matrix: a, b, c, d, e, f, each [n] float32 or a number: output pixel (x, y) is input pixel
        (a x + b y + c, d x + e y + f), in pixels from the upper left corner.
    """
    a, b, c, d, e, f = (tf.broadcast_to(tf.cast(entry, tf.float32), tf.shape(images)[:1]) for entry in matrix)
    zero = tf.zeros_like(a)
    # TensorFlow's origin is the center of the first pixel.
    centered = [a, b, c + 0.5 * (a + b) - 0.5, d, e, f + 0.5 * (d + e) - 0.5, zero, zero]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack(centered, 1),
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
    """Shears, translates or rotates each image. Combined arguments add their matrices.

    Args:
      images: [n, height, width, 3] uint8.
      shear_x: shift of each row to the left, in pixels per pixel of distance from the upper edge.
      shear_y: shift of each column up, in pixels per pixel of distance from the left edge.
      move_x: translation to the right in pixels.
      move_y: translation down in pixels.
      degrees: counterclockwise rotation about the center.
    """
    height, width = (tf.cast(side, tf.float32) for side in (tf.shape(images)[1], tf.shape(images)[2]))
    angle = tf.cast(degrees, tf.float64) * (math.pi / 180.0)
    sine, cosine = tf.cast(tf.sin(angle), tf.float32), tf.cast(tf.cos(angle), tf.float32)
    center_x = (width - cosine * width + sine * height) / 2.0
    center_y = (height - sine * width - cosine * height) / 2.0
    return affine(images, [cosine, shear_x - sine, center_x - move_x, shear_y + sine, cosine, center_y - move_y])


def _each(values: tf.Tensor) -> tf.Tensor:
    """Returns one value per image, [n], reshaped to [n, 1, 1, 1] to broadcast with pixels."""
    return values[:, tf.newaxis, tf.newaxis, tf.newaxis]


def _gray(pixels: tf.Tensor) -> tf.Tensor:
    """Returns each pixel's gray level, [n, height, width, 1] float32, an integer."""
    # Not a matrix product, which a GPU would round to TensorFloat-32.
    red, green, blue = tf.unstack(pixels, axis=-1)
    weighted = _GRAY[0] * red + _GRAY[1] * green + _GRAY[2] * blue
    return tf.floor((weighted + 32768.0) / 65536.0)[..., tf.newaxis]


def _table_indices(images: tf.Tensor) -> tf.Tensor:
    """Returns each value's index into the flattened tables of `_looked_up`, [n * height * width * 3] int32."""
    first = 256 * tf.reshape(tf.range(3 * tf.shape(images)[0]), [-1, 1, 1, 3])
    return tf.reshape(tf.cast(images, tf.int32) + first, [-1])


def _looked_up(images: tf.Tensor, tables: tf.Tensor) -> tf.Tensor:
    """Returns the images mapped through one lookup table per image and channel, [n, 3, 256] uint8."""
    return tf.reshape(tf.gather(tf.reshape(tables, [-1]), _table_indices(images)), tf.shape(images))
