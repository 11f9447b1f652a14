"""Reading a dataset: sample order, decoding, caches, batches."""
