"""Step timing: step time, input wait, and pauses (evaluation, checkpoints, logging) that do not count as training.

timer = StepTimer(images_per_step=256)
with timer.waiting():
    batch = next(batches)
...
timer.end_step()
with timer.paused("evaluation"):
    ...
timer.window().images_per_second
"""

import collections
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_WARMUP_STEPS = 3  # these compile and fill buffers
_STEADY_STEPS = 10_000  # `steady` covers at most this many of the last steps


@dataclass(frozen=True)
class Window:
    """Statistics over some steps.

    Attributes:
      steps: number of steps.
      images_per_second: throughput, without pauses.
      step_ms_mean: mean step time in milliseconds, including input wait.
      step_ms_p50: median step time in milliseconds.
      step_ms_p95: 95th percentile of the step time in milliseconds.
      input_wait_pct: share of step time spent waiting for input, in [0, 100].
      cores_busy: mean number of CPU cores used by this process.
    """

    steps: int
    images_per_second: float
    step_ms_mean: float
    step_ms_p50: float
    step_ms_p95: float
    input_wait_pct: float
    cores_busy: float


class _Step(NamedTuple):
    """Seconds of a step: step time, input wait (part of it), CPU time of the process."""

    seconds: float
    waited: float
    computed: float


class StepTimer:
    """Times steps of a fixed number of images.

    Attributes:
      steady_steps: number of steps after warm-up.
    """

    def __init__(
        self,
        images_per_step: int,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.process_time,
    ):
        """Starts with no steps.

        Args:
          images_per_step: the global batch size.
          clock: a monotonic clock, in seconds.
          cpu_clock: CPU time of this process over all cores, in seconds.
        """
        self._images_per_step = images_per_step
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._step_started: float | None = None
        self._cpu_started = 0.0
        self._waited = 0.0
        self._paused = 0.0
        self._cpu_paused = 0.0
        self._is_paused = False
        self._steps: list[_Step] = []  # of the window
        self._steady: collections.deque[_Step] = collections.deque(maxlen=_STEADY_STEPS)
        self.steady_steps = 0
        self._steady_seconds = 0.0
        self._seen_steps = 0
        self._seconds: dict[str, float] = {"steps": 0.0}

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as input wait. The first wait of the first step starts that step."""
        start = self._clock()
        if self._step_started is None:
            self._step_started, self._cpu_started = start, self._cpu_clock()
        yield
        self._waited += self._clock() - start

    @contextmanager
    def paused(self, why: str) -> Iterator[None]:
        """Counts the time inside under `why` and not as part of a step; inside another pause it does nothing."""
        if self._is_paused:
            yield
            return
        start, cpu_start = self._clock(), self._cpu_clock()
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False
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
            if self.steady_steps == 0:  # a window includes warm-up steps only if it has no others
                self._steps = []
            self.steady_steps += 1
            self._steady_seconds += step.seconds
            self._steady.append(step)
        self._steps.append(step)
        self._start_step(now, cpu_now)

    def window(self) -> Window:
        """Returns statistics over the steps since the last call, at least one, and starts a new window.

        Warm-up steps are left out if there are others.
        """
        steps, self._steps = self._steps, []
        return self._summary(steps)

    def steady(self) -> Window | None:
        """Returns statistics over the last 10,000 steps after warm-up; None if there are none."""
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

    def drop_window(self) -> None:
        """Discards the steps of this window and the step in progress."""
        self._steps = []
        self._start_step(None)

    def warm_up(self) -> None:
        """Counts the next steps as warm-up: they compile again."""
        self._seen_steps = 0

    def seconds(self) -> dict[str, float]:
        """Returns the seconds spent on `steps` and on each kind of pause."""
        return dict(self._seconds)

    def steady_images_per_second(self) -> float | None:
        """Returns the throughput over all steps after warm-up, without pauses; None if there are none."""
        return self._images_per_step * self.steady_steps / self._steady_seconds if self._steady_seconds else None
