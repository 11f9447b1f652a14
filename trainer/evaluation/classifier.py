"""Class probabilities for images: `RunClassifier` for a trained run, `convoy.trainer.export.classifier` for an export.

classifier = classifier_of(trained)
for probabilities in classifier.probabilities(lambda number: images[number], len(images)):
    classifier.class_names[probabilities.argmax()]
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import tensorflow as tf

from convoy.core.processes import usable_cores
from convoy.input_pipeline.reading.decode import Crop
from convoy.trainer.evaluation.grad_cam import GradCam
from convoy.trainer.evaluation.inference import evaluation_batch_size, infer
from convoy.trainer.run.task import Decision
from convoy.trainer.session.restore import TrainedRun
from convoy.trainer.step.outputs import calibrated, logits_of_mean, probabilities
from convoy.trainer.tf_compat.internals import iterate


class Classifier(Protocol):
    """Anything that returns class probabilities for images."""

    @property
    def class_names(self) -> Sequence[str]:
        """The class names, by label."""

    @property
    def decision(self) -> Decision:
        """How probabilities become labels."""

    @property
    def crop(self) -> Crop:
        """How to resize the images it takes."""

    @property
    def step(self) -> int:
        """Step of the weights; of an ensemble, that of its first model."""

    @property
    def checkpoint(self) -> str:
        """As `TrainedRun.checkpoint`."""

    @property
    def models(self) -> int:
        """Number of models whose probabilities are averaged."""

    @property
    def flip_tta(self) -> bool:
        """Whether the run's config asks for flip test-time augmentation."""

    def probabilities(
        self, image_of: Callable[[tf.Tensor], tf.Tensor], num_images: int, *, flip_tta: bool = False
    ) -> Iterator[np.ndarray]:
        """Yields each image's class probabilities, [num_classes] float32.

        Args:
          image_of: maps an image's number, int64, to its pixels, [size, size, 3] uint8, as a TensorFlow graph.
          num_images: 1 or more.
          flip_tta: average with the probabilities of the mirror image.
        """


class RunClassifier:
    """A trained run on its devices, or an ensemble of runs that resize images in the same way.

    Attributes:
      models: number of models whose probabilities are averaged.
    """

    def __init__(self, trained: TrainedRun):
        """Compiles nothing yet."""
        self._runtimes = [member.runtime for member in trained.members]
        self.models = len(self._runtimes)
        self._compiled: dict[bool, Callable[[tf.Tensor], tuple[tf.Tensor, ...]]] = {}  # by flip_tta
        self._task, self._deterministic = trained.task, trained.config.deterministic
        self._temperatures = [member.temperature or 1.0 for member in trained.members]
        self.class_names = trained.class_names
        self.decision = trained.decision
        self.crop = trained.crop
        self.step = trained.step
        self.checkpoint = trained.checkpoint
        self.flip_tta = trained.flip_tta

    def probabilities(
        self, image_of: Callable[[tf.Tensor], tf.Tensor], num_images: int, *, flip_tta: bool = False
    ) -> Iterator[np.ndarray]:
        """Implements `Classifier.probabilities`."""
        strategy = self._runtimes[0].strategy
        replicas = strategy.num_replicas_in_sync
        batch = evaluation_batch_size(num_images, replicas, deterministic=self._deterministic) // replicas
        padded = -(-num_images // (batch * replicas)) * batch * replicas
        numbers = tf.data.Dataset.range(padded).map(lambda number: tf.minimum(number, num_images - 1))
        dataset = numbers.map(image_of, num_parallel_calls=usable_cores()).batch(batch).prefetch(2 * replicas)
        distributed = strategy.distribute_datasets_from_function(lambda context: dataset)

        remaining = num_images
        with contextlib.closing(iterate(distributed)) as batches:
            for images in batches:
                for found in self._classify(flip_tta)(images):
                    yield from found.numpy()[:remaining]
                    remaining = max(0, remaining - batch)

    @functools.cached_property
    def grad_cam(self) -> GradCam:
        """Makes heat maps of the same model; of an ensemble, of its first one."""
        runtime = self._runtimes[0]
        return GradCam(runtime.state, runtime.built, self.crop.size)

    def _classify(self, flip_tta: bool) -> Callable[[tf.Tensor], tuple[tf.Tensor, ...]]:
        """Returns the compiled function from a distributed batch to each replica's probabilities."""
        if flip_tta in self._compiled:
            return self._compiled[flip_tta]
        strategy = self._runtimes[0].strategy

        def one_replica(images: tf.Tensor) -> tf.Tensor:
            views = (images, tf.reverse(images, [2])) if flip_tta else (images,)
            of_models = []
            for runtime, temperature in zip(self._runtimes, self._temperatures, strict=True):
                logits = [infer(runtime.state, runtime.built, view) for view in views]
                of_models.append(calibrated(logits_of_mean(logits, self._task), temperature))
            return probabilities(logits_of_mean(of_models, self._task), self._task)

        @tf.function(autograph=False, reduce_retracing=True)
        def classify(images: tf.Tensor) -> tuple[tf.Tensor, ...]:
            run = strategy.run(one_replica, (images,))
            return strategy.experimental_local_results(run)

        self._compiled[flip_tta] = classify
        return classify


class MixedEnsemble:
    """Runs that resize images in different ways, each of which therefore loads the images itself (`loading`).

    Attributes:
      parts: the runs, together where they resize in the same way.
      models: number of models whose probabilities are averaged.
    """

    def __init__(self, parts: Sequence[RunClassifier], checkpoint: str = ""):
        """Takes the parts; `checkpoint` is that of the whole ensemble."""
        self.parts = parts
        self.class_names = parts[0].class_names
        self.step, self.checkpoint = parts[0].step, checkpoint
        self.decision = parts[0].decision
        self.models = sum(part.models for part in parts)
        self.flip_tta = any(part.flip_tta for part in parts)


def classifier_of(trained: TrainedRun) -> RunClassifier | MixedEnsemble:
    """Returns the classifier of a run or an ensemble."""
    by_crop: dict[Crop, list[TrainedRun]] = {}
    for member in trained.members:
        by_crop.setdefault(member.crop, []).append(member)
    parts = [RunClassifier(replace(first, others=tuple(others))) for first, *others in by_crop.values()]
    return MixedEnsemble(parts, trained.checkpoint) if len(parts) > 1 else parts[0]
