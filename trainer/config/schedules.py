"""The learning rate as a pure function of the step: warmup, then constant, cosine or step decay.

rate = learning_rate(step=0, total_steps=1000, peak=0.1, name="cosine", warmup_steps=100)
"""

import math
from collections.abc import Sequence

SCHEDULES = ("constant", "cosine", "step")
SCALINGS = ("none", "linear", "sqrt")


def learning_rate(
    step: int,
    *,
    total_steps: int,
    peak: float,
    name: str = "constant",
    warmup_steps: int = 0,
    final_fraction: float = 0.0,
    boundaries: Sequence[float] = (0.5, 0.75),
    factor: float = 0.1,
) -> float:
    """Returns the learning rate of a step.

    Args:
      step: step number, in [0, total_steps).
      total_steps: length of the run.
      peak: learning rate after warmup.
      name: `constant`; `cosine`, down to `final_fraction * peak` at the end (Loshchilov and Hutter 2017); `step`,
        multiplied by `factor` at each boundary.
      warmup_steps: length of the linear warmup, from `peak / warmup_steps` at step 0 (Goyal et al. 2017).
      final_fraction: final rate of `cosine` as a fraction of the peak, in [0, 1].
      boundaries: rising fractions of the run, in (0, 1).
      factor: factor of `step`, in (0, 1].
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if name == "cosine":
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return peak * (final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress)))
    if name == "step":
        return peak * factor ** sum(step >= boundary * total_steps for boundary in boundaries)
    return peak


def scaled_peak(base: float, *, scaling: str, batch_size: int, reference_batch_size: int) -> float:
    """Returns the peak learning rate for a global batch size.

    Args:
      base: peak learning rate at `reference_batch_size`.
      scaling: `none`; `linear` (Goyal et al. 2017, for SGD); `sqrt` (You et al. 2020, for adaptive optimizers).
      batch_size: global batch size in images.
      reference_batch_size: batch size in images that `base` was chosen for.
    """
    ratio = batch_size / reference_batch_size
    return base * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[scaling]
