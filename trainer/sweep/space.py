"""The search space of a sweep: a user's function from an Optuna trial to config fields.

space = find_space("space.py")       # its function `space`, or "space.py:other"
fields = space(trial)                # {"optimizer.learning_rate": 0.003, "augment.flip": True}
config_flags(fields)                 # ["--config.optimizer.learning_rate=0.003", "--config.augment.flip=true"]
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from convoy.core.errors import UsageError, failure
from convoy.core.registry import Registry

if TYPE_CHECKING:
    import optuna

_FUNCTION = "space"
_SPACES: Registry[Callable[["optuna.Trial"], Any]] = Registry("search space", field="--space")


class Space:
    """A search space.

    Attributes:
      name: as users gave it.
    """

    def __init__(self, name: str, function: Callable[["optuna.Trial"], Any]):
        """Takes the user's function."""
        self.name = name
        self._function = function

    def __call__(self, trial: "optuna.Trial") -> dict[str, Any]:
        """Returns the config fields of a trial: numbers, texts, and lists of numbers.

        Raises:
          UsageError: the function fails, or returns anything else.
        """
        try:
            fields = self._function(trial)
        except Exception as error:
            raise self._error(f"fails: {failure(error)}") from error
        if not isinstance(fields, Mapping):
            raise self._error(f"returns a {type(fields).__name__}, not a dict of config fields")
        if not fields:
            raise self._error("returns no config field")
        return {str(field): self._plain(field, value) for field, value in fields.items()}

    def _plain(self, field: object, value: Any) -> Any:  # noqa: ANN401
        """Returns a value as JSON has it."""
        if hasattr(value, "item"):  # of NumPy
            value = value.item()
        if isinstance(value, list | tuple):
            return [self._plain(field, item) for item in value]
        if not isinstance(value, bool | int | float | str):
            raise self._error(f"returns a {type(value).__name__} for {field}. Return a number, text, or numbers")
        return value

    def _error(self, problem: str) -> UsageError:
        return _SPACES.error(self.name, f"its function {problem}")


def find_space(name: str) -> Space:
    """Returns the space that a user names: `FILE.py`, `FILE.py:NAME` or `package.module:NAME`.

    Raises:
      UsageError: there is no such function, or the file fails.
    """
    function = _SPACES.find(f"{name}:{_FUNCTION}" if name.endswith(".py") else name).value
    if not callable(function):
        raise _SPACES.error(name, f"it is a {type(function).__name__}. Pass a function of an Optuna trial")
    return Space(name, function)


def config_flags(fields: Mapping[str, Any]) -> list[str]:
    """Returns the flags of `convoy train` that set config fields."""
    return [f"--config.{field}={_text(value)}" for field, value in fields.items()]


def _text(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(map(_text, value)) or "()"
    return str(value)
