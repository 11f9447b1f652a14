"""Mixup and CutMix: an image blended with another one, and its label likewise.

    mixing = Mixing(mixup=0.2, cutmix=1.0)
    draws = draw(mixing, 16, seed=0, step=step, stream=stream)      # on the host
    mixed = mix(pixels, labels, draws)                              # on the device, inside the step
    losses = mixed.shares * loss_of(mixed.labels) + (1 - mixed.shares) * loss_of(mixed.partners)

Mixup (Zhang et al. 2018) adds `share` of an image to `1 - share` of its partner. CutMix (Yun et al. 2019) puts a box of
the partner into the image; the box has `1 - share` of the area, less what lies outside, and the labels' shares follow
the area that was really covered. `share` is drawn from Beta(alpha, alpha). Where both are on, each image gets one of
them by chance. Shares and boxes are an image's own and not a whole batch's as in the papers' programs, so that the
mixture of a step does not depend on how many virtual replicas it is divided into.

The partner is the next image of the same virtual replica, and the first one the last one's: the order is random as it
is. All numbers follow from `(run seed, step, virtual replica)`, so a mixed batch is the same on any hardware.

What training measures under mixing: `loss` is that of the mixed labels, and top-1, top-5 and the other metrics take the
label with the larger share for the right one. So training figures look worse than the model is, and a gap between
training and validation images can be below 0. Evaluation never mixes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import tensorflow as tf

# Beside the run's seed, streams of their own: a layer's seeds come from the run's seed itself.
_UNIFORM_STREAM, _GAMMA_STREAM = 0x6D69786564756E69, 0x6D6978656467616D
_NEVER = 2**62


@dataclass(frozen=True)
class Mixing:
    """How images are mixed.

    Attributes:
      mixup: alpha of mixup's Beta(alpha, alpha), 0 or more; 0 for no mixup.
      cutmix: likewise for CutMix.
      probability: share of the images that are mixed, in [0, 1].
      until_step: images of this step and later ones are left as they are.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    until_step: int = _NEVER

    @property
    def is_on(self) -> bool:
        """Whether any image is ever mixed."""
        return (self.mixup > 0 or self.cutmix > 0) and self.probability > 0 and self.until_step > 0


class Mixed(NamedTuple):
    """A virtual replica's mixed images.

    Attributes:
      pixels: [batch, height, width, 3] float32 in [0, 255].
      labels: [batch] int32, the images' own.
      partners: [batch] int32, their partners' labels.
      shares: [batch] float32 in [0, 1], what of each image and of its label is its own.
    """

    pixels: tf.Tensor
    labels: tf.Tensor
    partners: tf.Tensor
    shares: tf.Tensor

    @property
    def main_labels(self) -> tf.Tensor:
        """Each image's label with the larger share, [batch] int32; its own where both have half."""
        return tf.where(self.shares >= 0.5, self.labels, self.partners)


def draw(mixing: Mixing, number: int, *, seed: int, step: tf.Tensor, stream: tf.Tensor) -> tf.Tensor:
    """Draws what `mix` needs, on the host, where the numbers are the same whatever the devices are.

    Args:
      mixing: how images are mixed; `is_on`.
      number: images of the virtual replica.
      seed: the run's seed.
      step: int64 scalar.
      stream: int64 scalar, another one for each virtual replica of each step.

    Returns:
      [number, 4] float32: the share that stays an image's own in [0, 1], 1 where it is not mixed; whether it is cut, 1
      or 0; and the centre of the cut, in heights and widths, in [0, 1).
    """

    def key(of: int) -> tf.Tensor:
        return tf.stack([tf.constant(seed ^ of, tf.int64), stream])

    with tf.device("/CPU:0"):
        is_mixed, kind, top, left, *others = tf.unstack(
            tf.random.stateless_uniform([6, number], key(_UNIFORM_STREAM), alg="philox")
        )
        if mixing.mixup > 0 and mixing.cutmix > 0:
            is_cut = kind < 0.5
        else:
            is_cut = tf.fill([number], mixing.cutmix > 0)
        alpha = tf.where(is_cut, mixing.cutmix, mixing.mixup)
        # A ratio of gammas, by their logarithms, as those of a small alpha are often 0 in float32. A power of a uniform
        # number makes Gamma(alpha) of Gamma(alpha + 1) (Marsaglia and Tsang 2000, section 6).
        gammas = tf.math.log(tf.random.stateless_gamma([2, number], key(_GAMMA_STREAM), alpha + 1.0))
        own, partners = tf.unstack(gammas + tf.math.log(1.0 - tf.stack(others)) / alpha)
        mixes = (is_mixed < mixing.probability) & (step < mixing.until_step)
        share = tf.where(mixes, tf.sigmoid(own - partners), 1.0)
        return tf.stack([share, tf.cast(is_cut, tf.float32), top, left], 1)


def mix(pixels: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor) -> Mixed:
    """Mixes each image with the next one, a pure function.

    Args:
      pixels: [batch, height, width, 3] float32.
      labels: [batch] int32.
      draws: [batch, 4] float32, from `draw`.
    """
    height, width = pixels.shape[1:3]
    share, is_cut, top, left = tf.unstack(draws, axis=1)
    side = tf.sqrt(1.0 - share)
    rows, columns = _covered(top, side, height), _covered(left, side, width)  # [batch, height], [batch, width]
    box = rows[:, :, tf.newaxis] * columns[:, tf.newaxis, :]
    area = tf.reduce_sum(rows, 1) * tf.reduce_sum(columns, 1)
    cuts = is_cut > 0.5
    # [batch, height, width, 1]: what of each pixel is the image's own
    own = tf.where(cuts[:, tf.newaxis, tf.newaxis], 1.0 - box, share[:, tf.newaxis, tf.newaxis])[..., tf.newaxis]
    return Mixed(
        own * pixels + (1.0 - own) * tf.roll(pixels, -1, 0),
        labels,
        tf.roll(labels, -1, 0),
        tf.where(cuts, 1.0 - area / (height * width), share),
    )


def _covered(centre: tf.Tensor, side: tf.Tensor, length: int) -> tf.Tensor:
    """Returns [batch, length] float32: 1 where a row or column lies in the cut, else 0."""
    size = tf.round(side * length)
    start = tf.floor(centre * length) - tf.floor(size / 2.0)
    places = tf.range(length, dtype=tf.float32)
    starts, ends = start[:, tf.newaxis], (start + size)[:, tf.newaxis]
    return tf.cast((places >= starts) & (places < ends), tf.float32)
