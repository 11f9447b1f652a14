"""The evaluation of a run with several labels per image."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from convoy.api.results import Evaluation
from convoy.api.shown import Rows

if TYPE_CHECKING:
    from convoy.trainer.evaluation.label_predictions import LabelPredictions
    from convoy.trainer.evaluation.predictions import Evaluation as SavedEvaluation
    from convoy.trainer.evaluation.predictions import Predictions as SavedPredictions
    from convoy.trainer.run.task import Decision


class LabelEvaluation(Evaluation):
    """Exact metrics of a run with several labels per image; each metric is also an attribute.

    Attributes:
      metrics: by name: `loss`, `mean_average_precision`, `micro_f1` and `macro_f1`, the last two at `thresholds`.
      thresholds: smallest probability of each class that counts as a label, chosen on the validation split.
      labels: labels of each image, [images, num_classes] bool.
      predicted: likewise what the model gives it.
      probabilities: [images, num_classes] float32.

    The other attributes are those of `Evaluation`.
    """

    def __init__(self, evaluation: "SavedEvaluation", predictions: "LabelPredictions", class_names: Sequence[str]):
        """Takes what RUN/evaluation_SPLIT.json and RUN/predictions_SPLIT.csv contain."""
        self._take(evaluation, class_names)
        self.filenames = list(predictions.filename)
        self.thresholds = dict(zip(class_names, evaluation.thresholds, strict=True))
        self.labels = predictions.targets
        self.predicted = predictions.predicted(evaluation.thresholds)
        self.probabilities = predictions.probabilities

    @property
    def confusion(self) -> np.ndarray:
        """Number of images by class, [num_classes, 2, 2] int64: rows without and with the label, columns predicted."""
        cells = [
            [np.sum((self.labels == has) & (self.predicted == gets), 0) for gets in (False, True)]
            for has in (False, True)
        ]
        return np.array(cells, np.int64).transpose(2, 0, 1)

    def per_class(self) -> Rows:
        """Returns a row per class: `class`, `images`, `average_precision`, `threshold`, `precision`, `recall`, `f1`."""
        from convoy.trainer.evaluation.class_scores import scores_of

        scores = scores_of(self.labels, self.probabilities, list(self.thresholds.values()))
        return Rows(
            {
                "class": name,
                "images": int(scores.actual[label]),
                "average_precision": float(scores.average_precision[label]),
                "threshold": float(scores.thresholds[label]),
                "precision": float(scores.precision[label]),
                "recall": float(scores.recall[label]),
                "f1": float(scores.f1[label]),
            }
            for label, name in enumerate(self.class_names)
        )

    def predictions(self) -> Rows:
        """Returns a row per image: `filename`, `labels` and `predicted`, each a list of class names, and `correct`."""
        names = np.array(self.class_names, object)
        return Rows(
            {
                "filename": filename,
                "labels": names[own].tolist(),
                "predicted": names[found].tolist(),
                "correct": bool((own == found).all()),
            }
            for filename, own, found in zip(self.filenames, self.labels, self.predicted, strict=True)
        )


def evaluation_of(
    evaluation: "SavedEvaluation", predictions: "SavedPredictions | LabelPredictions", decision: "Decision"
) -> Evaluation:
    """Returns an evaluation of a run, of one label per image or several."""
    from convoy.trainer.evaluation.predictions import Predictions

    if isinstance(predictions, Predictions):
        return Evaluation(evaluation, predictions, decision.class_names)
    return LabelEvaluation(evaluation, predictions, decision.class_names)
