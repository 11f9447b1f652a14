"""The learning rate as a pure function of the step: warmup, then constant, cosine or steps.

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
    """Returns the learning rate of update `step`, which counts from 0.

    Args:
      step: in [0, total_steps).
      total_steps: the run's length.
      peak: the rate after warmup.
      name: `constant`; `cosine` (Loshchilov and Hutter 2017), to `final_fraction * peak` at the end; `step`, times
        `factor` at each boundary.
      warmup_steps: the rate rises linearly over so many steps, from `peak / warmup_steps` at step 0 (Goyal et al.
        2017).
      final_fraction: in [0, 1].
      boundaries: shares of the run, in (0, 1), rising.
      factor: in (0, 1].
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
    """Returns the peak learning rate for a global batch, from the rate that suits a reference batch.

    Args:
      base: the rate at `reference_batch_size`.
      scaling: `none`; `linear` (Goyal et al. 2017: SGD); `sqrt` (You et al. 2020: adaptive methods).
      batch_size: images of the global batch.
      reference_batch_size: images.
    """
    ratio = batch_size / reference_batch_size
    return base * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[scaling]
