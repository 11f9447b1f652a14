"""Models from a function in a user's file: `config.model.name=FILE.py:FUNCTION`."""

import inspect

import keras
import tensorflow as tf

from convoy.core.errors import UsageError, did_you_mean
from convoy.core.user_code import UserCode, first_on_path, located, run_file
from convoy.trainer.models import contract

# Creating a variable waits for all workers: these errors are not the function's.
_LOST_WORKER = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
)


def model_from_file(name: str, num_classes: int, image_size: int) -> tuple[keras.Model, UserCode]:
    """Calls the function; returns its model, built, and the code that built it.

    Args:
      name: `FILE.py:FUNCTION`, whose contract is that of `contract`.
      num_classes: 2 or more.
      image_size: side of the square input in pixels.

    Raises:
      UsageError: no such file or function, it fails, or breaks the contract.
      tf.errors.OpError: another worker was lost.
    """
    typed, _, function = name.rpartition(":")
    path = located(typed)
    if not path.is_file():
        raise UsageError(f"config.model.name={name!r}: file {path} does not exist.")
    try:
        code = run_file(path)
    except Exception as error:
        raise UsageError(f"config.model.name={name!r}: {path} fails: {type(error).__name__}: {error}") from error
    namespace = code.names
    if not callable(namespace.get(function)):
        functions = [key for key, value in namespace.items() if inspect.isfunction(value)]
        raise UsageError(
            f"config.model.name={name!r}: {path} has no function {function}{did_you_mean(function, functions)}."
        )
    complaint = contract.check_arguments(namespace[function])
    try:
        with first_on_path(code.path.parent):
            if not complaint:
                model = namespace[function](num_classes=num_classes, image_size=image_size)
                complaint = contract.check_inputs(model, image_size)
            if not complaint:
                complaint = contract.check_outputs(model, num_classes, image_size)  # builds subclassed models
    except _LOST_WORKER:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        raise UsageError(f"config.model.name={name!r}: {function} fails: {type(error).__name__}: {reason}") from error
    if complaint:
        raise UsageError(f"config.model.name={name!r}: {function} {complaint}. The contract: {contract.CONTRACT}.")
    return model, code
