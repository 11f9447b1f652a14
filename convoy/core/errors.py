"""Mistakes a person can mend. The command line prints their text, without a traceback, and exits with their code."""

import difflib
from collections.abc import Iterable


class ConvoyError(Exception):
    """The program's own word on why it stops. The message names the thing, its value and the mend."""

    exit_code = 1


class UsageError(ConvoyError):
    """A flag, a config field or a combination of them that cannot work."""

    exit_code = 2


class DataError(ConvoyError):
    """Data or a checkpoint that cannot be used."""

    exit_code = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ` (did you mean 'x'?)` for the most similar of `known`, or an empty string where none is similar."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
