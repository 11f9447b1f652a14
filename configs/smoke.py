"""The smallest run that goes through everything: small images, a few steps of convnet, clipping and averaging.

    convoy train --config=smoke --data=data --workdir=runs/smoke

Twenty steps teach it nothing (4 % top-1 in validation of the sample set); that they run is the result.
"""

import ml_collections

from convoy.configs.convnet import get_config as convnet


def get_config() -> ml_collections.ConfigDict:
    """Returns the recipe."""
    config = convnet()
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
