"""Shared by all parts of Convoy: errors, files, processes, cluster discovery, the run directory. No TensorFlow."""
