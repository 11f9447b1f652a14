"""Observers of a training run: console, run files, TensorBoard, profiler, bottleneck analysis, advice."""
