"""Metrics of a model over a whole split, each image counted once, on all replicas of all workers.

evaluator = Evaluator(state, built, reader, batch_size=256)
evaluator.metrics()        # {"loss": ..., "top1": ..., "top5": ..., "macro_f1": ..., "ece": ...}
"""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from convoy.input_pipeline.reading.reader import Reader
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.evaluation.class_scores import ClassScores, ScoreCollector
from convoy.trainer.evaluation.inference import distributed_batches, infer
from convoy.trainer.models import ModelBundle
from convoy.trainer.run.temperature import best_temperature
from convoy.trainer.session.objective import Objective
from convoy.trainer.session.runtime import batch_slice
from convoy.trainer.step.outputs import calibrated, logits_of_mean, probabilities, temperature_scores
from convoy.trainer.step.state import TrainState

EachBatch = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


class Member(NamedTuple):
    """A model of an ensemble, the reader of its images, and what its logits are divided by."""

    state: TrainState
    built: ModelBundle
    reader: Reader
    temperature: float = 1.0


class Evaluator:
    """Evaluates the current weights, or their average where the state keeps one.

    Attributes:
      scores: the metrics of each class in the last evaluation, with several labels per image; else None.
      best_temperature: what would have to divide the logits on the images of the last evaluation; 1 before.
    """

    def __init__(
        self,
        state: TrainState,
        built: ModelBundle,
        reader: Reader,
        batch_size: int,
        worker_group: WorkerGroup | None = None,
        *,
        objective: Objective | None = None,
        flip_tta: bool = False,
        others: Sequence[Member] = (),
        thresholds: Sequence[float] | None = None,
        temperature: float = 1.0,
    ):
        """Prepares the evaluation; the first call of `metrics` compiles it.

        Args:
          state: the weights.
          built: the model for images of the reader's size.
          reader: reads the split.
          batch_size: images per batch over all devices; rounded up to a multiple of their number.
          worker_group: workers that evaluate together; None for this process alone.
          objective: the loss and the metrics; None for those of the default config.
          flip_tta: average each image's probabilities with those of its mirror image.
          others: models whose probabilities are averaged with those of this one.
          thresholds: with several labels per image, of each class; None chooses them on the evaluated images.
          temperature: what the logits of this model are divided by, for all metrics.
        """
        self.scores: ClassScores | None = None
        self.best_temperature = 1.0
        self._thresholds = thresholds
        self._state = state
        self._reader = reader
        self._members = [Member(state, built, reader, temperature), *others]
        self._worker_group = worker_group or WorkerGroup(None)
        self._objective = objective or Objective()
        self._flip_tta = flip_tta
        strategy = state.strategy
        replicas = strategy.num_replicas_in_sync
        batch_size = -(-batch_size // replicas) * replicas
        slices = batch_slice(strategy, self._worker_group.rank, batch_size)
        self._steps = -(-reader.num_images // batch_size)
        # For a dataset of unknown length TensorFlow asks all workers before each batch whether they have another one.
        endless = tf.data.experimental.assert_cardinality(tf.data.experimental.INFINITE_CARDINALITY)
        self._datasets = {
            each: strategy.distribute_datasets_from_function(
                lambda context, each=each: each.evaluation(slices).apply(endless)
            )
            for each in dict.fromkeys(member.reader for member in self._members)
        }
        # A function of its own: TensorFlow counts the traces of a method over all evaluators, and warns.
        self._evaluate_batch = tf.function(lambda batches: self._all_replicas(batches), autograph=False)

    def metrics(self, *, seconds: float | None = None, each: EachBatch | None = None) -> dict[str, float]:
        """Returns the metrics of the whole split, the same on every worker; as `sums`."""
        return self.quality(self.sums(seconds=seconds, each=each))

    def sums(self, *, seconds: float | None = None, each: EachBatch | None = None) -> np.ndarray:
        """Returns the sums of the metrics over the whole split, the same on every worker.

        Args:
          seconds: how long to wait for the other workers at the end.
          each: called per batch with the images this worker classified: their indices in the split [n] int64, labels
            [n] int32 or [n, num_classes] float32, and probabilities [n, num_classes] float32.

        Raises:
          DataError: a record cannot be used.
          PeerLostError: another worker is gone.
        """
        total, scores, objective = np.float64(0), np.int64(0), self._objective
        collector = ScoreCollector() if objective.task.multi_label else None
        with contextlib.ExitStack() as stack:
            opened = [distributed_batches(dataset, reader) for reader, dataset in self._datasets.items()]
            for batches in opened:
                stack.enter_context(contextlib.closing(batches))
            for batch in itertools.islice(zip(*opened, strict=True), self._steps):
                sums, at_temperatures, found = self._evaluate_batch(batch)
                total, scores = total + sums.numpy(), scores + at_temperatures.numpy()
                if each or collector:
                    columns = self._without_padding(batch[0], found)
                    if collector:
                        collector.add(*columns[1:])
                    if each:
                        each(*columns)
                self._worker_group.report(self._state.step, "evaluation")
        gathered = self._worker_group.exchange("evaluation", [total.tolist(), scores.tolist()], seconds=seconds)
        total = np.sum(np.array([sums for sums, _ in gathered], np.float64), axis=0)
        self.best_temperature = best_temperature(np.sum([at for _, at in gathered], axis=0))
        counted = objective.metrics.base.image_count(total)
        if counted != self._reader.num_images:
            raise AssertionError(f"evaluation counted {counted} images of {self._reader.num_images}")
        if collector:
            self.scores = collector.gather(self._worker_group, self._thresholds, seconds=seconds)
        return total

    def quality(self, sums: np.ndarray) -> dict[str, float]:
        """Returns the metrics (`MetricSet.summarize`) of what `sums` has just returned."""
        return self._objective.metrics.summarize(sums) | (self.scores.quality() if self.scores else {})

    def _all_replicas(
        self, batch: tuple[dict[str, tf.Tensor], ...]
    ) -> tuple[tf.Tensor, tf.Tensor, tuple[tf.Tensor, ...]]:
        local = self._state.strategy.experimental_local_results
        sums, scores, found = self._state.strategy.run(self._one_replica, (batch,))
        return tf.add_n(local(sums)), tf.add_n(local(scores)), local(found)

    def _one_replica(self, batches: tuple[dict[str, tf.Tensor], ...]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        batch, of_models = batches[0], []
        images_of = {reader: one["image"] for reader, one in zip(self._datasets, batches, strict=True)}
        labels, weights, task = batch["label"], batch["weight"], self._objective.task
        for state, built, reader, temperature in self._members:
            images = images_of[reader]
            views = (images, tf.reverse(images, [2])) if self._flip_tta else (images,)
            of_model = logits_of_mean([infer(state, built, view) for view in views], task)
            of_models.append(calibrated(of_model, temperature))
        logits = logits_of_mean(of_models, task)
        losses = self._objective.evaluated_loss(logits, labels)
        sums = self._objective.metrics.batch_sums(logits, labels, losses, weights)
        return sums, temperature_scores(logits, labels, weights, task), probabilities(logits, task)

    def _without_padding(self, batch: dict[str, tf.Tensor], found: tuple[tf.Tensor, ...]) -> tuple[np.ndarray, ...]:
        local = self._state.strategy.experimental_local_results
        columns = [local(batch[name]) for name in ("weight", "index", "label")] + [found]
        weight, *others = (np.concatenate([part.numpy() for part in column]) for column in columns)
        return tuple(column[weight > 0] for column in others)
