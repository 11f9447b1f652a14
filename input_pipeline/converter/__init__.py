"""Images to shards: plan, then work, all or nothing."""
