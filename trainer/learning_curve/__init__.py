"""Learning curves: runs on some of the training images."""
