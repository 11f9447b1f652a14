"""Models from a function of users: `config.model.name=FILE.py:FUNCTION`, in a module, or registered."""

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from convoy.core.errors import failure
from convoy.core.registry import Found, Registry
from convoy.core.user_code import first_on_path
from convoy.trainer.models import contract

APPLICATIONS = "keras_applications:"
MODELS: Registry[Callable[..., Any]] = Registry(
    "model", field="config.model.name", contract=contract.CONTRACT, also=[f"{APPLICATIONS}NAME", "keras_hub:PRESET"]
)

# Creating a variable waits for all workers: these errors are not the function's.
_LOST_WORKER = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
)


def unit_scale(pixels: tf.Tensor) -> tf.Tensor:
    """Maps pixels in [0, 255] to [0, 1]."""
    return pixels / 255.0


def model_from_user(
    found: Found[Callable[..., Any]], num_classes: int, image_size: int
) -> tuple[keras.Model, Callable[[tf.Tensor], tf.Tensor]]:
    """Calls the function; returns its model, built, and the scaling of its pixels.

    Args:
      found: the function, whose contract is that of `contract`.
      num_classes: 2 or more.
      image_size: side of the square input in pixels.

    Raises:
      UsageError: it fails, or breaks the contract.
      tf.errors.OpError: another worker was lost.
    """
    try:
        with first_on_path(found.code.path.parent) if found.code else contextlib.nullcontext():
            model, scale_pixels, complaint = _called(found.value, num_classes, image_size)
    except _LOST_WORKER:
        raise
    except Exception as error:
        raise MODELS.error(found.name, f"fails: {failure(error)}") from error
    if complaint:
        raise MODELS.breach(found.name, complaint)
    return model, scale_pixels


def _called(
    function: Callable[..., Any], num_classes: int, image_size: int
) -> tuple[Any, Callable[[tf.Tensor], tf.Tensor], str]:
    """Returns the model, the scaling, and why they cannot be used or ""."""
    if complaint := contract.check_arguments(function):
        return None, unit_scale, complaint
    returned = function(num_classes=num_classes, image_size=image_size)
    is_pair = isinstance(returned, tuple) and len(returned) == 2 and callable(returned[1])
    model, scale_pixels = returned if is_pair else (returned, unit_scale)
    return (
        model,
        scale_pixels,
        contract.check_inputs(model, image_size)
        or (contract.check_scaling(scale_pixels, image_size) if is_pair else "")
        or contract.check_outputs(model, scale_pixels, num_classes, image_size),  # builds subclassed models
    )
