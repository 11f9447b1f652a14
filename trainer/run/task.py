"""What a run predicts: one class per image, or any number of them. Imports no TensorFlow.

task = task_of(run.read_dataset())
task.score, task.titles["micro_f1"]                     # "mean_average_precision", "micro F1"
decision = Decision(class_names, thresholds, " ")
decision.text(probabilities)                            # "cat dog"
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Task:
    """What a run predicts.

    Attributes:
      multi_label: whether an image has any number of labels instead of one.
      metrics: names of the metrics of every run; `config.metrics` adds others.
      score: the one of them by which the best checkpoint is chosen.
      default_loss: the loss in place of the config's default.
    """

    multi_label: bool
    metrics: tuple[str, ...]
    score: str
    default_loss: str

    @property
    def labels_text(self) -> str:
        """How many labels an image has, as text."""
        return f"{'any number of labels' if self.multi_label else 'one label'} per image"

    @property
    def titles(self) -> dict[str, str]:
        """The names of the metrics in tables, by name."""
        return {name: _TITLES[name] for name in self.metrics}

    @property
    def score_title(self) -> str:
        """The name of the score in tables and sentences."""
        return _TITLES[self.score]

    def row(self, quality: Mapping[str, float]) -> dict[str, str]:
        """Returns the metrics of an evaluation as text, by title; further ones by name."""
        usual = {_TITLES[name]: _value_text(name, quality[name]) for name in self.metrics}
        return usual | {name: f"{value:.4f}" for name, value in self.more(quality).items()}

    def more(self, quality: Mapping[str, float]) -> dict[str, float]:
        """Returns the metrics of `config.metrics` among those of an evaluation."""
        return {name: value for name, value in quality.items() if name not in self.metrics}


def metric_title(name: str) -> str:
    """Returns the name of a metric of every run in tables."""
    return _TITLES[name]


def capitalized(title: str) -> str:
    """Returns a title of a metric at the beginning of a sentence."""
    return title[0].upper() + title[1:] if title.islower() else title


def _value_text(name: str, value: float) -> str:
    return f"{value:.4f}" if name == "loss" else f"{value:.2%}"


_TITLES = {
    "loss": "loss",
    "top1": "top-1",
    "top5": "top-5",
    "macro_f1": "macro F1",
    "ece": "ECE",
    "mean_average_precision": "mAP",
    "micro_f1": "micro F1",
}
SINGLE_LABEL = Task(False, ("loss", "top1", "top5", "macro_f1", "ece"), "top1", "cross_entropy")
MULTI_LABEL = Task(
    True,
    ("loss", "mean_average_precision", "micro_f1", "macro_f1"),
    "mean_average_precision",
    "bce",
)
DEFAULT_THRESHOLD = 0.5


def task_of_metrics(quality: Mapping[str, float]) -> Task:
    """Returns the task of an evaluation with these metrics."""
    return SINGLE_LABEL if SINGLE_LABEL.score in quality else MULTI_LABEL


def task_of(dataset: Mapping[str, Any]) -> Task:
    """Returns the task of a run from its dataset.json."""
    return MULTI_LABEL if dataset.get("multi_label") else SINGLE_LABEL


@dataclass(frozen=True)
class Decision:
    """How the probabilities of an image become labels.

    Attributes:
      class_names: class names, by label.
      thresholds: smallest probability of each class that counts as a label; None if an image has one label, the most
        probable one.
      delimiter: between the labels of an image in one text.
    """

    class_names: Sequence[str]
    thresholds: Sequence[float] | None = None
    delimiter: str = ""

    @property
    def multi_label(self) -> bool:
        """Whether an image has any number of labels."""
        return self.thresholds is not None

    def labels(self, probabilities: np.ndarray) -> list[int]:
        """Returns the labels of an image, the most probable first; `probabilities` is [num_classes]."""
        order = np.argsort(-probabilities, kind="stable").tolist()
        if self.thresholds is None:
            return order[:1]
        is_label = probabilities >= np.asarray(self.thresholds, np.float64)
        return [label for label in order if is_label[label]]

    def predicted(self, probabilities: np.ndarray) -> list[list[int]]:
        """Returns the labels of images, each in the order of the classes; `probabilities` is [n, num_classes]."""
        return [sorted(self.labels(row)) for row in probabilities]

    def certainty(self, probabilities: np.ndarray) -> float:
        """Returns the probability of the least probable label of an image; without any, 1 minus the highest one."""
        labels = self.labels(probabilities)
        return float(min(probabilities[labels])) if labels else 1 - float(probabilities.max())

    def text(self, probabilities: np.ndarray) -> str:
        """Returns the names of the labels of an image, in the order of the classes."""
        return self.delimiter.join(self.class_names[label] for label in sorted(self.labels(probabilities)))
