"""Recipes: one file each, `get_config()` returns what differs from `trainer.config.default_config`."""
