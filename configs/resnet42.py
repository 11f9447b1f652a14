"""A residual network of 18 layers, half the usual width: convnet42's training, more computing an image.

convoy train --config=resnet42 --data=data --workdir=runs/resnet42
"""

import ml_collections

from configs.convnet42 import get_config as convnet42


def get_config() -> ml_collections.ConfigDict:
    """Returns the recipe."""
    config = convnet42()
    config.model.name = "resnet"
    config.model.depth = 18
    config.model.width = 32
    config.model.stochastic_depth = 0.1
    return config
