"""Where a run's time goes: steps, waiting for input, and pauses (evaluation, checkpoints) that are no training."""

import collections
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# The first steps compile and fill buffers; they say nothing of the speed of the rest.
_WARMUP_STEPS = 3
_STEADY_STEPS = 10_000  # so many of the last ones stand for a run


@dataclass(frozen=True)
class Window:
    """What happened in some steps.

    Attributes:
      steps: how many.
      images_per_second: images trained on a second, without pauses.
      step_ms_mean: mean step, milliseconds, waiting for input included.
      step_ms_p50: median step.
      step_ms_p95: 95th percentile.
      input_wait_pct: share of the time spent waiting for input, in [0, 100].
      cores_busy: how many cores this process computed on, on average.
    """

    steps: int
    images_per_second: float
    step_ms_mean: float
    step_ms_p50: float
    step_ms_p95: float
    input_wait_pct: float
    cores_busy: float


class _Step(NamedTuple):
    """Seconds that a step took, and of them those of waiting for input; seconds that the process computed."""

    seconds: float
    waited: float
    computed: float


class StepTimer:
    """Times steps of a fixed number of images.

    Attributes:
      steady_steps: how many were done after the first ones.
    """

    def __init__(
        self,
        images_per_step: int,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.process_time,
    ):
        """Starts with no time spent.

        Args:
          images_per_step: the global batch size.
          clock: seconds, rising.
          cpu_clock: seconds that this process has computed, on all cores together.
        """
        self._images_per_step = images_per_step
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._step_started: float | None = None
        self._cpu_started = 0.0
        self._waited = 0.0
        self._paused = 0.0
        self._cpu_paused = 0.0
        self._steps: list[_Step] = []  # of the window
        self._steady: collections.deque[_Step] = collections.deque(maxlen=_STEADY_STEPS)
        self.steady_steps = 0
        self._steady_seconds = 0.0
        self._seen_steps = 0
        self._seconds: dict[str, float] = {"steps": 0.0}

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Times what is done inside as waiting for input. The first wait of a step starts it."""
        start = self._clock()
        if self._step_started is None:
            self._step_started, self._cpu_started = start, self._cpu_clock()
        yield
        self._waited += self._clock() - start

    @contextmanager
    def paused(self, why: str = "other") -> Iterator[None]:
        """Times what is done inside as no training, and counts it under `why`."""
        start, cpu_start = self._clock(), self._cpu_clock()
        yield
        spent = self._clock() - start
        self._seconds[why] = self._seconds.get(why, 0.0) + spent
        if self._step_started is not None:
            self._paused += spent
            self._cpu_paused += self._cpu_clock() - cpu_start

    def end_step(self) -> None:
        """Ends a step; the next starts here."""
        now, cpu_now = self._clock(), self._cpu_clock()
        started, cpu_started = (now, cpu_now) if self._step_started is None else (self._step_started, self._cpu_started)
        step = _Step(now - started - self._paused, self._waited, cpu_now - cpu_started - self._cpu_paused)
        self._seconds["steps"] += step.seconds
        self._seen_steps += 1
        if self._seen_steps > _WARMUP_STEPS:
            if self.steady_steps == 0:  # a window tells of the first steps only where it has no others
                self._steps = []
            self.steady_steps += 1
            self._steady_seconds += step.seconds
            self._steady.append(step)
        self._steps.append(step)
        self._start_step(now, cpu_now)

    def window(self) -> Window:
        """Returns what happened since the last call, at least one step, and starts a new window.

        The first steps of all are left out where there were others.
        """
        steps, self._steps = self._steps, []
        return self._summary(steps)

    def steady(self) -> Window | None:
        """Returns what happened in the last 10,000 steps without the run's first ones; None while there are none."""
        return self._summary(self._steady) if self._steady else None

    def _summary(self, steps: Sequence[_Step]) -> Window:
        seconds, waited, computed = np.array(steps).T
        total = max(seconds.sum(), 1e-9)
        return Window(
            steps=len(seconds),
            images_per_second=self._images_per_step * len(seconds) / total,
            step_ms_mean=1e3 * float(seconds.mean()),
            step_ms_p50=1e3 * float(np.percentile(seconds, 50)),
            step_ms_p95=1e3 * float(np.percentile(seconds, 95)),
            input_wait_pct=100.0 * float(waited.sum() / total),
            cores_busy=float(computed.sum() / total),
        )

    def _start_step(self, now: float | None, cpu_now: float = 0.0) -> None:
        self._step_started, self._cpu_started = now, cpu_now
        self._waited = self._paused = self._cpu_paused = 0.0

    def window_dropped(self) -> None:
        """Starts a new window without what happened in this one, and forgets the step in progress."""
        self._steps = []
        self._start_step(None)

    def warm_up(self) -> None:
        """Counts the next steps as first ones, which compile: they say nothing of the speed of the rest."""
        self._seen_steps = 0

    def seconds(self) -> dict[str, float]:
        """Returns what the time was spent on: `steps`, and each reason of a pause."""
        return dict(self._seconds)

    def steady_images_per_second(self) -> float | None:
        """Returns the speed over the run without its first steps and pauses; None while there were no others."""
        return self._images_per_step * self.steady_steps / self._steady_seconds if self._steady_seconds else None
