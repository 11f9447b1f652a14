"""The learning rate as a pure function of the step: linear warmup, then a schedule.

    @convoy.register_schedule("halving")
    def halving(step, total_steps, peak, factor):
        return peak * factor ** (10 * step // total_steps)

A schedule takes the step in [0, total_steps), the length of the run and the peak rate, and by name any of the other
fields of `config.schedule` and `warmup_steps`. Before `warmup_steps` the rate rises linearly to the peak, and the
schedule is not asked. Does not import TensorFlow.
"""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from convoy.core.errors import failure
from convoy.core.registry import Found, Registry, accepted

Schedule = Callable[..., float]

SCHEDULES: Registry[Schedule] = Registry(
    "schedule",
    field="config.schedule.name",
    contract="a pure function of step, total_steps, peak and fields of config.schedule that returns a rate from 0 on",
)
SCALINGS = ("none", "linear", "sqrt")
_PROBES = 1000  # steps at which a user's schedule is tried


@SCHEDULES.register("constant")
def constant(step: int, total_steps: int, peak: float) -> float:
    """Returns the peak."""
    return peak


@SCHEDULES.register("cosine")
def cosine(step: int, total_steps: int, peak: float, final_fraction: float = 0.0, warmup_steps: int = 0) -> float:
    """Returns a rate that falls to `final_fraction * peak` at the end of the run (Loshchilov and Hutter 2017)."""
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return peak * (final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress)))


@SCHEDULES.register("step")
def step_decay(
    step: int, total_steps: int, peak: float, boundaries: Sequence[float] = (0.5, 0.75), factor: float = 0.1
) -> float:
    """Returns a rate that is multiplied by `factor` at each boundary, a fraction of the run in (0, 1)."""
    return peak * factor ** sum(step >= boundary * total_steps for boundary in boundaries)


def learning_rate(
    schedule: Found[Schedule],
    step: int,
    *,
    total_steps: int,
    peak: float,
    warmup_steps: int = 0,
    fields: Mapping[str, Any] | None = None,
) -> float:
    """Returns the learning rate of a step.

    Args:
      schedule: the schedule.
      step: step number, in [0, total_steps).
      total_steps: length of the run.
      peak: learning rate after warmup.
      warmup_steps: length of the linear warmup, from `peak / warmup_steps` at step 0 (Goyal et al. 2017).
      fields: fields of `config.schedule`, of which the schedule gets those that it names.

    Raises:
      UsageError: a user's schedule fails, or returns something else than a rate.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    given = {**(fields or {}), "warmup_steps": warmup_steps, "total_steps": total_steps, "peak": peak, "step": step}
    try:
        rate = schedule.value(**accepted(schedule.value, given))
    except Exception as error:
        raise SCHEDULES.breach(schedule.name, f"fails at step {step}: {failure(error)}") from error
    if not isinstance(rate, numbers.Real) or not 0 <= rate < math.inf:
        raise SCHEDULES.breach(schedule.name, f"returns {rate!r} at step {step}")
    return float(rate)


def check_schedule(rate_of: Callable[[int], float], schedule: Found[Schedule], total_steps: int) -> None:
    """Tries a user's schedule at up to 1000 steps, there and back.

    Args:
      rate_of: returns the rate of a step.
      schedule: the schedule.
      total_steps: length of the run.

    Raises:
      UsageError: it breaks the contract.
    """
    if SCHEDULES.is_built_in(schedule.name):
        return
    steps = range(0, total_steps, max(1, total_steps // _PROBES))
    first = {step: rate_of(step) for step in steps}
    for step in reversed(steps):
        if (again := rate_of(step)) != first[step]:
            raise SCHEDULES.breach(
                schedule.name, f"returns {first[step]!r} at step {step}, and {again!r} when called again"
            )
    if not any(first.values()):
        raise SCHEDULES.breach(schedule.name, "returns 0 at every step")


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
