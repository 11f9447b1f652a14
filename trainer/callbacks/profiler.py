"""Profiles a range of steps for TensorBoard's Profile page: `convoy train --profile_steps=20:30`.

profiler = StepProfiler(run.tensorboard, (20, 30), start_step=0, total_steps=100, say=print)
profiler.begin_step(20)
...                             # input wait is part of the step
profiler.end_step(20, wait_for=result.sums)
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from convoy.core.errors import UsageError
from convoy.core.text import counted


class StepProfiler:
    """Profiles one range of steps, once."""

    def __init__(
        self,
        folder: Path,
        steps: tuple[int, int] | None,
        *,
        start_step: int,
        total_steps: int,
        say: Callable[[str], None],
        records: bool = True,
    ):
        """Records nothing yet.

        Args:
          folder: TensorBoard's folder of the run.
          steps: first and last step to profile; None for none.
          start_step: steps done already.
          total_steps: length of the run.
          say: prints a line.
          records: whether this process is the one that records.

        Raises:
          UsageError: the range ends after the run.
        """
        self._folder = folder
        self._say = say
        self._trace: tf.profiler.experimental.Trace | None = None
        self._is_recording = False
        self._last_begun = 0
        self._steps = steps if records else None
        if steps and steps[1] > total_steps:
            raise UsageError(
                f"--profile_steps={steps[0]}:{steps[1]}: the run has {counted(total_steps, 'step')}. Pass a range "
                "within them."
            )
        if self._steps and self._steps[0] <= start_step:
            first, last = self._steps
            self._steps = None
            say(f"--profile_steps={first}:{last}: not recorded, step {start_step} is already done.")

    def begin_step(self, step: int) -> None:
        """Begins step number `step`, counted from 1."""
        if not self._steps or not self._steps[0] <= step <= self._steps[1]:
            return
        if not self._is_recording:
            try:
                tf.profiler.experimental.start(str(self._folder))
            except (OSError, TypeError, tf.errors.OpError) as error:  # TypeError: a folder whose name is not UTF-8
                self._give_up(error)
                return
            self._is_recording = True
        self._last_begun = step
        self._trace = tf.profiler.experimental.Trace("train", step_num=step, _r=1)
        self._trace.__enter__()

    def end_step(self, step: int, *, wait_for: tf.Tensor) -> None:
        """Ends a step; waits for `wait_for`, a tensor that the step computes, if it is the last of the range."""
        if not self._trace or not self._steps:
            return
        is_last = step == self._steps[1]
        if is_last:
            wait_for.numpy()
        self._trace.__exit__(None, None, None)
        self._trace = None
        if is_last:
            self.close()

    def close(self) -> None:
        """Writes the profile, also if the last step of the range was not reached."""
        if not self._is_recording or not self._steps:
            return
        self._is_recording = False
        first, last = self._steps[0], self._last_begun
        self._steps = None
        try:
            tf.profiler.experimental.stop()
        except (OSError, tf.errors.OpError) as error:
            self._give_up(error)
            return
        hint = "" if importlib.util.find_spec("xprof") else " Install that page with `pip install xprof`."
        self._say(f"Profile: steps {first} to {last} recorded, see TensorBoard's Profile page.{hint}")

    def _give_up(self, error: Exception) -> None:
        self._steps = None
        reason = str(error).splitlines()[0]
        self._say(f"Warning: the steps cannot be profiled ({reason}). Training continues without a profile.")
