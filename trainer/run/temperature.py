"""Temperature scaling: one number by which logits are divided, so that probabilities are as high as the model is right.

    temperature = best_temperature(losses)                    # losses summed over a split, at each of TEMPERATURES
    softened(probabilities, temperature, multi_label=False)

Guo et al. 2017, "On calibration of modern neural networks". They fit it to the cross-entropy, in which a few wrong
labels outweigh all other images: the surer a model rightly is, the more such an image costs. Here it is fitted to the
Brier score (Brier 1950, "Verification of forecasts expressed in terms of probability"), which is a proper scoring rule
too, and in which no image costs more than 2.

A temperature changes neither the order of the classes of an image nor, with several labels per image, which of them it
gets, because thresholds move along. Imports no TensorFlow.
"""

import math
from collections.abc import Sequence

import numpy as np

TEMPERATURES = tuple(2.0 ** (k / 4) for k in range(-12, 13))  # 1/8 to 8
# Scores are summed as integers in this unit, so that their sum is the same in any order.
SCORE_UNIT = 2.0**-20
# Without any image, the temperature is 1. This is what the square of its logarithm costs: a few images, all of them
# classified correctly, would ask for the lowest temperature alone.
_COST = 1.0


def best_temperature(scores: Sequence[int] | np.ndarray) -> float:
    """Returns the temperature with the lowest score, by a parabola through the lowest ones of `TEMPERATURES`.

    Args:
      scores: Brier score at each of `TEMPERATURES`, summed over the images, in units of `SCORE_UNIT`.
    """
    places = np.log(TEMPERATURES)
    total = np.array(scores, np.float64) * SCORE_UNIT + _COST * places**2
    middle = min(max(int(total.argmin()), 1), len(total) - 2)
    before, at, after = total[middle - 1 : middle + 2].tolist()
    curvature = before - 2 * at + after
    offset = (before - after) / (2 * curvature) if curvature > 0 else 0.0
    step = places[1] - places[0]
    return math.exp(places[middle] + step * min(max(offset, -1.0), 1.0))


def softened(probabilities: np.ndarray, temperature: float, *, multi_label: bool) -> np.ndarray:
    """Returns the probabilities of logits that are divided by a temperature, float64.

    Args:
      probabilities: of those logits, [..., num_classes] in [0, 1].
      temperature: above 0; 1 / t takes back what t did.
      multi_label: whether each class is for itself.
    """
    exponent = 1.0 / temperature
    powers = np.asarray(probabilities, np.float64) ** exponent
    if multi_label:
        return powers / (powers + (1.0 - np.asarray(probabilities, np.float64)) ** exponent)
    return powers / powers.sum(-1, keepdims=True)
