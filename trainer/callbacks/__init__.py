"""What observes a run: console, run files, TensorBoard, profiler, advice."""
