"""Limits by which several parts judge a run: the console, the advice, result.json and the report agree on them."""

INPUT_BOUND_PCT = 20.0  # share of a step's time; from here on waiting for input, or reducing, limits the run
OVERFITTING_GAP = 0.15  # top-1 on training images minus top-1 on validation images
CALIBRATION_BINS = 15  # equal bins of confidence (Guo et al. 2017, "On calibration of modern neural networks")
