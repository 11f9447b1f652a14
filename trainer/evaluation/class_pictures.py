"""For the pictures and curves of an evaluation with several labels per image, as `counts` for one.

counts = LabelCounts(evaluator)
evaluator.metrics(each=counts.add)
summary = counts.gather(worker_group)        # the same on every worker
summary.curves, summary.mistakes
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.evaluation.counts import CURVES, MISTAKES

if TYPE_CHECKING:
    from convoy.trainer.evaluation.evaluator import Evaluator


@dataclass(frozen=True)
class LabelMistake:
    """A class that an image has and should not have, or the other way round.

    Attributes:
      confidence: probability of the wrong answer.
      index: of the image in the split.
      label: the class.
      is_extra: whether the image gets it as a label without having it.
    """

    confidence: float
    index: int
    label: int
    is_extra: bool

    def caption(self, names: Sequence[str]) -> tuple[str, ...]:
        """Returns the lines below its picture."""
        what = "not" if self.is_extra else "missed"
        return f"{what} {names[self.label]}", f"confidence {self.confidence:.1%}"


@dataclass(frozen=True)
class LabelSummary:
    """What pictures and curves show.

    Attributes:
      curves: as in `EvaluationSummary`.
      mistakes: the most confident ones, the most confident first, one per image.
    """

    curves: dict[int, np.ndarray]
    mistakes: list[LabelMistake]


class LabelCounts:
    """The most confident mistakes of one worker, and the histograms of the evaluator."""

    def __init__(self, evaluator: "Evaluator"):
        """Starts with no images."""
        self._evaluator = evaluator
        self._batches: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, indices: np.ndarray, targets: np.ndarray, probabilities: np.ndarray) -> None:
        """Adds a batch: [n] int64, [n, num_classes] float32 and [n, num_classes] float32."""
        self._batches.append((indices, targets, np.nan_to_num(probabilities)))

    def gather(self, worker_group: WorkerGroup, *, seconds: float | None = None) -> LabelSummary:
        """Returns the summary, after `Evaluator.metrics`. All workers must call it at the same point.

        Raises:
          PeerLostError: a worker is gone.
        """
        scores = self._evaluator.scores
        assert scores is not None
        found = [mistake for batch in self._batches for mistake in most_confident(*batch, scores.thresholds, MISTAKES)]
        own = [vars(mistake) for mistake in _first(found, MISTAKES)]
        gathered = worker_group.exchange("mistakes", own, seconds=seconds)
        worst = np.argsort(np.where(scores.actual > 0, scores.f1, np.inf), kind="stable")[:CURVES]
        shown = [label for label in worst.tolist() if scores.actual[label]]
        return LabelSummary(
            {-1: scores.histograms.sum(0), **{label: scores.histograms[label] for label in shown}},
            _first([LabelMistake(**mistake) for of_worker in gathered for mistake in of_worker], MISTAKES),
        )


def most_confident(
    indices: np.ndarray, targets: np.ndarray, probabilities: np.ndarray, thresholds: np.ndarray, number: int
) -> list[LabelMistake]:
    """Returns the most confident mistakes among images, at most one per image, the most confident first.

    Args:
      indices: [n] int64, of the images in the split.
      targets: [n, num_classes], above 0.5 for each label.
      probabilities: [n, num_classes].
      thresholds: [num_classes].
      number: how many.
    """
    is_extra = probabilities >= thresholds
    wrong = is_extra != (targets > 0.5)
    confidence = np.where(wrong, np.where(is_extra, probabilities, 1.0 - probabilities), -1.0)
    label = confidence.argmax(1)
    rows = np.flatnonzero(wrong.any(1))
    of_row = confidence[np.arange(len(label)), label]
    rows = rows[np.lexsort((indices[rows], -of_row[rows]))][:number]
    return [LabelMistake(float(of_row[i]), int(indices[i]), int(label[i]), bool(is_extra[i, label[i]])) for i in rows]


def _first(mistakes: list[LabelMistake], number: int) -> list[LabelMistake]:
    return sorted(mistakes, key=lambda mistake: (-mistake.confidence, mistake.index))[:number]
