"""Where a run's time goes: steps, waiting for input, and pauses (evaluation, checkpoints) that are no training."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

# The first steps compile and fill buffers; they say nothing of the speed of the rest.
_WARMUP_STEPS = 3


@dataclass(frozen=True)
class Window:
    """What happened since the last window.

    Attributes:
      steps: how many.
      images_per_second: images trained on a second, without pauses.
      step_ms_p50: median step, milliseconds, waiting for input included.
      step_ms_p95: 95th percentile.
      input_wait_pct: share of the time spent waiting for input, in [0, 100].
    """

    steps: int
    images_per_second: float
    step_ms_p50: float
    step_ms_p95: float
    input_wait_pct: float


class Chronometer:
    """Times steps of a fixed number of images."""

    def __init__(self, images_per_step: int, clock: Callable[[], float] = time.perf_counter):
        """Starts with no time spent.

        Args:
          images_per_step: the global batch size.
          clock: seconds, rising.
        """
        self._images_per_step = images_per_step
        self._clock = clock
        self._step_started: float | None = None
        self._waited = 0.0
        self._paused = 0.0
        self._steps: list[tuple[float, float]] = []  # (seconds, of them waiting) of the window
        self._steady_steps = 0
        self._steady_seconds = 0.0
        self._seen_steps = 0
        self._seconds: dict[str, float] = {"steps": 0.0}

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Times what is done inside as waiting for input. The first wait of a step starts it."""
        start = self._clock()
        if self._step_started is None:
            self._step_started = start
        yield
        self._waited += self._clock() - start

    @contextmanager
    def paused(self, why: str = "other") -> Iterator[None]:
        """Times what is done inside as no training, and counts it under `why`."""
        start = self._clock()
        yield
        spent = self._clock() - start
        self._seconds[why] = self._seconds.get(why, 0.0) + spent
        if self._step_started is not None:
            self._paused += spent

    def end_step(self) -> None:
        """Ends a step; the next starts here."""
        now = self._clock()
        seconds = now - (self._step_started if self._step_started is not None else now) - self._paused
        self._steps.append((seconds, self._waited))
        self._seconds["steps"] += seconds
        self._seen_steps += 1
        if self._seen_steps > _WARMUP_STEPS:
            self._steady_steps += 1
            self._steady_seconds += seconds
        self._step_started, self._waited, self._paused = now, 0.0, 0.0

    def window(self) -> Window:
        """Returns what happened since the last call, at least one step, and starts a new window."""
        seconds, waits = np.array(self._steps).T
        self._steps = []
        return Window(
            steps=len(seconds),
            images_per_second=self._images_per_step * len(seconds) / max(seconds.sum(), 1e-9),
            step_ms_p50=1e3 * float(np.percentile(seconds, 50)),
            step_ms_p95=1e3 * float(np.percentile(seconds, 95)),
            input_wait_pct=100.0 * float(waits.sum() / max(seconds.sum(), 1e-9)),
        )

    def window_dropped(self) -> None:
        """Starts a new window without what happened in this one, and forgets the step in progress."""
        self._steps = []
        self._step_started, self._waited, self._paused = None, 0.0, 0.0

    def seconds(self) -> dict[str, float]:
        """Returns what the time was spent on: `steps`, and each reason of a pause."""
        return dict(self._seconds)

    def steady_images_per_second(self) -> float | None:
        """Returns the speed over the run without its first steps and pauses; None while there were no others."""
        return self._images_per_step * self._steady_steps / self._steady_seconds if self._steady_seconds else None
