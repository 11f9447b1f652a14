"""Profiles a range of steps for TensorBoard's Profile page: `convoy train --profile_steps=20:30`."""

import importlib.util
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from convoy.core.errors import UsageError
from convoy.core.text import counted
from convoy.trainer.callbacks.callback import Callback, Training
from convoy.trainer.step.step import StepResult


class StepProfiler(Callback):
    """Profiles one range of steps, once, on the chief.

    Not on the other workers: TensorFlow 2.21 sometimes frees memory twice there when it ends a recording, which aborts
    the process (it seems that `SplitEventTracker` keeps pointers into events that a growing vector copies).
    """

    def __init__(self, first: int, last: int):
        """Args: first, last: the steps to profile."""
        self._first, self._last = first, last
        self._trace: tf.profiler.experimental.Trace | None = None
        self._is_recording = self._is_done = False
        self._last_begun = 0

    def on_start(self, training: Training) -> None:
        """Checks the range.

        Raises:
          UsageError: it ends after the run.
        """
        self._say, self._folder = training.say, training.session.run.tensorboard
        range_flag = f"--profile_steps={self._first}:{self._last}"
        if self._last > training.total_steps:
            raise UsageError(
                f"{range_flag}: the run has {counted(training.total_steps, 'step')}. Pass a range within them."
            )
        if self._first <= training.step:
            self._is_done = True
            training.say(f"{range_flag}: not recorded, step {training.step} is already done.")

    def on_step_begin(self, training: Training) -> None:
        """Begins to record at the first step; input wait is part of a step."""
        step = training.step + 1
        if self._is_done or not self._first <= step <= self._last:
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

    def on_step_end(self, training: Training, result: StepResult) -> None:
        """Ends a step, and the recording after the last one."""
        if not self._trace:
            return
        is_last = training.step == self._last
        if is_last:
            result.gradient_norm.numpy()  # waits for the step
        self._trace.__exit__(None, None, None)
        self._trace = None
        if is_last:
            self._close()

    def on_end(self, training: Training, result: Mapping[str, Any] | None) -> None:
        """Writes the profile if the last step of the range was not reached."""
        self._close()

    def _close(self) -> None:
        if not self._is_recording:
            return
        self._is_recording, self._is_done = False, True
        try:
            tf.profiler.experimental.stop()
        except (OSError, tf.errors.OpError) as error:
            self._give_up(error)
            return
        hint = "" if importlib.util.find_spec("xprof") else " Install that page with `pip install xprof`."
        self._say(f"Profile: steps {self._first} to {self._last_begun} recorded, see TensorBoard's Profile page.{hint}")

    def _give_up(self, error: Exception) -> None:
        self._is_done = True
        reason = str(error).splitlines()[0]
        self._say(f"Warning: the steps cannot be profiled ({reason}). Training continues without a profile.")
