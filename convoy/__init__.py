"""Trains image classifiers with TensorFlow: the same run on one device, all GPUs of a host, or a cluster."""

__version__ = "0.1.0"
