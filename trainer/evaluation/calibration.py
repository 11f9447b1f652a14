"""Expected calibration error of an evaluation, with and without its temperature.

errors = CalibrationErrors(temperature, multi_label=False)
evaluator.metrics(each=errors.add)
before, after = errors.gather(worker_group)
"""

import numpy as np

from convoy.core.thresholds import CALIBRATION_BINS
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.run.temperature import softened


class CalibrationErrors:
    """Adds up images by confidence, in the bins of the metric `ece` (Guo et al. 2017).

    With several labels per image, each pair of an image and a class counts, by the probability of the class.
    """

    def __init__(self, temperature: float, *, multi_label: bool):
        """Starts with no images; the probabilities that `add` takes were divided by `temperature`."""
        self._temperature = temperature
        self._multi_label = multi_label
        self._sums = np.zeros([2, 3, CALIBRATION_BINS])  # before, after: number, confidence, correct by bin

    def add(self, index: np.ndarray, labels: np.ndarray, probabilities: np.ndarray) -> None:
        """Adds a batch, as `Evaluator.sums(each=...)` passes it."""
        raw = softened(probabilities, 1 / self._temperature, multi_label=self._multi_label)
        for sums, values in zip(self._sums, (raw, probabilities), strict=True):
            confidence, correct = values, labels
            if not self._multi_label:
                confidence, correct = values.max(-1), probabilities.argmax(-1) == labels
            confidence, correct = (np.nan_to_num(column).ravel() for column in (confidence, correct))
            bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
            for row, weights in zip(sums, (None, confidence, correct), strict=True):
                row += np.bincount(bins, weights, minlength=CALIBRATION_BINS)

    def gather(self, worker_group: WorkerGroup) -> tuple[float, float]:
        """Returns the error before and after, over the images of all workers, which must all call it.

        Raises:
          PeerLostError: a worker is gone.
        """
        gathered = worker_group.exchange("calibration", self._sums.tolist())
        number, confidence, correct = np.moveaxis(np.sum(np.array(gathered), 0), 1, 0)
        before, after = np.abs(confidence - correct).sum(-1) / number.sum(-1)
        return float(before), float(after)
