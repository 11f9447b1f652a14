"""Dataset directories: shards, indexes, records, and where they are stored."""
