"""Callbacks by name: `convoy train --callbacks=wandb,FILE.py:NAME`, and those of Python programs."""

from collections.abc import Iterable

from convoy.core.errors import UsageError, failure
from convoy.trainer.callbacks import trackers  # noqa: F401 (registers its callbacks)
from convoy.trainer.callbacks.callback import CALLBACKS, Callback
from convoy.trainer.callbacks.order_record import OrderRecord
from convoy.trainer.callbacks.profiler import StepProfiler
from convoy.trainer.callbacks.time_limit import TimeLimit


def chosen_callbacks(
    given: Iterable[str | Callback],
    *,
    record_order: bool,
    profile_steps: tuple[int, int] | None,
    time_limit: TimeLimit | None,
) -> list[Callback]:
    """Returns the callbacks that a command or a program has chosen for a run.

    Args:
      given: as in `find_callbacks`.
      record_order: whether to record which images each step trained on.
      profile_steps: first and last step that are profiled; None for none.
      time_limit: None for none.

    Raises:
      UsageError: as `find_callbacks`.
    """
    return [
        *find_callbacks(given),
        *([OrderRecord()] if record_order else []),
        *([StepProfiler(*profile_steps)] if profile_steps else []),
        *([time_limit] if time_limit else []),
    ]


def find_callbacks(given: Iterable[str | Callback]) -> list[Callback]:
    """Returns callbacks by their names, of a class of callbacks or of a function that returns one; others as they are.

    Raises:
      UsageError: there is no such class or function, it fails, or something is no callback.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise UsageError(f"--callbacks={_shown(given)}: pass a list of callbacks.")
    return [_find(one) if isinstance(one, str) else _checked(one) for one in given]


def _checked(given: object) -> Callback:
    if isinstance(given, Callback):
        return given
    call = f" Call it: {given.__name__}()." if isinstance(given, type) and issubclass(given, Callback) else ""
    raise UsageError(f"--callbacks=[{_shown(given)}]: must be a convoy.Callback or the name of one.{call}")


def _shown(given: object) -> str:
    return repr(given) if isinstance(given, str | int | None) else getattr(given, "__name__", type(given).__name__)


def _find(name: str) -> Callback:
    make = CALLBACKS.find(name).value
    try:
        callback = make()
    except Exception as error:
        raise UsageError(f"--callbacks={name}: fails without arguments: {failure(error)}.") from error
    if not isinstance(callback, Callback):
        raise UsageError(f"--callbacks={name}: gives a {type(callback).__name__}. It must be a convoy.Callback.")
    return callback
