"""How long each worker takes for its own part of a step, to find the one that the others wait for.

The step of a run takes equally long on all workers, because they reduce together. So the step itself notes when a
worker's own gradients are ready and when the reduction is done (`StepResult.ready`, `reduced`): from the end of one
reduction until its gradients are ready again, a worker depends on itself only.
"""

import statistics
from collections.abc import Sequence

from convoy.trainer.step.step import StepResult

_SLOWER = 1.2  # times the median of the workers


class WorkerTimes:
    """The times of this worker. Without other workers nothing is measured."""

    def __init__(self, num_workers: int):
        """Starts with no steps."""
        self._measures = num_workers > 1
        self._own_ms: list[float] = []
        self._reduced: float | None = None  # when the reduction of the step before was done

    def add(self, result: StepResult) -> None:
        """Adds a step, in order. Waits for its result."""
        if self._measures:
            ready, reduced = float(result.ready), float(result.reduced)
            if self._reduced is not None:
                self._own_ms.append(1e3 * (ready - self._reduced))
            self._reduced = reduced

    def pause(self) -> None:
        """Leaves out the next step: something else comes before it."""
        self._reduced = None

    def window_ms(self) -> float | None:
        """Returns the median over the steps since the last call, in milliseconds; None if there are none."""
        own, self._own_ms = self._own_ms, []
        return statistics.median(own) if own else None


def slow_workers(own_ms: Sequence[float | None]) -> list[int]:
    """Returns the ranks of the workers that take more than 1.2 times the median of all, the slowest first."""
    known = {rank: ms for rank, ms in enumerate(own_ms) if ms is not None}
    if len(known) < 2:
        return []
    # Of two workers the faster one counts as usual.
    usual = statistics.median_low(known.values())
    return sorted((rank for rank, ms in known.items() if ms > _SLOWER * usual), key=lambda rank: -known[rank])
