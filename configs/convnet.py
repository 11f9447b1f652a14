"""The default: convnet_fast with shortcuts, mixup and CutMix, trained longer.

    convoy train --config=convnet --data=data --workdir=runs/convnet

docs/results/generalization.md has its accuracy on five datasets.
"""

import ml_collections

from convoy.configs.convnet_fast import get_config as convnet_fast


def get_config() -> ml_collections.ConfigDict:
    """Returns the recipe."""
    config = convnet_fast()
    config.model.name = "residual_convnet"
    config.epochs = 120
    config.eval_every_epochs = 20
    config.checkpoint_every_epochs = 2
    # AdamW's weights are an average over about the last quarter of the run.
    config.optimizer.weight_decay = 0.0
    config.optimizer.weight_decay_per_run = 4.0
    # Half of the images keep their colors: those of photographs tell something.
    config.augment.ops = "crop(scale=0.7..1) | solarize(0, 0.3) | flip | hue(0.5, 0.5) | saturation(0.7)"
    config.mix.mixup = 0.2
    config.mix.cutmix = 1.0
    config.mix.probability = 0.5
    config.mix.off_fraction = 0.2
    return config
