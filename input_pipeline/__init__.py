"""From image files to TFRecord shards to batches. Independent of models and distribution strategies."""

if __name__ != "convoy.input_pipeline":
    raise ImportError(f"import convoy.input_pipeline, not {__name__}")
