"""Images to TFRecord shards to batches. Knows nothing of models or strategies."""

if __name__ != "convoy.input_pipeline":
    raise ImportError(f"import convoy.input_pipeline, not {__name__}")
