"""Shipped recipes, one per file: `get_config()` changes fields of `convoy.trainer.config.default_config`."""

import ml_collections

if __name__ != "convoy.configs":
    raise ImportError(f"import convoy.configs, not {__name__}")


def common() -> ml_collections.ConfigDict:
    """Returns what most recipes have in common: AdamW with a cosine schedule, and few evaluations."""
    from convoy.trainer.config import default_config

    config = default_config()
    # Rarely: with few validation images, the best of many evaluations is often an early one that is best by chance.
    config.eval_every_epochs = 5
    config.checkpoint_every_epochs = 1
    config.label_smoothing = 0.1
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.weight_decay = 0.05
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 1
    config.schedule.scaling = "sqrt"
    return config
