"""What a run writes down: metrics, evaluations, events, result. The chief writes; other workers' journals do nothing.

A full disk must not end a run that could still save once there is room again: from the first step to the last, what
cannot be written is left out with a warning.
"""

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from input_pipeline.errors import DataError
from trainer.curves import draw_curves
from trainer.results import append_result, truncate_results
from trainer.run_directory import RunDirectory, truncate_json_lines
from trainer.writers import MetricWriters


class Journal:
    """The run directory's files, other than checkpoints, as training fills them."""

    def __init__(self, run: RunDirectory, *, writes: bool, warn: Callable[[str], None]):
        """Writes nothing yet.

        Args:
          run: where to.
          writes: whether this process is the one that writes.
          warn: shows a line.
        """
        self._run = run
        self._writes = writes
        self._warn = warn
        self._failing: set[str] = set()
        self._writers = MetricWriters(run)

    def begin(self, step: int, files: Mapping[str, Any]) -> None:
        """Drops what was written after `step`, and writes `RUN/NAME.json` and the same as text for TensorBoard.

        Raises:
          DataError: something cannot be written.
        """
        if not self._writes:
            return
        try:
            self._truncate(step)
            for name, value in files.items():
                self._run.write_json(self._run.path / f"{name}.json", value)
                self._writers.write_text(f"run/{name}", value)
            command = shlex.join(sys.argv)
            (self._run.path / "command.txt").write_text(command + "\n", encoding="utf-8")
            self._writers.write_text("run/command", command)
        except (OSError, tf.errors.OpError) as error:
            name = getattr(error, "filename", None) or "a file"
            raise DataError(f"--workdir={self._run.path}: {name} cannot be written ({_reason(error)}).") from None

    def go_back(self, step: int) -> None:
        """Drops what was written after `step`."""
        if not self._writes:
            return
        with self.tolerating("metrics"):
            self._truncate(step)

    def event(self, name: str, **details: Any) -> None:  # noqa: ANN401 (any JSON value)
        """Adds a line to events.jsonl."""
        if not self._writes:
            return
        with self.tolerating("events.jsonl"):
            self._run.append_event(name, **details)

    def metrics(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Writes values by tag of a split."""
        if not self._writes:
            return
        with self.tolerating("metrics"):
            self._writers.write(split, step, values)

    def text(self, name: str, step: int, value: Any) -> None:  # noqa: ANN401 (any JSON value)
        """Writes a JSON value as text for TensorBoard."""
        if not self._writes:
            return
        with self.tolerating("TensorBoard's event file"):
            self._writers.write_text(f"run/{name}", value, step=step)

    def evaluation(self, split: str, step: int, quality: Mapping[str, float]) -> None:
        """Adds a row to results.csv."""
        if not self._writes:
            return
        with self.tolerating("results.csv"):
            append_result(self._run, step=step, split=split, quality=quality)

    def flush(self) -> None:
        """Sends what was written to disk."""
        with self.tolerating("TensorBoard's event file"):
            self._writers.flush()

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes result.json and the curves, and ends the event files.

        Raises:
          DataError: result.json cannot be written.
        """
        if not self._writes:
            return
        with self.tolerating("TensorBoard's event file"):
            self._writers.close()
        with self.tolerating("curves.png"):
            draw_curves(self._run)
        try:
            self._run.write_json(self._run.result, result)
        except OSError as error:
            raise DataError(
                f"{self._run.result} cannot be written ({error.strerror}). The last checkpoint is there: make room and "
                "type the same command again."
            ) from None
        self.event("done", step=result["step"])

    def _truncate(self, step: int) -> None:
        truncate_json_lines(self._run.metrics, step)
        truncate_results(self._run, step)

    @contextlib.contextmanager
    def tolerating(self, what: str) -> Iterator[None]:
        """Turns a failure to write inside into a warning, the first of several in a row; `what` names the file."""
        try:
            yield
            self._failing.discard(what)
        except (OSError, tf.errors.OpError) as error:
            if what not in self._failing:
                self._failing.add(what)
                self._warn(f"Warning: {what} cannot be written ({_reason(error)}). Training goes on without.")


def _reason(error: OSError | tf.errors.OpError) -> str:
    told = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
    return told.splitlines()[0].split("}} ")[-1]  # TensorFlow says more, and the operation's name before it
