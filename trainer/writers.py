"""Where numbers go: TensorBoard's event files and metrics.jsonl, under the same tags.

writers = MetricWriters(run)
writers.write("train", step=20, values={"quality/loss": 3.1})
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping

import tensorflow as tf

from input_pipeline.files import append_json_line
from trainer.run_directory import RunDirectory

_LEAST_ROOM = 2**20  # bytes that must be free before an event file is begun


class MetricWriters:
    """Writes scalars of the runs `train` and `validation`."""

    def __init__(self, run: RunDirectory):
        """Opens nothing yet; a run's event file is made with its first value."""
        self._run = run
        self._summaries: dict[str, tf.summary.SummaryWriter] = {}

    def write(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Writes values of one split at one step.

        Args:
          split: `train` or `validation`.
          step: optimizer steps done.
          values: by tag. In metrics.jsonl those that are not finite become null.

        Raises:
          OSError, tf.errors.OpError: one of the two cannot be written. What can be is.
        """
        numbers = {tag: float(value) for tag, value in values.items()}
        try:
            append_json_line(self._run.metrics, {"step": step, "split": split, **numbers})
        finally:
            with self._dropped_on_failure(split), self._summary(split).as_default(step=step):
                for tag, value in values.items():
                    tf.summary.scalar(tag, value)

    def write_text(self, tag: str, value: object, *, step: int = 0) -> None:
        """Writes a JSON value as text that TensorBoard shows as it stands."""
        with self._summary("train").as_default(step=step):
            tf.summary.text(tag, f"```\n{json.dumps(value, indent=2)}\n```")

    def flush(self) -> None:
        """Sends what was written to disk."""
        for split, summary in list(self._summaries.items()):
            with self._dropped_on_failure(split):
                summary.flush()

    def close(self) -> None:
        """Ends the event files."""
        for summary in self._summaries.values():
            summary.close()

    def _summary(self, split: str) -> tf.summary.SummaryWriter:
        if split not in self._summaries:
            if shutil.disk_usage(self._run.path).free < _LEAST_ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._run.tensorboard / split))
            self._summaries[split] = tf.summary.create_file_writer(str(self._run.tensorboard / split))
        return self._summaries[split]

    @contextlib.contextmanager
    def _dropped_on_failure(self, split: str) -> Iterator[None]:
        """Begins another event file after a failure: no reader gets past what a full disk has torn in the old one."""
        try:
            yield
        except tf.errors.OpError:
            self._summaries.pop(split, None)
            raise
