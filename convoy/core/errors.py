"""User-facing errors. The command line prints their message without a traceback and exits with their code."""

import difflib
import re
from collections.abc import Iterable

from convoy.core import exit_codes
from convoy.core.text import one_line

_LONGEST = 4_000  # characters of a message
_OPERATION = re.compile(r"\{\{.*?\}\} ?| \[Op:.*")  # its name, in messages of TensorFlow


class ConvoyError(Exception):
    """An expected failure. The message names what is wrong, its value, and the fix.

    Attributes:
      exit_code: exit code of a command that ends with it.
      is_secondary: whether it follows from the failure of another worker or from a signal, which the launcher reports.
      is_final: whether a launcher must not restart the run, whatever the exit code.

    Example:
      try:
          convoy.verify("no/such/folder")
      except convoy.ConvoyError as error:
          error.exit_code, str(error)
    """

    exit_code = exit_codes.ERROR
    is_secondary = False
    is_final = False

    def __str__(self) -> str:
        """Returns the message; of a long one, which repeats long values, without the middle."""
        message = super().__str__()
        return message if len(message) <= _LONGEST else f"{message[: _LONGEST // 2]} [...] {message[-_LONGEST // 2 :]}"


class UsageError(ConvoyError):
    """An invalid argument, flag or config field, or combination of them.

    Example:
      try:
          convoy.load_config("convnet", batch_sise=64)
      except convoy.UsageError as error:
          message = str(error)
    """

    exit_code = exit_codes.USAGE


class DataError(ConvoyError):
    """Data or a checkpoint that cannot be used.

    Example:
      try:
          convoy.open_run("no/such/run")
      except convoy.DataError as error:
          message = str(error)
    """

    exit_code = exit_codes.DATA


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ` (did you mean 'x'?)` for the most similar of `known`, or an empty string if none is similar."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {match[0]!r}?)" if match else ""


def failure(error: BaseException) -> str:
    """Returns the type of an error in a user's code, and the line of its message that says what is wrong."""
    kind = type(error).__name__
    lines = [line.strip() for line in _OPERATION.sub("", str(error)).splitlines() if line.strip()] or [""]
    line = lines[-1] if lines[0] == "in user code:" else lines[0]  # AutoGraph's traceback ends with the error
    return one_line(f"{kind}: {line.removeprefix(f'{kind}: ')}").rstrip(" .:")
