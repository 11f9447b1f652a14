"""The sections of the report on an evaluation with several labels per image: classes, and the most confident errors.

evaluated = LabelEvaluated.of(evaluation, predictions)
values_of(evaluated, class_names, thumbnails)        # for label_analysis.html.j2
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convoy.input_pipeline.report.pictures import Picture
from convoy.trainer.evaluation.class_pictures import most_confident
from convoy.trainer.evaluation.class_scores import ClassScores, scores_of
from convoy.trainer.evaluation.label_predictions import LabelPredictions
from convoy.trainer.evaluation.predictions import Evaluation
from convoy.trainer.evaluation.report.analysis import ByClass

SECTIONS = {"classes": "Classes", "errors": "Errors"}  # titles by id
_CLASSES, _WORST, _BEST = 100, 40, 10
_ERRORS = 24

Thumbnails = Callable[[Sequence[int]], tuple[dict[int, Picture], str]]


@dataclass(frozen=True)
class LabelEvaluated:
    """An evaluation with several labels per image, and the metrics of its classes at the thresholds of the run."""

    evaluation: Evaluation
    predictions: LabelPredictions
    scores: ClassScores
    classes: ByClass

    @classmethod
    def of(cls, evaluation: Evaluation, predictions: LabelPredictions) -> "LabelEvaluated":
        """Analyses the predictions of an evaluation."""
        scores = scores_of(predictions.targets, predictions.probabilities, evaluation.thresholds)
        return cls(evaluation, predictions, scores, ByClass(scores.actual, scores.predicted, scores.hits))

    @property
    def exact(self) -> float:
        """Share of the images that get exactly their labels."""
        predicted = self.predictions.predicted(self.evaluation.thresholds)
        return float((predicted == self.predictions.targets).all(1).mean())


def values_of(evaluated: LabelEvaluated, names: Sequence[str], thumbnails: Thumbnails) -> dict[str, Any]:
    """Returns the template's values for an evaluation.

    Args:
      evaluated: the evaluation.
      names: class names by label.
      thumbnails: returns thumbnails by index in the split, and why there are none.
    """
    found, scores, classes = evaluated.predictions, evaluated.scores, evaluated.classes
    split = evaluated.evaluation.split
    predicted = found.predicted(scores.thresholds)
    order = classes.worst_first()
    is_cut = len(order) > _CLASSES
    errors = {"extra": predicted & ~found.targets, "missed": found.targets & ~predicted}
    chosen = {kind: _most_confident(found, scores.thresholds, wrong) for kind, wrong in errors.items()}
    pictures, why_none = thumbnails(sorted({image for some in chosen.values() for image, *_ in some}))
    return {
        "why_no_pictures": why_none,
        "classes": _rows(evaluated, names, order[:_WORST] if is_cut else order),
        "best_classes": _rows(evaluated, names, order[::-1][:_BEST] if is_cut else order[:0]),
        "num_classes": len(order),
        "exact": evaluated.exact,
        "labels_per_image": float(found.targets.sum(1).mean()),
        "predicted_per_image": float(predicted.sum(1).mean()),
        **{f"num_{kind}": int(wrong.sum()) for kind, wrong in errors.items()},
        **{
            kind: [
                {
                    "picture": pictures.get(image) or Picture("", found.filename[image], "", split),
                    "name": names[label],
                    "probability": found.probabilities[image, label],
                    "threshold": scores.thresholds[label],
                    "labels": ", ".join(names[own] for own in np.flatnonzero(found.targets[image]).tolist()) or "none",
                }
                for image, label in some
            ]
            for kind, some in chosen.items()
        },
    }


def _most_confident(found: LabelPredictions, thresholds: np.ndarray, wrong: np.ndarray) -> list[tuple[int, int]]:
    """Returns image and label of the most confident errors of one kind, one per image."""
    agreeing = np.where(wrong, found.targets, found.predicted(thresholds))
    mistakes = most_confident(np.arange(len(agreeing)), agreeing, found.probabilities, thresholds, _ERRORS)
    return [(mistake.index, mistake.label) for mistake in mistakes]


def _rows(evaluated: LabelEvaluated, names: Sequence[str], labels: np.ndarray) -> list[tuple[Any, ...]]:
    """Returns name, images, average precision, threshold, precision, recall and F1 of classes."""
    scores = evaluated.scores
    return [
        (name, images, scores.average_precision[label].item(), scores.thresholds[label].item(), *others)
        for label, (name, images, *others) in zip(labels, evaluated.classes.rows(names, labels), strict=True)
    ]
