"""Trains, evaluates and applies a classifier: config, strategy, models, step, loop, checkpoints, evaluation, reporting."""
