"""Images to TFRecord shards to batches. Knows nothing of models or strategies."""
