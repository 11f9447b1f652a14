"""Records which images each step trained on, for audits and for tests that no image is skipped or repeated.

RUN/order/worker-RANK.jsonl has one line per step, `{"step": 7, "images": [...]}`: the images that this worker fed to
its devices in that step, by index in the training split.
"""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from convoy.core.errors import DataError
from convoy.core.files import append_json_line
from convoy.trainer.run.directory import RunDirectory, truncate_json_lines


class OrderRecord:
    """The order file of one worker."""

    def __init__(self, run: RunDirectory, rank: int):
        """Prepares a record; writes nothing yet."""
        self._folder = run.sample_order
        self._rank = rank

    def truncate(self, step: int) -> None:
        """Drops the lines after `step` from all workers' files. Only the chief acts, before any worker writes again.

        Raises:
          DataError: a file cannot be read or written.
        """
        if self._rank:
            return
        for path in self._folder.glob("worker-*.jsonl"):
            try:
                truncate_json_lines(path, step)
            except OSError as error:
                raise DataError(f"{path}: cannot be read or written ({error.strerror}).") from None

    def write(self, step: int, batch: Mapping[str, tf.Tensor], strategy: tf.distribute.Strategy) -> None:
        """Appends the line of a step.

        Must be called before the step runs: a worker killed in between must not leave a step that is in a checkpoint
        without its line.

        Args:
          step: number of the step, from 1.
          batch: its distributed batch, with `index` [replica_batch] int64 on each device.
          strategy: strategy that distributes the batch.

        Raises:
          OSError: the line cannot be written.
        """
        self._folder.mkdir(exist_ok=True)
        images = np.concatenate([part.numpy() for part in strategy.experimental_local_results(batch["index"])])
        append_json_line(self._folder / f"worker-{self._rank}.jsonl", {"step": step, "images": images.tolist()})
