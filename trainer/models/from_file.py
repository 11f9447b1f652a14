"""Models from a function in a user's file: `config.model.name=FILE.py:FUNCTION`."""

import inspect
import runpy
from pathlib import Path

import keras
import tensorflow as tf

from convoy.core.errors import UsageError, did_you_mean

# Creating a variable waits for all workers: these errors are not the function's.
_LOST_WORKER = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
)


def model_from_file(name: str, num_classes: int, image_size: int) -> keras.Model:
    """Calls the function and returns its model, built.

    Args:
      name: `FILE.py:FUNCTION`; the function takes `num_classes` and `image_size`.
      num_classes: 2 or more.
      image_size: side of the square input in pixels.

    Raises:
      UsageError: no such file or function, it fails, or its model does not return logits for `num_classes` classes.
      tf.errors.OpError: another worker was lost.
    """
    path, _, function = name.rpartition(":")
    if not Path(path).is_file():
        raise UsageError(f"config.model.name={name!r}: file {path} does not exist.")
    try:
        namespace = runpy.run_path(path)
    except Exception as error:
        raise UsageError(f"config.model.name={name!r}: {path} fails: {type(error).__name__}: {error}") from error
    if not callable(namespace.get(function)):
        functions = [key for key, value in namespace.items() if inspect.isfunction(value)]
        raise UsageError(
            f"config.model.name={name!r}: {path} has no function {function}{did_you_mean(function, functions)}."
        )
    try:
        model = namespace[function](num_classes=num_classes, image_size=image_size)
        outputs = model(tf.zeros([1, image_size, image_size, 3]), training=False)  # builds subclassed models
    except _LOST_WORKER:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        raise UsageError(f"config.model.name={name!r}: {function} fails: {type(error).__name__}: {reason}") from error
    if not tf.is_tensor(outputs) or tuple(outputs.shape) != (1, num_classes):
        returned = f"shape {list(outputs.shape)}" if tf.is_tensor(outputs) else f"a {type(outputs).__name__}"
        raise UsageError(
            f"config.model.name={name!r}: the model returns {returned} for one image. "
            f"Return logits of shape [1, {num_classes}]."
        )
    return model
