"""From uint8 images to what the model takes, on the device, inside the step: colour, flip, scaling, casting.

Everything random comes in as numbers in [0, 1), drawn for each image from `(run seed, epoch, image index)`
(`input_pipeline.order.image_randomness`); so these are pure functions, the same on any device. Which number serves
what is settled in `Draw`; the host's crop uses the first four.
"""

import enum
from dataclasses import dataclass

import tensorflow as tf

from input_pipeline.crop import HOST_DRAWS


class Draw(enum.IntEnum):
    """Which of an image's random numbers serves which operation."""

    FLIP = HOST_DRAWS
    BRIGHTNESS = HOST_DRAWS + 1
    CONTRAST = HOST_DRAWS + 2
    SATURATION = HOST_DRAWS + 3


DRAWS = HOST_DRAWS + len(Draw)  # random numbers that an image gets in all


@dataclass(frozen=True)
class ColourRanges:
    """How far colour may move. 0 leaves an operation out.

    Attributes:
      flip: whether every second image is mirrored left to right.
      brightness: largest share of the full range added or taken away, in [0, 1].
      contrast: contrast is multiplied by a factor in [1 - contrast, 1 + contrast].
      saturation: likewise.
    """

    flip: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0


def augment(images: tf.Tensor, randomness: tf.Tensor, ranges: ColourRanges) -> tf.Tensor:
    """Returns the images flipped and recoloured.

    Args:
      images: [batch, height, width, 3] uint8.
      randomness: [batch, draws] float32 in [0, 1).
      ranges: what to do.

    Returns:
      [batch, height, width, 3] float32 in [0, 255].
    """

    def signed(draw: Draw) -> tf.Tensor:  # [batch, 1, 1, 1] in [-1, 1)
        return (2.0 * randomness[:, draw] - 1.0)[:, tf.newaxis, tf.newaxis, tf.newaxis]

    if ranges.flip:
        mirrored = randomness[:, Draw.FLIP] < 0.5
        images = tf.where(mirrored[:, tf.newaxis, tf.newaxis, tf.newaxis], tf.reverse(images, [2]), images)
    pixels = tf.cast(images, tf.float32)
    if ranges.saturation:
        grey = tf.tensordot(pixels, tf.constant([0.299, 0.587, 0.114]), 1)[..., tf.newaxis]
        pixels = grey + (pixels - grey) * (1.0 + ranges.saturation * signed(Draw.SATURATION))
    if ranges.contrast:
        mean = tf.reduce_mean(pixels, [1, 2, 3], keepdims=True)
        pixels = mean + (pixels - mean) * (1.0 + ranges.contrast * signed(Draw.CONTRAST))
    if ranges.brightness:
        pixels += 255.0 * ranges.brightness * signed(Draw.BRIGHTNESS)
    if ranges.saturation or ranges.contrast or ranges.brightness:
        pixels = tf.clip_by_value(pixels, 0.0, 255.0)
    return pixels
