"""Recipes: one file each, `get_config()` returns what differs from `convoy.trainer.config.default_config`."""

if __name__ != "convoy.configs":
    raise ImportError(f"import convoy.configs, not {__name__}")
