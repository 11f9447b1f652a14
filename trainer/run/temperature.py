"""Temperature scaling: one number by which logits are divided, so that probabilities are as high as the model is right.

    temperature = best_temperature(losses)                    # losses summed over a split, at each of TEMPERATURES
    softened(probabilities, temperature, multi_label=False)

Guo et al. 2017, "On calibration of modern neural networks". They fit it to the cross-entropy, in which a few wrong
labels outweigh all other images: the surer a model rightly is, the more such an image costs. So here a share of the
labels may be wrong, any class by chance, and that share is fitted too (as the noise of Goldberger and Ben-Reuven 2017,
"Training deep neural networks using a noise adaptation layer").

A temperature changes neither the order of the classes of an image nor, with several labels per image, which of them it
gets, because thresholds move along. Imports no TensorFlow.
"""

import math
from collections.abc import Sequence

import numpy as np

TEMPERATURES = tuple(2.0 ** (k / 4) for k in range(-12, 13))  # 1/8 to 8
NOISES = (0.0, 0.005, 0.01, 0.02, 0.04, 0.08)  # share of wrong labels
# Losses are summed as integers in this unit, so that their sum is the same in any order.
LOSS_UNIT = 2.0**-20
# Of the normal distribution that the logarithm is assumed to have before any image is seen, so that 95 % of all
# temperatures are between 1/2 and 2: where a few images decide, all of them classified correctly, the loss alone would
# ask for the lowest temperature.
_PRIOR_DEVIATION = 0.35
_PRIOR_NOISE = 0.02  # mean of the exponential distribution of the share of wrong labels


def best_temperature(losses: Sequence[Sequence[int]] | np.ndarray) -> float:
    """Returns the temperature with the lowest loss, by a parabola through the lowest ones of `TEMPERATURES`.

    Args:
      losses: sum over the images at each of `NOISES` (rows) and `TEMPERATURES`, in units of `LOSS_UNIT`.
    """
    places = np.log(TEMPERATURES)
    totals = np.array(losses, np.float64) * LOSS_UNIT + places**2 / (2 * _PRIOR_DEVIATION**2)
    totals += np.array(NOISES)[:, np.newaxis] / _PRIOR_NOISE
    total = totals[totals.min(1).argmin()]
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
