"""Callbacks by name: `convoy train --callbacks=wandb,FILE.py:NAME`."""

from collections.abc import Sequence

from convoy.core.errors import UsageError, failure
from convoy.trainer.callbacks import trackers  # noqa: F401 (registers its callbacks)
from convoy.trainer.callbacks.callback import CALLBACKS, Callback


def find_callbacks(names: Sequence[str]) -> list[Callback]:
    """Returns a callback by each name: of a class of callbacks, or of a function that returns one.

    Raises:
      UsageError: there is no such class or function, it fails, or returns something else.
    """
    return [_find(name) for name in names]


def _find(name: str) -> Callback:
    make = CALLBACKS.find(name).value
    try:
        callback = make()
    except Exception as error:
        raise UsageError(f"--callbacks={name}: fails without arguments: {failure(error)}.") from error
    if not isinstance(callback, Callback):
        raise UsageError(f"--callbacks={name}: gives a {type(callback).__name__}. It must be a convoy.Callback.")
    return callback
