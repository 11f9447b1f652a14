"""Records a few steps for TensorBoard's page Profile, each with its marker: `convoy train --profile_steps=20:30`.

profiler = StepProfiler(run.tensorboard, (20, 30), say=print)
profiler.begin_step(20)
...                             # waiting for input belongs to a step
profiler.end_step(20, wait_for=result.sums)
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from convoy.core.errors import UsageError


class StepProfiler:
    """Records the steps of one range, once."""

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
          folder: TensorBoard's of the run.
          steps: the first and the last one to record; None for none.
          start_step: steps done already.
          total_steps: of the run.
          say: shows a line.
          records: whether this process is the one that records.

        Raises:
          UsageError: the run ends before the last one.
        """
        self._folder = folder
        self._say = say
        self._trace: tf.profiler.experimental.Trace | None = None
        self._is_recording = False
        self._last_begun = 0
        self._steps = steps if records else None
        if steps and steps[1] > total_steps:
            raise UsageError(
                f"--profile_steps={steps[0]}:{steps[1]}: the run has {total_steps} steps. Give earlier ones."
            )
        if self._steps and steps[0] <= start_step:
            self._steps = None
            say(f"--profile_steps={steps[0]}:{steps[1]}: nothing is recorded, step {start_step} is done already.")

    def begin_step(self, step: int) -> None:
        """Begins update number `step`, from 1."""
        if not self._steps or not self._steps[0] <= step <= self._steps[1]:
            return
        if not self._is_recording:
            try:
                tf.profiler.experimental.start(str(self._folder))
            except (OSError, TypeError, tf.errors.OpError) as error:  # TypeError: of a folder whose name is no text
                self._give_up(error)
                return
            self._is_recording = True
        self._last_begun = step
        self._trace = tf.profiler.experimental.Trace("train", step_num=step, _r=1)
        self._trace.__enter__()

    def end_step(self, step: int, *, wait_for: tf.Tensor) -> None:
        """Ends it; the last one when `wait_for`, a tensor that it computes, is there."""
        if not self._trace:
            return
        is_last = step == self._steps[1]
        if is_last:
            wait_for.numpy()
        self._trace.__exit__(None, None, None)
        self._trace = None
        if is_last:
            self.close()

    def close(self) -> None:
        """Writes what was recorded, also where the last step has not come."""
        if not self._is_recording:
            return
        self._is_recording = False
        first, last = self._steps[0], self._last_begun
        self._steps = None
        try:
            tf.profiler.experimental.stop()
        except (OSError, tf.errors.OpError) as error:
            self._give_up(error)
            return
        viewer = "" if importlib.util.find_spec("xprof") else " `pip install xprof` brings that page."
        self._say(f"Steps {first} to {last} are recorded for TensorBoard's page Profile.{viewer}")

    def _give_up(self, error: Exception) -> None:
        self._steps = None
        self._say(f"Warning: the steps cannot be recorded ({str(error).splitlines()[0]}). Training goes on without.")
