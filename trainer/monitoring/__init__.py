"""What a run measures of itself and tells: on the console, in its files, to TensorBoard."""
