"""Calls the hooks of a run's callbacks.

callbacks = CallbackList([Console(), MyCallback()], is_chief=True, on_error=stop.fail)
callbacks.emit("on_log", training, log)
"""

import json
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from convoy.core.errors import ConvoyError
from convoy.trainer.callbacks.callback import HOOKS, Callback, Training


class CallbackError(ConvoyError):
    """A callback raised an exception. The message has the callback, hook, step, and the traceback.

    Attributes:
      callback: the callback's name.
    """

    is_final = True

    def __init__(self, message: str, callback: str):
        """Takes the whole message."""
        super().__init__(message)
        self.callback = callback


class CallbackList:
    """The callbacks of a run on one worker."""

    def __init__(self, callbacks: Sequence[Callback], *, is_chief: bool, on_error: Callable[[CallbackError], None]):
        """Takes the callbacks, in the order in which they are called.

        Args:
          callbacks: all callbacks of the run.
          is_chief: whether this worker is the chief; others call only those for every worker.
          on_error: called when a hook has raised an exception; that callback is no longer called, except for `on_end`,
            and keeps its last state.
        """
        self._on_error = on_error
        self._states: dict[str, Any] = {}
        self._callbacks = [callback for callback in callbacks if is_chief or callback.every_worker]
        self._failed: set[int] = set()
        self._hooks = {
            hook: [
                (callback, getattr(callback, hook))
                for callback in self._callbacks
                if getattr(type(callback), hook) is not getattr(Callback, hook)
            ]
            for hook in HOOKS
        }

    def emit(self, hook: str, training: Training, *arguments: Any) -> None:  # noqa: ANN401 (the hook's arguments)
        """Calls a hook of each callback that has it.

        Raises:
          ConvoyError: raised by `on_start`, which refuses the run.
          Exception: raised by any hook of Convoy's own callbacks.
        """
        for callback, method in self._hooks[hook]:
            if id(callback) in self._failed and hook != "on_end":
                continue
            training._calling.append(callback)
            try:
                method(training, *arguments)
            except (Exception, SystemExit) as error:
                if _is_own(callback) or (hook == "on_start" and isinstance(error, ConvoyError)):
                    raise
                self._fail(callback, hook, training.step, error)
            finally:
                training._calling.pop()

    def states(self, step: int) -> dict[str, Any]:
        """Returns the state of each callback that has one, by its name; of one that fails, its last one."""
        for name, callback in self._named():
            if id(callback) in self._failed:
                continue
            try:
                state = callback.state()
                if reason := _no_json(state):
                    raise TypeError(f"the state {state!r} is not JSON data: {reason}")
                self._states[name] = state
            except Exception as error:
                self._fail(callback, "state", step, error)
        return {name: state for name, state in self._states.items() if state is not None}

    def restore(self, states: Mapping[str, Any], step: int) -> None:
        """Gives each callback its state of a checkpoint."""
        for name, callback in self._named():
            if name in states:
                self._states[name] = states[name]
                try:
                    callback.restore(states[name])
                except Exception as error:
                    self._fail(callback, "restore", step, error)

    def _fail(self, callback: Callback, hook: str, step: int, error: BaseException) -> None:
        self._failed.add(id(callback))
        self._on_error(_failure(callback, hook, step, error))

    def _named(self) -> list[tuple[str, Callback]]:
        """Returns the callbacks with their names, the class names; a second one of a class is called `Class-2`."""
        seen: Counter[str] = Counter()
        named = []
        for callback in self._callbacks:
            name = type(callback).__name__
            seen[name] += 1
            named.append((name if seen[name] == 1 else f"{name}-{seen[name]}", callback))
        return named


def _is_own(callback: Callback) -> bool:
    return type(callback).__module__.startswith("convoy.")


def _no_json(state: object) -> str:
    """Returns why a value is not JSON data; empty if it is."""
    try:
        json.dumps(state)
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


def _failure(callback: Callback, hook: str, step: int, error: BaseException) -> CallbackError:
    name = type(callback).__name__
    frames = "".join(traceback.format_tb(error.__traceback__)[1:])  # without the caller's
    reason = "".join(traceback.format_exception_only(error))
    return CallbackError(f"callback {name} failed in {hook} at step {step}: {reason}{frames}".rstrip(), name)
