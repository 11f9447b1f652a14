"""Conversion of images to TFRecord shards: plan, write, publish all or nothing."""
