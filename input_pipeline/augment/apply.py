"""Applies the operations of a pipeline, given each image's random numbers: on the host and on the device.

images = on_host(images, randomness, pipeline.host)           # uint8, in the reader
pixels = on_device(images, randomness, pipeline.device)       # float32, inside the step
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from convoy.core.errors import UsageError
from convoy.input_pipeline.augment import operations, policies
from convoy.input_pipeline.augment.operations import to_bytes
from convoy.input_pipeline.augment.pipeline import Operation


def on_host(images: tf.Tensor, randomness: tf.Tensor, steps: Sequence[Operation]) -> tf.Tensor:
    """Applies operations in the reader.

    Args:
      images: [n, height, width, 3] uint8.
      randomness: [n, draws] float32 in [0, 1).
      steps: the operations, in order.

    Returns:
      [n, height, width, 3] uint8.
    """
    result = _apply(images, randomness, steps)
    return result if result.dtype == tf.uint8 else to_bytes(result)


def on_device(images: tf.Tensor, randomness: tf.Tensor, steps: Sequence[Operation]) -> tf.Tensor:
    """As `on_host`, for operations that can run on a device; returns [n, height, width, 3] float32 in [0, 255]."""
    result = _apply(images, randomness, steps)
    return tf.cast(result, tf.float32) if result.dtype == tf.uint8 else tf.clip_by_value(result, 0.0, 255.0)


def _apply(images: tf.Tensor, randomness: tf.Tensor, steps: Sequence[Operation]) -> tf.Tensor:
    for step in steps:
        draws = randomness[:, step.first_draw : step.first_draw + step.draws]
        if step.added:
            images = applied(step, tf.cast(images, tf.float32), draws)
            continue
        dtype, function = _KERNELS[step.name]
        if dtype == tf.uint8 and images.dtype != tf.uint8:
            images = to_bytes(images)
        elif dtype == tf.float32:
            images = tf.cast(images, tf.float32)
        images = function(images, draws, *step.values)
    return images


def applied(step: Operation, pixels: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Applies a user's operation.

    Args:
      step: the operation.
      pixels: [n, height, width, 3] float32.
      draws: [n, draws of the operation] float32 in [0, 1).

    Raises:
      UsageError: it returns something else than such pixels.
    """
    assert step.added
    result = step.added.found.value(tf.clip_by_value(pixels, 0.0, 255.0), draws, **step.arguments)
    if not tf.is_tensor(result) or result.dtype != tf.float32 or not result.shape.is_compatible_with(pixels.shape):
        kind = f"{result.dtype.name} {result.shape}" if tf.is_tensor(result) else type(result).__name__
        raise UsageError(
            f"config.augment.ops: {step.name} returns {kind} for pixels of float32 {pixels.shape}. Return pixels of "
            "the same shape and dtype."
        )
    return tf.ensure_shape(result, pixels.shape)


def _signed(draws: tf.Tensor, number: int = 0) -> tf.Tensor:
    """Returns one random number per image, [n], mapped to [-1, 1)."""
    return 2.0 * draws[:, number] - 1.0


def _translate(images: tf.Tensor, draws: tf.Tensor, share: float) -> tf.Tensor:
    sides = tf.cast(tf.shape(images)[1:3], tf.float32)
    down, right = (tf.round(share * sides[k] * _signed(draws, 1 - k)) for k in (0, 1))
    return operations.geometry(images, move_x=right, move_y=down)


def _shear(images: tf.Tensor, draws: tf.Tensor, share: float) -> tf.Tensor:
    height, width = (tf.cast(side, tf.float32) for side in (tf.shape(images)[1], tf.shape(images)[2]))
    x, y = share * _signed(draws, 0), share * _signed(draws, 1)
    # Keep the center fixed.
    return operations.geometry(images, shear_x=x, shear_y=y, move_x=x * height / 2.0, move_y=y * width / 2.0)


def _where(images: tf.Tensor, draws: tf.Tensor, probability: float, changed: tf.Tensor) -> tf.Tensor:
    return tf.where((draws[:, 0] < probability)[:, tf.newaxis, tf.newaxis, tf.newaxis], changed, images)


def _hue(pixels: tf.Tensor, draws: tf.Tensor, limit: float, probability: float) -> tf.Tensor:
    if probability == 0:
        return pixels
    draws = draws / probability  # one random number decides both: below 1, it is uniform again
    return _where(pixels, draws, 1.0, operations.hue(pixels, limit * _signed(draws)))


def _rand(images: tf.Tensor, draws: tf.Tensor, number: float, magnitude: float) -> tf.Tensor:
    space = policies.narrow_space(images.shape[1])
    for k in range(int(number)):
        images = policies.sampled(space, images, draws[:, 2 * k : 2 * k + 2], strength=int(magnitude))
    return images


def _erase(images: tf.Tensor, draws: tf.Tensor, probability: float, area: tuple[float, float]) -> tf.Tensor:
    chosen, size, *place = tf.unstack(draws, num=5, axis=1)
    return operations.erase(images, chosen < probability, area[0] + (area[1] - area[0]) * size, *place)


class _Kernel(NamedTuple):
    """How to run an operation: the dtype it needs (None for any), and a function of images, draws and its arguments."""

    dtype: tf.DType | None
    function: Callable[..., tf.Tensor]


_KERNELS = {
    "flip": _Kernel(None, lambda x, draws, p: operations.flip(x, draws[:, 0] < p)),
    "translate": _Kernel(tf.uint8, _translate),
    "rotate": _Kernel(tf.uint8, lambda x, draws, limit: operations.geometry(x, degrees=limit * _signed(draws))),
    "shear": _Kernel(tf.uint8, _shear),
    "brightness": _Kernel(tf.float32, lambda x, draws, limit: operations.add_brightness(x, limit * _signed(draws))),
    "contrast": _Kernel(tf.float32, lambda x, draws, limit: operations.contrast(x, 1.0 + limit * _signed(draws))),
    "saturation": _Kernel(tf.float32, lambda x, draws, limit: operations.saturation(x, 1.0 + limit * _signed(draws))),
    "hue": _Kernel(tf.float32, _hue),
    "posterize": _Kernel(
        tf.uint8,
        lambda x, draws, bits, p: _where(x, draws, p, operations.posterize(x, tf.fill(tf.shape(x)[:1], int(bits)))),
    ),
    "solarize": _Kernel(
        tf.uint8,
        lambda x, draws, threshold, p: _where(x, draws, p, operations.solarize(x, tf.fill(tf.shape(x)[:1], threshold))),
    ),
    "sharpness": _Kernel(tf.float32, lambda x, draws, limit: operations.sharpness(x, 1.0 + limit * _signed(draws))),
    "equalize": _Kernel(tf.uint8, lambda x, draws, p: _where(x, draws, p, operations.equalize(x))),
    "autocontrast": _Kernel(tf.uint8, lambda x, draws, p: _where(x, draws, p, operations.autocontrast(x))),
    "trivial": _Kernel(tf.uint8, lambda x, draws: policies.sampled(policies.wide_space(), x, draws)),
    "rand": _Kernel(tf.uint8, _rand),
    "erase": _Kernel(None, _erase),
}
