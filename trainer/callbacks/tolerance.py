"""Failed writes that only cost a warning.

A full disk must not end a run whose next checkpoint may succeed: between the first and the last step, data that cannot
be written is dropped.
"""

import contextlib
from collections.abc import Callable, Iterator


class Tolerance:
    """Turns failed writes into warnings, one per series of failures of a file."""

    def __init__(self, warn: Callable[[str], None]):
        """Args: warn: shows a line."""
        self._warn = warn
        self._failing: set[str] = set()

    @contextlib.contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Tolerates a failed write in the block; `what` names the file in the warning."""
        try:
            yield
            self._failing.discard(what)
        except OSError as error:
            if what not in self._failing:
                self._failing.add(what)
                reason = error.strerror or error
                self._warn(f"Warning: {what} cannot be written ({reason}). Training continues without it.")
