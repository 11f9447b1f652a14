"""Mixup and CutMix: images and labels blended with those of another image.

    mixing = Mixing(mixup=0.2, cutmix=1.0)
    draws = draw(mixing, 16, seed=0, step=step, stream=stream)      # on the host
    mixed = mix(pixels, labels, draws)                              # on the device, inside the step
    losses = mixed.shares * loss(mixed.labels) + (1 - mixed.shares) * loss(mixed.partners)

Mixup (Zhang et al. 2018) returns `share * image + (1 - share) * partner`. CutMix (Yun et al. 2019) pastes a box of the
partner into the image; the box has `1 - share` of the area, minus the part outside the image, and the shares of the
labels are those of the area that is actually covered. `share` is drawn from Beta(alpha, alpha). If both are on, each
image gets one of them at random. Shares and boxes are drawn per image, not per batch as in the papers' code, so that
the distribution of a step's images does not depend on the number of virtual replicas.

The partner of an image is the next one in its virtual replica, and the first one for the last: the order is already
random. All random numbers depend on `(run seed, step, virtual replica)` only, so a mixed batch is the same on any
hardware.

Training metrics with mixing: `loss` is that of the mixed labels; top-1, top-5 and the other metrics count the label
with the larger share as correct. Training metrics therefore understate the model, and the gap between training and
validation can be negative. Evaluation never mixes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import tensorflow as tf

# Random streams separate from the seeds of layers, which come from the run's seed itself.
_UNIFORM_STREAM, _GAMMA_STREAM = 0x6D69786564756E69, 0x6D6978656467616D
_NEVER = 2**62


@dataclass(frozen=True)
class Mixing:
    """Settings of mixup and CutMix.

    Attributes:
      mixup: alpha of mixup's Beta(alpha, alpha), 0 or more; 0: no mixup.
      cutmix: alpha of CutMix, likewise.
      probability: fraction of the images that are mixed, in [0, 1].
      steps: the steps with mixing, as intervals: first step, and step after the last one.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    steps: tuple[tuple[int, int], ...] = ((0, _NEVER),)

    @property
    def is_on(self) -> bool:
        """Whether any image can be mixed."""
        has_steps = any(first < end for first, end in self.steps)
        return (self.mixup > 0 or self.cutmix > 0) and self.probability > 0 and has_steps


class Mixed(NamedTuple):
    """The mixed images of a virtual replica.

    Attributes:
      pixels: [batch, height, width, 3] float32 in [0, 255].
      labels: [batch] int32, original labels; [batch, num_classes] float32 with several labels per image.
      partners: likewise, labels of the partners.
      shares: [batch] float32 in [0, 1], weight of the original image and label.
    """

    pixels: tf.Tensor
    labels: tf.Tensor
    partners: tf.Tensor
    shares: tf.Tensor

    @property
    def main_labels(self) -> tf.Tensor:
        """The label with the larger share for each image, as `labels`; the original one at equal shares."""
        is_own = self.shares >= 0.5
        return tf.where(is_own[:, tf.newaxis] if len(self.labels.shape) == 2 else is_own, self.labels, self.partners)


def draw(mixing: Mixing, num_images: int, *, seed: int, step: tf.Tensor, stream: tf.Tensor) -> tf.Tensor:
    """Draws the random numbers for `mix`, on the host, so that they do not depend on the device type.

    Args:
      mixing: settings, with `is_on`.
      num_images: images of the virtual replica.
      seed: the run's seed.
      step: int64 scalar.
      stream: int64 scalar, distinct for each virtual replica and step.

    Returns:
      [num_images, 4] float32: share of the original image in [0, 1], 1 if it is not mixed; 1 for CutMix or 0 for mixup;
      vertical and horizontal center of the box as fractions of the image, in [0, 1).
    """

    def key(purpose: int) -> tf.Tensor:
        return tf.stack([tf.constant(seed ^ purpose, tf.int64), stream])

    with tf.device("/CPU:0"):
        is_mixed, kind, top, left, *others = tf.unstack(
            tf.random.stateless_uniform([6, num_images], key(_UNIFORM_STREAM), alg="philox")
        )
        if mixing.mixup > 0 and mixing.cutmix > 0:
            is_cut = kind < 0.5
        else:
            is_cut = tf.fill([num_images], mixing.cutmix > 0)
        alpha = tf.where(is_cut, mixing.cutmix, mixing.mixup)
        # Beta as a ratio of gammas, in log space: with a small alpha they are often 0 in float32. Gamma(alpha) comes
        # from Gamma(alpha + 1) and a power of a uniform number (Marsaglia and Tsang 2000, section 6).
        gammas = tf.math.log(tf.random.stateless_gamma([2, num_images], key(_GAMMA_STREAM), alpha + 1.0))
        own, partners = tf.unstack(gammas + tf.math.log(1.0 - tf.stack(others)) / alpha)
        is_on = tf.reduce_any([(step >= first) & (step < end) for first, end in mixing.steps])
        mixes = (is_mixed < mixing.probability) & is_on
        share = tf.where(mixes, tf.sigmoid(own - partners), 1.0)
        return tf.stack([share, tf.cast(is_cut, tf.float32), top, left], 1)


def mix(pixels: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor) -> Mixed:
    """Mixes each image with the next one; a pure function.

    Args:
      pixels: [batch, height, width, 3] float32.
      labels: [batch] int32, or [batch, num_classes] float32.
      draws: [batch, 4] float32, as from `draw`.
    """
    height, width = pixels.shape[1:3]
    share, is_cut, top, left = tf.unstack(draws, axis=1)
    side = tf.sqrt(1.0 - share)
    rows, columns = _covered(top, side, height), _covered(left, side, width)  # [batch, height], [batch, width]
    box = rows[:, :, tf.newaxis] * columns[:, tf.newaxis, :]
    area = tf.reduce_sum(rows, 1) * tf.reduce_sum(columns, 1)
    cuts = is_cut > 0.5
    # [batch, height, width, 1]: weight of the original image in each pixel
    own = tf.where(cuts[:, tf.newaxis, tf.newaxis], 1.0 - box, share[:, tf.newaxis, tf.newaxis])[..., tf.newaxis]
    return Mixed(
        own * pixels + (1.0 - own) * tf.roll(pixels, -1, 0),
        labels,
        tf.roll(labels, -1, 0),
        tf.where(cuts, 1.0 - area / (height * width), share),
    )


def _covered(center: tf.Tensor, side: tf.Tensor, length: int) -> tf.Tensor:
    """Returns [batch, length] float32: 1 for the rows or columns in the box, else 0."""
    size = tf.round(side * length)
    start = tf.floor(center * length) - tf.floor(size / 2.0)
    places = tf.range(length, dtype=tf.float32)
    starts, ends = start[:, tf.newaxis], (start + size)[:, tf.newaxis]
    return tf.cast((places >= starts) & (places < ends), tf.float32)
