"""Preparing a run, from flags to a model that is ready to train, evaluate or export."""
