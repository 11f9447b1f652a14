"""Which images each step trained on, written down as it happens: for audits and for proofs that none is lost.

RUN/order/worker-RANK.jsonl holds a line a step, `{"step": 7, "images": [...]}`: the images that this worker fed to
its devices for that step, by their index in the training split.
"""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from convoy.core.files import append_json_line
from convoy.trainer.run.directory import RunDirectory, truncate_json_lines


class OrderRecord:
    """One worker's file."""

    def __init__(self, run: RunDirectory, rank: int):
        """Writes nothing yet."""
        self._folder = run.sample_order
        self._rank = rank

    def go_back(self, step: int) -> None:
        """Drops the lines after `step`: the chief from every worker's file, before any worker writes again."""
        if self._rank:
            return
        for path in self._folder.glob("worker-*.jsonl"):
            truncate_json_lines(path, step)

    def write(self, step: int, batch: Mapping[str, tf.Tensor], strategy: tf.distribute.Strategy) -> None:
        """Adds the line of a step that is about to be done.

        Before it, so that no worker can be killed between a step that ends up in a checkpoint and its line.

        Args:
          step: updates done with it.
          batch: its distributed batch, with `index` [replica_batch] int64 on each device.
          strategy: of the batch.

        Raises:
          OSError: it cannot be written.
        """
        self._folder.mkdir(exist_ok=True)
        images = np.concatenate([part.numpy() for part in strategy.experimental_local_results(batch["index"])])
        append_json_line(self._folder / f"worker-{self._rank}.jsonl", {"step": step, "images": images.tolist()})
