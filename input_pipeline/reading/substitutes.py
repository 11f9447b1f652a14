"""Deterministic replacements for images that cannot be used.

    substitutes = Substitutes(num_images=50_000, problem=lambda index: None)
    substitutes.add(error)                    # a RecordError
    substitutes.applied(indices)              # indices after substitution
    substitutes.among(indices)                # the substitutions among these images, to be logged

The substitute depends only on the index it replaces and on which images can be used. A run on damaged data is therefore
the same on any number of devices and processes, and after a resume.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from convoy.core.errors import DataError
from convoy.input_pipeline.dataset.records import RecordError
from convoy.input_pipeline.reading.order import permute

_TRIES = 100
_SEED = 0  # of the candidate permutations; not the run's seed, so that substitutes depend on the data alone


@dataclass(frozen=True)
class Substitution:
    """An image that cannot be used, and its substitute. The field names are those of events.jsonl."""

    shard: str
    offset: int
    index: int
    reason: str
    substitute: int


class Substitutes:
    """The images that this process has found unusable; safe to use from several threads."""

    def __init__(self, num_images: int, problem: Callable[[int], RecordError | None]):
        """Starts without any.

        Args:
          num_images: number of images of the split.
          problem: returns why an image cannot be used, or None.
        """
        self._num_images = num_images
        self._problem = problem
        self._found: dict[int, Substitution] = {}
        self._lock = threading.Lock()

    def add(self, error: RecordError) -> int:
        """Registers an image that cannot be used; returns its substitute.

        Raises:
          DataError: no usable substitute was found.
        """
        with self._lock:
            if error.index not in self._found:
                substitute = self._find_substitute(error)
                self._found[error.index] = Substitution(error.path, error.offset, error.index, error.reason, substitute)
            return self._found[error.index].substitute

    def applied(self, indices: np.ndarray) -> np.ndarray:
        """Returns the indices, [n] int64, after substitution."""
        if not self._found:
            return indices
        return np.array([self._found[i].substitute if i in self._found else i for i in indices.tolist()], np.int64)

    def among(self, indices: np.ndarray) -> list[Substitution]:
        """Returns the substitutions known so far among these images."""
        if not self._found:
            return []
        return [self._found[index] for index in indices.tolist() if index in self._found]

    def _find_substitute(self, error: RecordError) -> int:
        for attempt in range(_TRIES):
            (candidate,) = permute(np.array([error.index]), num_images=self._num_images, seed=_SEED, epoch=attempt)
            if candidate != error.index and candidate not in self._found and not self._problem(int(candidate)):
                return int(candidate)
        raise DataError(f"{error} No usable substitute for it: {_TRIES} other records were tried.")
