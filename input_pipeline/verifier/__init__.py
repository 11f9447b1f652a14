"""Checks every byte of a dataset directory, and rebuilds its indexes from its shards."""
