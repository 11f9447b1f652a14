"""A schedule of your own: 1 - sqrt decay in the last part of the run, after a constant rate (WSD).

    convoy train --data=data --workdir=run --config.schedule.name=examples/schedule.py:cooldown

"Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations" (Haegele et al. 2024).

A schedule takes the step, counted from 0, the number of steps of the run and the peak learning rate, and returns the
rate of that step. It must depend on its arguments alone: a resumed run asks again. Arguments named as fields of
`config.schedule` get their values, `warmup_steps` too. Convoy does the linear warmup itself (`config.schedule.warmup`):
the schedule is asked for the steps after it.
"""


def cooldown(step, total_steps, peak, final_fraction, share=0.2):
    """Returns the peak until the last `share` of the run, in which the rate falls to `final_fraction` of it."""
    progress = max(0.0, (step / total_steps - (1.0 - share)) / share)
    return peak * (final_fraction + (1.0 - final_fraction) * (1.0 - progress**0.5))
