"""Measurements of a training run, in which all workers take part: step times, bottleneck analysis, evaluations."""
