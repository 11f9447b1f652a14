"""The default: a convolutional network with shortcuts at 32 pixels, with mixup and CutMix.

    convoy train --config=convnet --data=data --workdir=runs/convnet

docs/results/generalization.md has its accuracy on five datasets.
"""

import ml_collections

from convoy.configs import common


def get_config() -> ml_collections.ConfigDict:
    """Returns the recipe."""
    config = common()
    config.model.name = "residual_convnet"
    config.image_size = 32
    config.epochs = 80
    config.eval_every_epochs = 20
    config.checkpoint_every_epochs = 2
    # AdamW's weights are an average over about the last quarter of the run.
    config.optimizer.weight_decay = 0.0
    config.optimizer.weight_decay_per_run = 4.0
    # As in convnet_fast, but half of the images keep their colors: those of photographs tell something.
    config.augment.ops = "crop(scale=0.7..1) | solarize(0, 0.3) | flip | hue(0.5, 0.5) | saturation(0.7)"
    config.mix.mixup = 0.2
    config.mix.cutmix = 1.0
    config.mix.probability = 0.5
    config.mix.off_fraction = 0.2
    config.flip_tta = True
    return config
