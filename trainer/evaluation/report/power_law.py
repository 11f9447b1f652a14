"""Power law of the error by the number of training images, error(n) = factor * n^-exponent, with its uncertainty.

    law = fit(images=[100, 200, 400], errors=[90, 64, 45], evaluated=[300, 300, 300])
    law.exponent, law.accuracy(800), law.interval(800)

Errors of deep networks fall like this over orders of magnitude (Hestness et al. 2017, "Deep Learning Scaling is
Predictable, Empirically"), until they come near what no number of images removes, such as wrong labels.

The logarithm of the error is a straight line over that of n, fitted by least squares with the inverse variances of the
points as weights. The uncertainty is that of the points: each error rate is drawn from what its count says about it,
Beta(errors + 1/2, hits + 1/2) (Jeffreys' prior, which allows for counts of 0), and the line is fitted again. Where the
points are further from the line than their variances explain, the draws are spread as much more (Birge 1932). Lines of
an error that rises with n are drawn as constant: more images do no harm in the long run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

LEVEL = 0.9  # of intervals
_DRAWS, _SEED = 20_000, 0


@dataclass(frozen=True)
class PowerLaw:
    """A fitted power law.

    Attributes:
      factor: error on one image, by the law.
      exponent: positive if the error falls with the number of images.
      falling: share of the draws in which it does, in [0, 1].
    """

    factor: float
    exponent: float
    falling: float
    _center: float = field(repr=False)
    _levels: np.ndarray = field(repr=False, compare=False)  # [draws] logarithm of the error at `_center`
    _slopes: np.ndarray = field(repr=False, compare=False)  # [draws]

    def accuracy(self, images: float) -> float:
        """Returns the accuracy after training on a number of images, in [0, 1]."""
        return 1 - min(1.0, self.factor * images**-self.exponent)

    def interval(self, images: float) -> tuple[float, float]:
        """Returns the interval of the accuracy in which it is with a probability of `LEVEL`."""
        errors = np.exp(self._levels + self._slopes * (math.log(images) - self._center))
        low, high = np.quantile(1 - np.minimum(1.0, errors), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)


def fit(images: Sequence[int], errors: Sequence[int], evaluated: Sequence[int]) -> PowerLaw:
    """Returns the power law of two points or more.

    Args:
      images: number of training images of each point, above 0; at least two different ones.
      errors: number of wrong predictions of each, from 0.
      evaluated: number of images that each was evaluated on, at least `errors`, above 0.
    """
    wrong, total = np.asarray(errors, float), np.asarray(evaluated, float)
    x, rate = np.log(np.asarray(images, float)), (wrong + 0.5) / (total + 1)
    y, variance = np.log(rate), (1 - rate) / (rate * (total + 2))
    weights = 1 / variance / (1 / variance).sum()
    center = float(weights @ x)
    of_slope = weights * (x - center) / (weights @ (x - center) ** 2)
    level, slope = float(weights @ y), float(of_slope @ y)
    left = y - level - slope * (x - center)
    spread = math.sqrt(max(1.0, float((left**2 / variance).sum()) / max(1, len(x) - 2)))
    drawn = np.random.default_rng(_SEED).beta(wrong + 0.5, total - wrong + 0.5, (_DRAWS, len(x)))
    drawn = y + spread * (np.log(np.maximum(drawn, np.finfo(float).tiny)) - y)
    slopes = drawn @ of_slope
    return PowerLaw(
        factor=math.exp(level - slope * center),
        exponent=-slope,
        falling=float((slopes < 0).mean()),
        _center=center,
        _levels=drawn @ weights,
        _slopes=np.minimum(slopes, 0.0),
    )
