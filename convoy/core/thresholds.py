"""Thresholds shared by the console, the advice, result.json and the report."""

# In percent of step time: a run that waits for input (or for reduction) at least this long is bound by it.
INPUT_BOUND_PCT = 20.0
OVERFITTING_GAP = 0.15  # top-1 on training images minus top-1 on validation images
CALIBRATION_BINS = 15  # equal-width confidence bins (Guo et al. 2017, "On calibration of modern neural networks")
