"""Records which images each step trained on, for audits and for tests that no image is skipped or repeated.

RUN/order/worker-RANK.jsonl has one line per step, `{"step": 7, "images": [...]}`: the images that this worker fed to
its devices in that step, by index in the training split.
"""

import numpy as np

from convoy.core.errors import DataError
from convoy.core.files import append_json_line
from convoy.input_pipeline.reading.reader import Batch
from convoy.trainer.callbacks.callback import Callback, Training
from convoy.trainer.callbacks.tolerance import Tolerance
from convoy.trainer.run.directory import truncate_json_lines


class OrderRecord(Callback):
    """Writes the order file of each worker."""

    every_worker = True

    def on_start(self, training: Training) -> None:
        """Drops the lines after the step that the run starts from."""
        self._tolerance = Tolerance(training.say)
        self._truncate(training)

    def on_rollback(self, training: Training) -> None:
        """Drops the lines after the step that the run has gone back to."""
        self._truncate(training)

    def on_batch(self, training: Training, batch: Batch) -> None:
        """Appends the line of the next step.

        Before the step: a worker killed in between must not leave a step that is in a checkpoint without its line.
        """
        strategy, folder = training.session.runtime.strategy, training.session.run.sample_order
        with self._tolerance.of("the order record"):
            folder.mkdir(exist_ok=True)
            images = np.concatenate([part.numpy() for part in strategy.experimental_local_results(batch["index"])])
            line = {"step": training.step + 1, "images": images.tolist()}
            append_json_line(folder / f"worker-{training.rank}.jsonl", line)

    def _truncate(self, training: Training) -> None:
        """Truncates all workers' files; on the chief, before any worker writes again.

        Raises:
          DataError: a file cannot be read or written.
        """
        for path in training.session.run.sample_order.glob("worker-*.jsonl") if training.is_chief else ():
            try:
                truncate_json_lines(path, training.step)
            except OSError as error:
                raise DataError(f"{path}: cannot be read or written ({error.strerror}).") from None
