"""TensorBoard's images, precision-recall curves and histograms: a training batch, and the errors of ten evaluations."""

import contextlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary

from convoy.input_pipeline.augment.apply import on_device
from convoy.input_pipeline.augment.pipeline import Operation, parse_pipeline
from convoy.input_pipeline.reading.decode import Crop
from convoy.input_pipeline.reading.reader import Batch, Reader
from convoy.trainer.callbacks.callback import Callback, Evaluation, Training
from convoy.trainer.callbacks.run_writer import RunWriter
from convoy.trainer.callbacks.tensorboard import summaries
from convoy.trainer.config import resolution
from convoy.trainer.evaluation import pictures
from convoy.trainer.evaluation.class_pictures import LabelSummary
from convoy.trainer.evaluation.counts import EvaluationSummary
from convoy.trainer.evaluation.grad_cam import GradCam
from convoy.trainer.evaluation.lettering import legend, names_in_pictures
from convoy.trainer.step.step import StepResult

_WITH_HEAT_MAPS = 8  # errors, with three pictures each
Summarized = EvaluationSummary | LabelSummary


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
    labels = columns["label"]
    shown = [[label] for label in labels] if labels.ndim == 1 else [np.flatnonzero(targets) for targets in labels]
    captions = [[", ".join(names[label] for label in own)] for own in shown]
    grid = pictures.image_grid(np.uint8(np.rint(pixels.numpy())), captions)
    numbered = [f"{number}: {name}" for number, name in legend(class_names).items()]
    texts = [summaries.text("media/class_numbers", "\n".join(numbered))] if numbered else []
    return [summaries.image("media/train_batch", grid), *texts]


class TensorBoardPages(Callback):
    """Writes pictures, precision-recall curves and histograms; the curves of the metrics are those of `RunWriter`."""

    def __init__(self, run_writer: RunWriter):
        """Args: run_writer: writes TensorBoard's event files; comes before this callback."""
        self._run_writer = run_writer
        self._grad_cam: GradCam | None = None

    def on_batch(self, training: Training, batch: Batch) -> None:
        """Writes the images of the first training batch of the run."""
        if training.step == 0:
            with training.paused("log"):
                session = training.session
                pipeline = parse_pipeline(session.config.augment.ops, image_size=session.config.image_size)
                strategy = session.runtime.strategy
                shown = train_batch(batch, pipeline.device, session.dataset.class_names, strategy)
                self._run_writer.show("media", 0, shown)

    def on_step_end(self, training: Training, result: StepResult) -> None:
        """Writes a histogram of each weight every `config.histogram_every`."""
        every_steps = training.session.plan.histogram_every_steps
        if every_steps and training.step % every_steps == 0:
            with training.paused("log"):
                weights = training.weights().items()
                shown = [summaries.histogram(f"weights/{path}", value) for path, value in weights]
                self._run_writer.show("train", training.step, shown)

    def on_evaluation(self, training: Training, evaluation: Evaluation) -> None:
        """Writes confusion matrix, most confident errors and precision-recall curves, if there is a summary."""
        summary, step = evaluation.summary, evaluation.step
        if summary:
            class_names = training.session.dataset.class_names
            title = f"{evaluation.split}, step {step}"
            shown = []
            if isinstance(summary, EvaluationSummary):
                shown.append(summaries.image("media/confusion_matrix", _confusion_matrix(title, summary, class_names)))
            if summary.mistakes:
                shown += self._errors(training, evaluation.split, summary)
            self._run_writer.show("media", step, shown)
            curves = [
                summaries.pr_curve(_curve_tag(label, class_names), positives, negatives)
                for label, (positives, negatives) in summary.curves.items()
            ]
            self._run_writer.show(evaluation.split, step, curves)

    def _errors(self, training: Training, split: str, summary: Summarized) -> list[Summary.Value]:
        """Returns pictures of the most confident errors, and heat maps of some, with one label per image."""
        session, mistakes = training.session, summary.mistakes
        size = resolution.evaluation_size(session.config)
        crop = Crop(size, **resolution.crop_settings(session.config))
        names = names_in_pictures(session.dataset.class_names)
        indices = np.array([mistake.index for mistake in mistakes])
        with contextlib.closing(Reader(session.dataset.split(split), crop)) as reader:
            images, seen = reader.images(indices), reader.seen(indices[:_WITH_HEAT_MAPS])
        captions = [mistake.caption(names) for mistake in mistakes]
        shown = [summaries.image("media/worst", pictures.image_grid(images, captions))]
        if isinstance(summary, LabelSummary):
            return shown
        self._grad_cam = self._grad_cam or GradCam(session.runtime.state, session.runtime.model_for_size(size), size)
        if not self._grad_cam.obstacle:
            labels = np.array([(m.predicted, m.label) for m in summary.mistakes[:_WITH_HEAT_MAPS]])
            shown.append(
                summaries.image("media/grad_cam", _heat_grid(seen, self._grad_cam.maps(seen, labels), labels, names))
            )
        return shown


def _heat_grid(seen: np.ndarray, maps: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Returns each image and its heat maps for the predicted class and the label, two images per row."""
    tiles: list[np.ndarray] = []
    captions: list[tuple[str, ...]] = []
    for image, heat, (predicted, label) in zip(seen, maps, labels.tolist(), strict=True):
        tiles += [image, *(pictures.heat_overlay(image, each) for each in heat)]
        captions += [(f"label {names[label]}", f"predicted {names[predicted]}")]
        captions += [(f"evidence for {names[each]}",) for each in (predicted, label)]
    return pictures.image_grid(tiles, captions, columns=6)


def _confusion_matrix(title: str, summary: EvaluationSummary, class_names: Sequence[str]) -> Image.Image:
    shares = pictures.row_shares(summary.labels, summary.predicted, summary.counts, summary.num_classes)
    return pictures.confusion_matrix(shares, names_in_pictures(class_names), title)


def _curve_tag(label: int, class_names: Sequence[str]) -> str:
    # In a group of its own, because a class may be named `micro` too.
    return "pr/micro" if label < 0 else f"pr_of_class/{pictures.printable(class_names[label])}"
