"""Augmentation policies: sample one operation per image, and compute only the sampled operations.

    images = sampled(wide_space(), images, draws)             # TrivialAugment
    images = sampled(narrow_space(64), images, draws, strength=9)

Images with the same sampled operation are computed together, so TensorFlow's overhead per operation is paid once per
batch instead of once per image.

The wide space is that of TrivialAugment (Mueller and Hutter 2021), the narrow one that of RandAugment (Cubuk et al.
2020), with the ranges, bins and formulas of torchvision's `TrivialAugmentWide` and `RandAugment`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from convoy.input_pipeline.augment import operations
from convoy.input_pipeline.augment.operations import to_bytes

STRENGTHS = 31  # from 0 to 30

# All operations except geometry: functions of uint8 images and one strength per image that return uint8.
_FUNCTIONS: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "identity": lambda images, strength: images,
    "brightness": lambda images, strength: _enhanced(operations.brightness, images, strength),
    "saturation": lambda images, strength: _enhanced(operations.saturation, images, strength),
    "contrast": lambda images, strength: _enhanced(operations.contrast, images, strength),
    "sharpness": lambda images, strength: _enhanced(operations.sharpness, images, strength),
    "posterize": lambda images, bits: operations.posterize(images, tf.cast(bits, tf.int32)),
    "solarize": operations.solarize,
    "autocontrast": lambda images, strength: operations.autocontrast(images),
    "equalize": lambda images, strength: operations.equalize(images),
}
_GEOMETRY = ("shear_x", "shear_y", "move_x", "move_y", "degrees")


@dataclass(frozen=True)
class Space:
    """The operations and strengths of a policy.

    Attributes:
      names: arguments of `operations.geometry` and keys of `_FUNCTIONS`.
      strengths: [operations, STRENGTHS] float32, in each operation's own unit.
      is_signed: [operations] bool, whether the strength is negated with probability 1/2.
    """

    names: tuple[str, ...]
    strengths: np.ndarray
    is_signed: np.ndarray


def wide_space() -> Space:
    """Returns TrivialAugment's space."""
    return _space(shear=0.99, pixels=32.0, degrees=135.0, enhancement=0.99, lost_bits=6)


def narrow_space(image_size: int) -> Space:
    """Returns RandAugment's space for square images with this side, pixels."""
    return _space(shear=0.3, pixels=150.0 / 331.0 * image_size, degrees=30.0, enhancement=0.9, lost_bits=4)


def _space(*, shear: float, pixels: float, degrees: float, enhancement: float, lost_bits: int) -> Space:
    def up_to(largest: float) -> np.ndarray:
        return np.linspace(0.0, largest, STRENGTHS)

    zero, moved = np.zeros(STRENGTHS), np.trunc(up_to(pixels))
    bits = 8 - np.round(np.arange(STRENGTHS) / ((STRENGTHS - 1) / lost_bits))
    rows = {
        "identity": (zero, False),
        "shear_x": (up_to(shear), True),
        "shear_y": (up_to(shear), True),
        "move_x": (moved, True),
        "move_y": (moved, True),
        "degrees": (up_to(degrees), True),
        "brightness": (up_to(enhancement), True),
        "saturation": (up_to(enhancement), True),
        "contrast": (up_to(enhancement), True),
        "sharpness": (up_to(enhancement), True),
        "posterize": (bits, False),
        "solarize": (255.0 - up_to(255.0), False),
        "autocontrast": (zero, False),
        "equalize": (zero, False),
    }
    strengths, is_signed = zip(*rows.values(), strict=True)
    return Space(tuple(rows), np.stack(strengths).astype(np.float32), np.array(is_signed))


def sampled(space: Space, images: tf.Tensor, draws: tf.Tensor, *, strength: int | None = None) -> tf.Tensor:
    """Applies one sampled operation of a space to each image.

    Args:
      space: the operations and strengths to sample from.
      images: [n, height, width, 3] uint8.
      draws: [n, 3] float32 in [0, 1): select operation, sign and strength; [n, 2] if a strength is given.
      strength: index in [0, STRENGTHS) for all images; None samples it.
    """
    choice = tf.cast(draws[:, 0] * len(space.names), tf.int32)
    if strength is None:
        number = tf.cast(draws[:, 2] * STRENGTHS, tf.int32)
    else:
        number = tf.fill(tf.shape(choice), strength)
    amount = tf.gather_nd(tf.constant(space.strengths), tf.stack([choice, number], 1))
    is_negative = tf.gather(tf.constant(space.is_signed), choice) & (draws[:, 1] < 0.5)
    return apply_chosen(space.names, images, choice, tf.where(is_negative, -amount, amount))


def apply_chosen(names: tuple[str, ...], images: tf.Tensor, choice: tf.Tensor, amount: tf.Tensor) -> tf.Tensor:
    """Applies a given operation to each image.

    Args:
      names: operation names.
      images: [n, height, width, 3] uint8.
      choice: [n] int32, index into `names`.
      amount: [n] float32, strength in the operation's unit.
    """
    groups = ("geometry", *(name for name in names if name not in _GEOMETRY))
    group_of = tf.constant([groups.index(name) if name in groups else 0 for name in names])
    members = tf.dynamic_partition(tf.range(tf.size(choice)), tf.gather(group_of, choice), len(groups))
    results = []
    for group, indices in zip(groups, members, strict=True):
        group_images, amounts = tf.gather(images, indices), tf.gather(amount, indices)
        if group == "geometry":
            chosen = tf.gather(choice, indices)
            moves = {name: tf.where(chosen == names.index(name), amounts, 0.0) for name in _GEOMETRY}
            results.append(operations.geometry(group_images, **moves))
        else:
            results.append(_FUNCTIONS[group](group_images, amounts))
    return tf.ensure_shape(tf.dynamic_stitch(members, results), images.shape)


def _enhanced(
    enhance: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], images: tf.Tensor, strength: tf.Tensor
) -> tf.Tensor:
    return to_bytes(enhance(tf.cast(images, tf.float32), 1.0 + strength))
