"""Augmentation: the pipeline string, its operations, and where each of them runs."""
