"""What a run writes down: metrics, evaluations, events, result. The chief writes; other workers' journals do nothing.

A full disk must not end a run that could still save once there is room again: from the first step to the last, what
cannot be written is left out with a warning.
"""

import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary

from convoy.core.errors import DataError
from convoy.trainer.callbacks.curves import draw_curves
from convoy.trainer.callbacks.tensorboard import summaries
from convoy.trainer.callbacks.writers import ROOT, MetricWriters
from convoy.trainer.evaluation.results import append_result, truncate_results
from convoy.trainer.run.directory import RunDirectory


class RunLogger:
    """The run directory's files, other than checkpoints, as training fills them."""

    def __init__(self, run: RunDirectory, *, total_steps: int, writes: bool, warn: Callable[[str], None]):
        """Writes nothing yet.

        Args:
          run: where to.
          total_steps: of the run.
          writes: whether this process is the one that writes.
          warn: shows a line.
        """
        self._run = run
        self._writes = writes
        self._warn = warn
        self._failing: set[str] = set()
        self._writers = MetricWriters(run, total_steps=total_steps)

    def begin(self, step: int, files: Mapping[str, Any], pages: Mapping[str, Sequence[Summary.Value]]) -> None:
        """Drops what was written after `step`, and writes `RUN/NAME.json` and the same as text for TensorBoard.

        Args:
          step: where this start begins.
          files: JSON values by name.
          pages: what TensorBoard shows of the run as such, by the name of its run there.

        Raises:
          DataError: something cannot be written.
        """
        if not self._writes:
            return
        command = shlex.join(sys.argv)
        texts = [summaries.text_of_json(f"run/{name}", value) for name, value in files.items()]
        shown = {**pages, "train": [*pages.get("train", ()), *texts, summaries.text("run/command", command)]}
        try:
            self._go_back(step, without={value.tag for values in shown.values() for value in values})
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
        if not self._writes:
            return
        with self.tolerating("metrics"):
            self._go_back(step)

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

    def best(self, step: int, top1: float) -> None:
        """Notes the best top-1 so far, by which TensorBoard compares runs."""
        if not self._writes:
            return
        with self.tolerating("TensorBoard's event file"):
            self._writers.show_scalars(ROOT, step, {"best/top1": top1})

    def show(self, name: str, step: int, values: Iterable[Summary.Value]) -> None:
        """Writes what else TensorBoard shows (`tensorboard.summaries`), in its run `name`."""
        if not self._writes:
            return
        with self.tolerating("TensorBoard's event file"):
            self._writers.show(name, step, values)

    def evaluation(self, split: str, step: int, quality: Mapping[str, float]) -> None:
        """Adds a row to results.csv."""
        if not self._writes:
            return
        with self.tolerating("results.csv"):
            append_result(self._run, step=step, split=split, quality=quality)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes result.json and the curves, and tells TensorBoard that this is the end.

        Raises:
          DataError: result.json cannot be written.
        """
        if not self._writes:
            return
        self.show(ROOT, result["step"], [summaries.session_end(time.time())])
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

    def _go_back(self, step: int, **what: Any) -> None:  # noqa: ANN401 (as `MetricWriters.go_back` takes it)
        self._writers.go_back(step, **what)
        truncate_results(self._run, step)

    @contextlib.contextmanager
    def tolerating(self, what: str) -> Iterator[None]:
        """Turns a failure to write inside into a warning, the first of several in a row; `what` names the file."""
        try:
            yield
            self._failing.discard(what)
        except OSError as error:
            if what not in self._failing:
                self._failing.add(what)
                self._warn(f"Warning: {what} cannot be written ({error.strerror or error}). Training goes on without.")
