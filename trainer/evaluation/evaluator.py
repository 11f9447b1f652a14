"""Measures a model on every image of a split, once each.

evaluator = Evaluator(state, built, reader, batch_size=256)
evaluator.metrics()        # {"loss": ..., "top1": ..., "top5": ..., "macro_f1": ..., "ece": ...}
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Generator

import numpy as np
import tensorflow as tf

from convoy.core.errors import DataError
from convoy.input_pipeline.dataset.open import Dataset, open_dataset
from convoy.input_pipeline.dataset.storage import dataset_path
from convoy.input_pipeline.reading.decode import Crop
from convoy.input_pipeline.reading.reader import Reader
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.evaluation import predictions
from convoy.trainer.evaluation.results import append_result
from convoy.trainer.models import ModelBundle
from convoy.trainer.session.restore import TrainedRun
from convoy.trainer.session.runtime import batch_slice
from convoy.trainer.step import metrics
from convoy.trainer.step.losses import cross_entropy
from convoy.trainer.step.state import TrainState
from convoy.trainer.tf_compat.internals import iterate

EVALUATION_BATCH_SIZE = 256  # images at a time, over all devices
EachBatch = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


class Evaluator:
    """Evaluates the state as it stands, with the weights' moving average where it keeps one."""

    def __init__(
        self,
        state: TrainState,
        built: ModelBundle,
        reader: Reader,
        batch_size: int,
        worker_group: WorkerGroup | None = None,
        *,
        flip_tta: bool = False,
    ):
        """Prepares the evaluation; the first call compiles it.

        Args:
          state: whose weights to use.
          built: the model for images of the reader's size.
          reader: of the split.
          batch_size: images at a time over all devices; rounded up to a multiple of them.
          worker_group: the workers that evaluate together; alone where None.
          flip_tta: whether to take the mean of an image's probabilities and those of its mirror image.
        """
        self._state = state
        self._built = built
        self._reader = reader
        self._worker_group = worker_group or WorkerGroup(None)
        self._flip_tta = flip_tta
        strategy = state.strategy
        replicas = strategy.num_replicas_in_sync
        batch_size = -(-min(batch_size, reader.num_images) // replicas) * replicas
        slices = batch_slice(strategy, self._worker_group.rank, batch_size)
        self._steps = -(-reader.num_images // batch_size)
        # Told that it never ends, TensorFlow does not ask all workers at each batch whether they have one more.
        endless = tf.data.experimental.assert_cardinality(tf.data.experimental.INFINITE_CARDINALITY)
        self._dataset = strategy.distribute_datasets_from_function(
            lambda context: reader.evaluation(slices).apply(endless)
        )
        self._classified = tf.function(self._all_replicas, autograph=False)

    def metrics(self, *, seconds: float | None = None, each: EachBatch | None = None) -> dict[str, float]:
        """Returns the quality metrics of the whole split (`metrics.summarize`), the same on every worker.

        Args:
          seconds: how long to wait for the other workers at the end.
          each: called with the images that this worker's devices have classified, batch by batch: their numbers in the
            split [n] int64, labels [n] int32, and probabilities [n, num_classes] float32.

        Raises:
          DataError: a record cannot be used.
          PeerLostError: another worker is gone.
        """
        total = np.float64(0)
        with contextlib.closing(read_all(self._dataset, self._reader)) as batches:
            for batch in itertools.islice(batches, self._steps):
                sums, probabilities = self._classified(batch)
                total = total + sums.numpy()
                if each:
                    each(*self._without_padding(batch, probabilities))
                self._worker_group.report(self._state.step, "evaluation")
        gathered = self._worker_group.exchange("evaluation", total.tolist(), seconds=seconds)
        total = np.sum(np.array(gathered, np.float64), axis=0)
        counted = metrics.image_count(total)
        if counted != self._reader.num_images:
            raise AssertionError(f"evaluation counted {counted} images of {self._reader.num_images}")
        return metrics.summarize(total)

    def _all_replicas(self, batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        local = self._state.strategy.experimental_local_results
        sums, probabilities = self._state.strategy.run(self._one_replica, (batch,))
        return tf.add_n(local(sums)), local(probabilities)

    def _one_replica(self, batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        logits = infer(self._state, self._built, batch["image"])
        if self._flip_tta:
            mirrored = infer(self._state, self._built, tf.reverse(batch["image"], [2]))
            # The logarithms of the mean probabilities, which have these very probabilities as their softmax.
            both = tf.stack([tf.nn.log_softmax(logits), tf.nn.log_softmax(mirrored)])
            logits = tf.reduce_logsumexp(both, 0) - math.log(2.0)
        losses = cross_entropy(logits, batch["label"])
        return metrics.batch_sums(logits, batch["label"], losses, batch["weight"]), tf.nn.softmax(logits)

    def _without_padding(
        self, batch: dict[str, tf.Tensor], probabilities: tuple[tf.Tensor, ...]
    ) -> tuple[np.ndarray, ...]:
        local = self._state.strategy.experimental_local_results
        columns = [local(batch[name]) for name in ("weight", "index", "label")] + [probabilities]
        weight, *others = (np.concatenate([part.numpy() for part in column]) for column in columns)
        return tuple(column[weight > 0] for column in others)


def infer(state: TrainState, built: ModelBundle, images: tf.Tensor) -> tf.Tensor:
    """Returns the logits of whole images, in replica context.

    Args:
      state: whose weights to use: their moving average where there is one.
      built: the model.
      images: [batch, size, size, 3] uint8.

    Returns:
      [batch, num_classes] float32.
    """
    model = built.model
    inputs = tf.cast(built.scale_pixels(tf.cast(images, tf.float32)), model.compute_dtype)
    weights = [tf.convert_to_tensor(w) for w in state.evaluated_weights]
    # Those of the trained model: `built` may be one for images of another size, with statistics that nobody trained.
    others = [tf.convert_to_tensor(v.value) for v in state.model.non_trainable_variables]
    logits, _ = model.stateless_call(weights, others, inputs, training=False)
    return tf.cast(logits, tf.float32)


def read_all(dataset: tf.distribute.DistributedDataset, reader: Reader) -> Generator[dict[str, tf.Tensor], None, None]:
    """As `iterate`; an unusable record comes out as the DataError that names it."""
    with contextlib.closing(iterate(dataset)) as batches:
        try:
            yield from batches
        except tf.errors.OpError:
            if cause := reader.explain():
                raise cause from None
            raise


def evaluate_split(
    trained: TrainedRun, split_name: str, *, data: str | None = None, flip_tta: bool = False
) -> tuple[int, dict[str, float]]:
    """Evaluates a trained run on a split, adds the result to its results.csv, and keeps the predictions beside it.

    Args:
      trained: the run with its weights.
      split_name: `train`, `validation`, `test` or another of the dataset.
      data: the dataset directory; the run's own where None.
      flip_tta: as in `Evaluator`.

    Returns:
      How many images were evaluated, and the metrics (`metrics.summarize`).

    Raises:
      DataError: the dataset cannot be used, has no such split, or other classes than the run, or RUN cannot be written.
    """
    dataset, run, built = open_dataset_of(trained, data), trained.run, trained.runtime.built
    split = dataset.split(split_name)
    reader, collector = Reader(split, Crop(trained.image_size)), predictions.Collector()
    evaluator = Evaluator(trained.runtime.state, built, reader, EVALUATION_BATCH_SIZE, flip_tta=flip_tta)
    quality = evaluator.metrics(each=collector)
    evaluation = predictions.Evaluation(
        split=split_name,
        step=trained.step,
        images=reader.num_images,
        quality=quality,
        data=str(dataset.directory.resolve()),
        digest=dataset.digest(split_name),
        parameters=built.model.count_params(),
        time=time.time(),
        flip_tta=flip_tta,
    )
    try:
        append_result(run, step=trained.step, split=split_name, quality=quality)
        found = collector.predictions(predictions.filenames(split))
        predictions.save(run, evaluation, found, trained.class_names)
    except OSError as error:
        raise DataError(
            f"{error.filename or run.path} cannot be written ({error.strerror}). Make room for it."
        ) from None
    return reader.num_images, quality


def open_dataset_of(trained: TrainedRun, data: str | None = None) -> Dataset:
    """Opens the dataset of a run, or another of the same classes: `data`.

    Raises:
      DataError: it cannot be used, or has other classes than the run.
    """
    directory = data or trained.dataset["directory"]
    if not data and not dataset_path(directory).is_dir():
        raise DataError(f"the run's dataset {directory} is not there any more: say where it is with --data=DATA.")
    dataset = open_dataset(directory)
    if list(dataset.class_names) != trained.class_names:
        different = sorted(set(dataset.class_names) ^ set(trained.class_names)) or ["their order"]
        raise DataError(
            f"--data={dataset.directory} has {dataset.num_classes} classes and the run {len(trained.class_names)}; "
            f"different: {different[0]!r}. Convert with the classes that the run was trained on."
        )
    return dataset
