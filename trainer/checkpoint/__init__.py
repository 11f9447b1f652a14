"""Checkpoints: file format, saving in the background."""
