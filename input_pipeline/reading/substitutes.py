"""Other images in the place of those that cannot be used: always the same ones, and none of them unsaid.

    substitutes = Substitutes(num_images=50_000, problem_of=lambda index: None)
    substitutes.add(error)                    # a RecordError
    substitutes.applied(indices)              # with the substitutes in their places
    substitutes.of(indices)                   # what was substituted there, for people

Which image stands in follows from the number of the one it replaces and from which images can be used, so a run on
damaged data is the same on any number of devices and processes, and after a resume.
"""

import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from convoy.core.errors import DataError
from convoy.input_pipeline.dataset.records import RecordError
from convoy.input_pipeline.reading.order import permute

_TRIES = 100
_SEED = 0  # of the permutations that candidates come from; no run's own, so that they belong to the data


class Substitution(NamedTuple):
    """An image that cannot be used, and the one in its place. Names are those in events.jsonl."""

    shard: str
    offset: int
    index: int
    reason: str
    substitute: int


class Substitutes:
    """Which images cannot be used as far as this process has seen; safe to use from several threads."""

    def __init__(self, num_images: int, problem_of: Callable[[int], RecordError | None]):
        """Knows of none yet.

        Args:
          num_images: of the split.
          problem_of: says what keeps an image from being used; None where nothing does.
        """
        self._num_images = num_images
        self._problem_of = problem_of
        self._found: dict[int, Substitution] = {}
        self._lock = threading.Lock()

    def add(self, error: RecordError) -> int:
        """Notes an image that cannot be used; returns the one in its place.

        Raises:
          DataError: none was found that can be used.
        """
        with self._lock:
            if error.index not in self._found:
                place = self._usable_instead_of(error)
                self._found[error.index] = Substitution(error.path, error.offset, error.index, error.reason, place)
            return self._found[error.index].substitute

    def applied(self, indices: np.ndarray) -> np.ndarray:
        """Returns indices, [n] int64, with those of substitutes in place of those that cannot be used."""
        if not self._found:
            return indices
        return np.array([self._found[i].substitute if i in self._found else i for i in indices.tolist()], np.int64)

    def of(self, indices: np.ndarray) -> list[Substitution]:
        """Returns what is substituted among these images, as far as it is known."""
        if not self._found:
            return []
        return [self._found[index] for index in indices.tolist() if index in self._found]

    def _usable_instead_of(self, error: RecordError) -> int:
        for attempt in range(_TRIES):
            (candidate,) = permute(np.array([error.index]), num_images=self._num_images, seed=_SEED, epoch=attempt)
            if candidate != error.index and candidate not in self._found and not self._problem_of(int(candidate)):
                return int(candidate)
        raise DataError(f"{error} And none of {_TRIES} others, tried in its place, can be used either.")
