"""`convnet` as it was: 64 pixels, 30 epochs, no shortcuts and no mixing. The results compare the recipes with it.

convoy bench generalization --recipes=benchmarks/candidates/convnet_64.py,convnet_fast,convnet
"""

import ml_collections

from convoy.configs import common


def get_config() -> ml_collections.ConfigDict:
    """Returns the recipe."""
    config = common()
    config.model.name = "convnet"
    config.epochs = 30
    config.augment.ops = "crop(scale=0.7..1) | solarize(0, 0.3) | flip | hue(0.5) | saturation(0.7)"
    return config
