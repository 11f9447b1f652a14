"""TensorBoard's images and precision-recall curves: a training batch, and the errors of ten evaluations per run.

    pages = EvaluationPages(reader, class_names, worker_group, run_logger, every_steps=100, total_steps=4000)
    counts = pages.counts(step)                   # None if this evaluation is not shown
    evaluator.metrics(each=counts.add)
    pages.show(step, counts)

Ten, evenly over the run, because TensorBoard keeps ten images per tag, and because each takes time and disk space.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary

from convoy.input_pipeline.augment.apply import on_device
from convoy.input_pipeline.augment.pipeline import Operation
from convoy.input_pipeline.reading.reader import Batch, Reader
from convoy.trainer.callbacks.run_logger import RunLogger
from convoy.trainer.callbacks.tensorboard import summaries
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.evaluation import pictures
from convoy.trainer.evaluation.counts import EvaluationCounts, EvaluationSummary
from convoy.trainer.evaluation.lettering import legend, names_in_pictures

_SHOWN_EVALUATIONS = 10


def train_batch(
    batch: Batch, operations: Sequence[Operation], class_names: Sequence[str], strategy: tf.distribute.Strategy
) -> list[Summary.Value]:
    """Returns the first images of a training batch, augmented and not yet mixed.

    With them, the names of the classes that pictures show by number, if there are any.

    Args:
      batch: a distributed batch; images on this process's devices are shown.
      operations: the device operations of the augmentation pipeline.
      class_names: by label.
      strategy: the strategy that distributes the batch.
    """
    columns = {}
    for name in ("image", "label", "randomness"):
        parts = strategy.experimental_local_results(batch[name])
        columns[name] = np.concatenate([part[: pictures.GRID_IMAGES].numpy() for part in parts])[: pictures.GRID_IMAGES]
    with tf.device("/CPU:0"):
        pixels = on_device(tf.constant(columns["image"]), tf.constant(columns["randomness"]), operations)
    names = names_in_pictures(class_names)
    captions = [[names[label]] for label in columns["label"]]
    grid = pictures.image_grid(np.uint8(np.rint(pixels.numpy())), captions)
    numbered = [f"{number}: {name}" for number, name in legend(class_names).items()]
    texts = [summaries.text("media/class_numbers", "\n".join(numbered))] if numbered else []
    return [summaries.image("media/train_batch", grid), *texts]


class EvaluationPages:
    """Confusion matrix, most confident errors and precision-recall curves of a run's evaluations."""

    def __init__(
        self,
        reader: Reader,
        class_names: Sequence[str],
        worker_group: WorkerGroup,
        run_logger: RunLogger,
        *,
        every_steps: int,
        total_steps: int,
    ):
        """Shows nothing yet; `reader` reads the evaluated split, `every_steps` is the distance of evaluations."""
        self._reader = reader
        self._class_names = class_names
        self._worker_group = worker_group
        self._run_logger = run_logger
        self._every_steps = every_steps
        self._total_steps = total_steps

    def counts(self, step: int) -> EvaluationCounts | None:
        """Returns empty counts if the evaluation of `step` is one to show, the same on every worker; else None."""
        before, now = (at * _SHOWN_EVALUATIONS // self._total_steps for at in (step - self._every_steps, step))
        is_shown = now > before or step == self._total_steps
        return EvaluationCounts(len(self._class_names)) if is_shown else None

    def show(self, step: int, counts: EvaluationCounts, *, seconds: float | None = None) -> None:
        """Shows an evaluation. All workers must call it at the same point.

        Args:
          step: step of the evaluated weights.
          counts: this worker's counts.
          seconds: how long to wait for the other workers.

        Raises:
          PeerLostError: another worker is gone.
          DataError: an image can no longer be read.
        """
        summary = counts.gather(self._worker_group, seconds=seconds)
        if not self._worker_group.is_chief:
            return
        shown = [summaries.image("media/confusion_matrix", self._confusion_matrix(step, summary))]
        if summary.mistakes:
            shown.append(summaries.image("media/worst", self._errors(summary)))
        self._run_logger.show("media", step, shown)
        curves = [
            summaries.pr_curve(self._curve_tag(label), positives, negatives)
            for label, (positives, negatives) in summary.curves.items()
        ]
        self._run_logger.show("validation", step, curves)

    def _confusion_matrix(self, step: int, summary: EvaluationSummary) -> Image.Image:
        shares = pictures.row_shares(summary.labels, summary.predicted, summary.counts, summary.num_classes)
        return pictures.confusion_matrix(shares, names_in_pictures(self._class_names), f"validation, step {step}")

    def _errors(self, summary: EvaluationSummary) -> Image.Image:
        names = names_in_pictures(self._class_names)
        captions = [
            (f"label {names[m.label]}", f"predicted {names[m.predicted]}", f"confidence {m.probability:.1%}")
            for m in summary.mistakes
        ]
        return pictures.image_grid(self._reader.images(np.array([m.index for m in summary.mistakes])), captions)

    def _curve_tag(self, label: int) -> str:
        # In a group of its own, because a class may be named `micro` too.
        return "pr/micro" if label < 0 else f"pr_of_class/{pictures.printable(self._class_names[label])}"
