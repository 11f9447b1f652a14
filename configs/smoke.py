"""A smoke test: a few steps of convnet on small images, with gradient clipping and averaged weights.

    convoy train --config=smoke --data=data --workdir=runs/smoke

Twenty steps do not train a useful model (4 % top-1 on validation images of the sample set).
"""

import ml_collections

from convoy.configs import common


def get_config() -> ml_collections.ConfigDict:
    """Returns the recipe."""
    config = common()
    config.model.name = "convnet"
    config.augment.ops = "crop(scale=0.7..1) | solarize(0, 0.3) | flip | hue(0.5) | saturation(0.7)"
    config.image_size = 32
    config.batch_size = 16
    config.steps = 20
    config.eval_every_steps = 10
    config.eval_every_epochs = config.checkpoint_every_epochs = 0
    config.log_every_steps = 5
    config.schedule.warmup_steps = 5
    config.schedule.warmup_epochs = 0
    config.optimizer.clip_norm = 1.0
    config.ema.decay = 0.99
    return config
