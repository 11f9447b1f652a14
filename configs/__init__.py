"""Shipped recipes, one per file: `get_config()` changes fields of `convoy.trainer.config.default_config`."""

if __name__ != "convoy.configs":
    raise ImportError(f"import convoy.configs, not {__name__}")
