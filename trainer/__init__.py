"""Trains, evaluates and applies a classifier."""

if __name__ != "convoy.trainer":
    raise ImportError(f"import convoy.trainer, not {__name__}")
