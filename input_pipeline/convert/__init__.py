"""Conversion of images to a dataset directory of TFRecord shards: plan, write, publish all or nothing."""
