"""Writes the files of a run other than checkpoints: metrics, evaluations, events, result. On the chief only.

A full disk must not end a run whose next checkpoint may succeed: between the first and the last step, data that cannot
be written is dropped with a warning.
"""

import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary

from convoy.core.errors import DataError
from convoy.core.files import json_value
from convoy.core.text import without_secrets
from convoy.trainer.callbacks.curves import draw_curves
from convoy.trainer.callbacks.tensorboard import summaries
from convoy.trainer.callbacks.writers import ROOT, MetricWriters
from convoy.trainer.evaluation.results import append_result, truncate_results
from convoy.trainer.run.directory import RunDirectory


class RunLogger:
    """Writer of the run directory's files other than checkpoints."""

    def __init__(self, run: RunDirectory, *, total_steps: int, writes: bool, warn: Callable[[str], None]):
        """Writes nothing yet; if not `writes`, as on workers other than the chief, no method does anything."""
        self._run = run
        self._writes = writes
        self._warn = warn
        self._failing: set[str] = set()
        self._writers = MetricWriters(run, total_steps=total_steps)

    def begin(self, step: int, files: Mapping[str, Any], pages: Mapping[str, Sequence[Summary.Value]]) -> None:
        """Drops what was written after `step`, and writes each of `files` as RUN/NAME.json and as text for TensorBoard.

        Drops the result of a run that was finished before, too.

        Args:
          step: steps done before this start.
          files: JSON values by name.
          pages: TensorBoard values that describe the run, by TensorBoard run.

        Raises:
          DataError: a file cannot be written.
        """
        if not self._writes:
            return
        command = without_secrets(shlex.join(sys.argv))
        texts = [summaries.text_of_json(f"run/{name}", json_value(value)) for name, value in files.items()]
        shown = {**pages, "train": [*pages.get("train", ()), *texts, summaries.text("run/command", command)]}
        try:
            self._run.result.unlink(missing_ok=True)
            written_again = {value.tag for values in shown.values() for value in values}
            self._go_back(step, without={*written_again, summaries.session_end(0.0).tag})
            for name, value in files.items():
                self._run.write_json(self._run.path / f"{name}.json", value)
            self._run.command.write_text(command + "\n", encoding="utf-8", errors="surrogateescape")
            for name, values in shown.items():
                self._writers.show(name, step, values)
        except OSError as error:
            name = error.filename or "a file"
            raise DataError(f"--workdir={self._run.path}: {name} cannot be written ({error.strerror}).") from None

    def go_back(self, step: int) -> None:
        """Drops what was written after `step`."""
        self._write("metrics", self._go_back, step)

    def event(self, name: str, **details: Any) -> None:  # noqa: ANN401 (any JSON value)
        """Adds a line to events.jsonl."""
        self._write("events.jsonl", self._run.append_event, name, **details)

    def metrics(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Writes values by tag of a split."""
        self._write("metrics", self._writers.write, split, step, values)

    def best(self, step: int, top1: float) -> None:
        """Writes the best top-1 so far, by which TensorBoard's HParams page compares runs."""
        self._write("TensorBoard's event file", self._writers.show_scalars, ROOT, step, {"best/top1": top1})

    def show(self, name: str, step: int, values: Iterable[Summary.Value]) -> None:
        """Writes values (`tensorboard.summaries`) to TensorBoard's run `name`."""
        self._write("TensorBoard's event file", self._writers.show, name, step, values)

    def evaluation(self, split: str, step: int, quality: Mapping[str, float]) -> None:
        """Adds a row to results.csv."""
        self._write("results.csv", append_result, self._run, step=step, split=split, quality=quality)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes result.json and curves.png, and marks the run as finished for TensorBoard.

        Raises:
          DataError: result.json cannot be written.
        """
        if not self._writes:
            return
        self.show(ROOT, result["step"], [summaries.session_end(time.time())])
        self._write("curves.png", draw_curves, self._run)
        try:
            self._run.write_json(self._run.result, result)
        except OSError as error:
            raise DataError(
                f"{self._run.result} cannot be written ({error.strerror}). The last checkpoint is saved: free disk "
                "space and rerun the same command."
            ) from None
        self.event("done", step=result["step"])

    def _go_back(self, step: int, *, without: Collection[str] = ()) -> None:
        self._writers.go_back(step, without=without)
        truncate_results(self._run, step)

    def _write(self, what: str, write: Callable[..., None], /, *args: Any, **options: Any) -> None:  # noqa: ANN401
        """Calls `write` on the chief; a failure is only a warning, as in `tolerating`."""
        if self._writes:
            with self.tolerating(what):
                write(*args, **options)

    @contextlib.contextmanager
    def tolerating(self, what: str) -> Iterator[None]:
        """Turns a failed write into a warning, once per series of failures; `what` names the file in it."""
        try:
            yield
            self._failing.discard(what)
        except OSError as error:
            if what not in self._failing:
                self._failing.add(what)
                reason = error.strerror or error
                self._warn(f"Warning: {what} cannot be written ({reason}). Training continues without it.")
