"""The results of `Run.evaluate`, `Run.predict` and `Run.export`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from convoy.api.shown import Rows, Shown
from convoy.core.text import counted, megabytes, weights_text

if TYPE_CHECKING:
    from convoy.trainer.evaluation.predictions import Evaluation as SavedEvaluation
    from convoy.trainer.evaluation.predictions import Predictions as SavedPredictions
    from convoy.trainer.export.exporter import Exported


class Evaluation(Shown):
    """Exact metrics of a run on every image of a split; each metric is also an attribute, such as `top1`.

    Attributes:
      split: name of the split.
      step: last step of the weights.
      checkpoint: which checkpoints were used, such as `mean:3 (steps 80-100)` or `2 models (step 90, step 60)`; empty
        for a single one.
      models: number of models whose probabilities are averaged.
      images: number of images.
      flip_tta: whether probabilities are the mean over each image and its mirror image.
      metrics: by name: `loss` in nats; `top1`, `top5`, `macro_f1` and `ece` in [0, 1].
      class_names: class names, by label.
      filenames: file name of each image, in the order of the records; empty if a record has none.
      labels: label of each image, [images] int32.
      predicted: the most probable class of each image, [images] int32.
      label_probabilities: probability of its label, [images] float32.
      predicted_probabilities: probability of the predicted class, [images] float32.

    Example:
      found = convoy.open_run("run").evaluation("test")
      found.top1, found.confusion.sum()
      found.per_class()[0]["f1"]
      found
    """

    def __init__(self, evaluation: "SavedEvaluation", predictions: "SavedPredictions", class_names: Sequence[str]):
        """Takes what RUN/evaluation_SPLIT.json and RUN/predictions_SPLIT.csv contain."""
        self._take(evaluation, class_names)
        self._predictions = predictions
        self.filenames = list(predictions.filename)
        self.labels = predictions.label
        self.predicted = predictions.predicted
        self.label_probabilities = predictions.label_probability
        self.predicted_probabilities = predictions.predicted_probability

    def _take(self, evaluation: "SavedEvaluation", class_names: Sequence[str]) -> None:
        self.split = evaluation.split
        self.step, self.checkpoint, self.models = evaluation.step, evaluation.checkpoint, evaluation.models
        self.images = evaluation.images
        self.flip_tta = evaluation.flip_tta
        self.metrics = dict(evaluation.quality)
        self.class_names = tuple(class_names)

    def __getattr__(self, name: str) -> float:
        """Returns a metric by name."""
        if name in (metrics := self.__dict__.get("metrics", {})):
            return metrics[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}. Metrics: {', '.join(metrics)}.")

    def __dir__(self) -> list[str]:
        """The attributes with the metrics, for completion."""
        return [*super().__dir__(), *self.metrics]

    @property
    def confusion(self) -> np.ndarray:
        """Number of images by label (rows) and predicted class (columns), [num_classes, num_classes] int64."""
        matrix = np.zeros([len(self.class_names)] * 2, np.int64)
        np.add.at(matrix, (self.labels, self.predicted), 1)
        return matrix

    def per_class(self) -> Rows:
        """Returns a row per class: `class`, `images`, `precision`, `recall`, `f1`; NaN where the denominator is 0.

        Example:
          rows = convoy.open_run("run").evaluation("test").per_class()
          min(rows, key=lambda row: row["f1"])["class"]
        """
        from convoy.trainer.evaluation.report.analysis import by_class

        classes = by_class(self._predictions, len(self.class_names))
        names = ("class", "images", "precision", "recall", "f1")
        rows = classes.rows(self.class_names, np.arange(len(self.class_names)))
        return Rows(dict(zip(names, row, strict=True)) for row in rows)

    def predictions(self) -> Rows:
        """Returns a row per image: `filename`, `label`, `predicted`, their probabilities, and `correct`.

        Example:
          rows = convoy.open_run("run").evaluation("test").predictions()
          [row["filename"] for row in rows if not row["correct"]]
        """
        columns = (self.filenames, self.labels, self.predicted, self.label_probabilities, self.predicted_probabilities)
        return Rows(
            {
                "filename": filename,
                "label": self.class_names[label],
                "predicted": self.class_names[predicted],
                "label_probability": float(of_label),
                "predicted_probability": float(of_predicted),
                "correct": bool(label == predicted),
            }
            for filename, label, predicted, of_label, of_predicted in zip(*columns, strict=True)
        )

    def _title(self) -> str:
        tta = ", with flip test-time augmentation" if self.flip_tta else ""
        weights = weights_text(self.step, self.checkpoint)
        return f"Evaluation of {weights} on split {self.split!r}: {counted(self.images, 'image')}{tta}"

    def _facts(self) -> Mapping[str, object]:
        return self.metrics

    def _table(self) -> Rows:
        return self.per_class()


class Prediction(NamedTuple):
    """The prediction for one image.

    Attributes:
      name: path of the image, or its number.
      label: the most probable class; with several labels per image the list of its classes, the most probable first.
        None for an image that cannot be read.
      probability: its probability, in [0, 1]; with several labels that of the least probable one, and without any 1
        minus the highest one.

    Example:
      first = convoy.open_run("run").predict("photos/test")[0]
      first.name, first.label, first.probability
    """

    name: str
    label: str | list[str] | None
    probability: float


@dataclass(frozen=True, repr=False)
class Predictions(Shown):
    """Predictions for images, in their order. Iterating yields a `Prediction` for each.

    Attributes:
      names: path of each image, or its number if it is not a file.
      probabilities: [images, num_classes] float32; NaN for an image that cannot be read.
      class_names: class names, by label.
      step: last step of the weights.
      unreadable: reasons by name of the images that cannot be read.
      checkpoint: as `Evaluation.checkpoint`.
      models: number of models whose probabilities are averaged.
      thresholds: with several labels per image, smallest probability of each class that counts as a label; else None.

    Example:
      found = convoy.open_run("run").predict("photos/test")
      found.labels[:3], found.probabilities.shape
      for name, label, probability in found: pass
      found.top(2)[0]
      found
    """

    names: Sequence[str]
    probabilities: np.ndarray
    class_names: Sequence[str]
    step: int
    unreadable: Mapping[str, str]
    checkpoint: str = ""
    models: int = 1
    thresholds: Sequence[float] | None = None

    @property
    def labels(self) -> list[str | list[str] | None]:
        """The label of each image (`Prediction.label`)."""
        return [prediction.label for prediction in self]

    def __len__(self) -> int:
        """The number of images."""
        return len(self.names)

    def __iter__(self) -> Iterator[Prediction]:
        """Yields the prediction for each image."""
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Prediction:
        """Returns the prediction for an image."""
        probabilities = self.probabilities[number]
        if np.isnan(probabilities).any():
            return Prediction(self.names[number], None, float("nan"))
        from convoy.trainer.run.task import Decision

        decision = Decision(self.class_names, self.thresholds)
        labels, certainty = decision.labels(probabilities), decision.certainty(probabilities)
        names = [self.class_names[label] for label in labels]
        return Prediction(self.names[number], names if decision.multi_label else names[0], certainty)

    def top(self, count: int) -> list[list[tuple[str, float]]]:
        """Returns the `count` most probable classes of each image with their probabilities, the most probable first.

        Args:
          count: 1 to the number of classes.

        Example:
          convoy.open_run("run").predict("photos/test").top(3)[0]
        """
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :count]
        return [
            [(self.class_names[label], float(row[label])) for label in labels]
            for labels, row in zip(order, self.probabilities, strict=True)
        ]

    def to_dicts(self) -> Rows:
        """Returns a row per image: `name`, `label` and `probability`.

        Example:
          rows = convoy.open_run("run").predict("photos/test").to_dicts()
          rows[0]["label"]
        """
        return Rows(prediction._asdict() for prediction in self)

    def _title(self) -> str:
        weights = weights_text(self.step, self.checkpoint)
        return f"Predictions of {weights} for {counted(len(self), 'image')}"

    def _table(self) -> Rows:
        return self.to_dicts()


class Export(Shown):
    """The result of `Run.export`.

    Attributes:
      path: the folder.
      step: last step of the exported weights.
      checkpoint: as `Evaluation.checkpoint`.
      formats: names of the exported formats.
      files: file or folder by format.
      sizes: bytes by format.
      largest_differences: largest difference of a probability to evaluation in float32 by format, in [0, 1].
      left_out: why a requested format is not exported, by line.
      top1: of an export in int8, the top-1 accuracy of each format on the validation split, in [0, 1].
      float32_top1: the same before quantization.
      float32_sizes: bytes by format before quantization.

    Example:
      exported = convoy.open_run("run").export("exported", formats=["keras"])
      exported.sizes, exported.largest_differences, exported.left_out
    """

    def __init__(self, path: Path, exported: "Exported", left_out: Sequence[str]):
        """Takes the results of the exporter."""
        from convoy.trainer.export.loaders import FILES

        self.path = path
        self.step, self.checkpoint = exported.step, exported.checkpoint
        self.formats = tuple(exported.largest_differences)
        self.files = {name: path / FILES[name] for name in self.formats}
        self.sizes = dict(exported.bytes)
        self.largest_differences = dict(exported.largest_differences)
        self.left_out = tuple(left_out)
        self.top1 = {name: int8.top1 for name, int8 in exported.int8.items()}
        self.float32_top1 = {name: int8.float32_top1 for name, int8 in exported.int8.items()}
        self.float32_sizes = {name: int8.float32_bytes for name, int8 in exported.int8.items()}

    def _title(self) -> str:
        weights = weights_text(self.step, self.checkpoint)
        return f"Export of {weights} to {self.path}" + (" in int8" if self.top1 else "")

    def _facts(self) -> Mapping[str, object]:
        return {f"left out ({number})": text for number, text in enumerate(self.left_out, 1)}

    def _table(self) -> Rows:
        return Rows(
            {
                "format": name,
                "file": self.files[name].name,
                "size": megabytes(self.sizes[name]),
                "largest difference": self.largest_differences[name],
                **(self._int8(name) if self.top1 else {}),
            }
            for name in self.formats
        )

    def _int8(self, name: str) -> dict[str, object]:
        return {
            "size in float32": megabytes(self.float32_sizes[name]),
            "top-1": self.top1[name],
            "top-1 in float32": self.float32_top1[name],
        }
