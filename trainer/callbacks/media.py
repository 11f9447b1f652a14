"""What TensorBoard shows of images: those that training sees, and of ten evaluations a run what they got wrong.

    pages = EvaluationPages(reader, class_names, peers, journal, every_steps=100, total_steps=4000)
    judgements = pages.judgements(step)           # None where this evaluation is not shown
    evaluator.metrics(each=judgements.add)
    pages.show(step, judgements)

Ten, evenly over the run, because TensorBoard keeps ten pictures of a tag, and because each costs time and room.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.summary_pb2 import Summary

from convoy.input_pipeline.augment.apply import on_device
from convoy.input_pipeline.augment.pipeline import Operation
from convoy.input_pipeline.reading.reader import Batch, Reader
from convoy.trainer.callbacks.run_logger import RunLogger
from convoy.trainer.callbacks.tensorboard import pictures, summaries
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.evaluation.counts import EvaluationCounts, EvaluationSummary

_SHOWN_EVALUATIONS = 10


def train_batch(
    batch: Batch, operations: Sequence[Operation], class_names: Sequence[str], strategy: tf.distribute.Strategy
) -> Summary.Value:
    """Returns the first images of a training batch, augmented on host and device and not yet mixed.

    Args:
      batch: distributed; those that this process's devices have are shown.
      operations: those that the step does.
      class_names: by label.
      strategy: of the batch.
    """
    columns = {}
    for name in ("image", "label", "randomness"):
        parts = strategy.experimental_local_results(batch[name])
        columns[name] = np.concatenate([part[: pictures.GRID_IMAGES].numpy() for part in parts])[: pictures.GRID_IMAGES]
    with tf.device("/CPU:0"):
        pixels = on_device(tf.constant(columns["image"]), tf.constant(columns["randomness"]), operations)
    captions = [[class_names[label]] for label in columns["label"]]
    return summaries.image("media/train_batch", pictures.grid(np.uint8(np.rint(pixels.numpy())), captions))


def weight_histograms(weights: Mapping[str, np.ndarray]) -> list[Summary.Value]:
    """Returns how the values of each weight are distributed, by the weights' paths."""
    return [summaries.histogram(f"weights/{path}", value) for path, value in weights.items()]


class EvaluationPages:
    """Confusion matrix, worst mistakes and precision-recall curves of a run's evaluations."""

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
        """Shows nothing yet.

        Args:
          reader: of the split that is evaluated.
          class_names: by label.
          worker_group: the workers that evaluate together.
          run_logger: where to; the chief's shows.
          every_steps: steps between evaluations.
          total_steps: of the run.
        """
        self._reader = reader
        self._class_names = class_names
        self._worker_group = worker_group
        self._run_logger = run_logger
        self._every_steps = every_steps
        self._total_steps = total_steps

    def counts(self, step: int) -> EvaluationCounts | None:
        """Returns what to fill in the evaluation of `step`, where that is one to show: on every worker or on none."""
        before, now = (at * _SHOWN_EVALUATIONS // self._total_steps for at in (step - self._every_steps, step))
        is_shown = now > before or step == self._total_steps
        return EvaluationCounts(len(self._class_names)) if is_shown else None

    def show(self, step: int, counts: EvaluationCounts, *, seconds: float | None = None) -> None:
        """Shows an evaluation. All workers must call it at the same point.

        Args:
          step: of the weights that were evaluated.
          counts: this worker's.
          seconds: how long to wait for the others.

        Raises:
          PeerLostError: another worker is gone.
          DataError: an image cannot be read any more.
        """
        summary = counts.of_all(self._worker_group, seconds=seconds)
        if not self._worker_group.is_chief:
            return
        shown = [summaries.image("media/confusion_matrix", self._confusion_matrix(step, summary))]
        if summary.mistakes:
            shown.append(summaries.image("media/worst", self._worst(summary)))
        self._run_logger.show("media", step, shown)
        curves = [
            summaries.pr_curve(self._curve_tag(label), positives, negatives)
            for label, (positives, negatives) in summary.curves.items()
        ]
        self._run_logger.show("validation", step, curves)

    def _confusion_matrix(self, step: int, summary: EvaluationSummary) -> pictures.Image.Image:
        title = f"validation at step {step}: what each label's images are taken for"
        return pictures.confusion_matrix(summary.labels, summary.predicted, summary.counts, self._class_names, title)

    def _worst(self, summary: EvaluationSummary) -> pictures.Image.Image:
        names = self._class_names
        captions = [
            (f"is {names[m.label]}", f"said {names[m.predicted]}", f"with {m.probability:.1%}")
            for m in summary.mistakes
        ]
        return pictures.grid(self._reader.images(np.array([m.index for m in summary.mistakes])), captions)

    def _curve_tag(self, label: int) -> str:
        # A class may be called `micro` as well, so the classes have a group of their own.
        return "pr/micro" if label < 0 else f"pr_of_class/{summaries.shown_name(self._class_names[label])}"
