"""The published 42-class model and its settings, unchanged: Adam, cross-entropy, no augmentation. It overfits.

    convoy train --config=baseline_cnn --data=data --workdir=runs/baseline_cnn

On the sample set (`convoy sample`): 88 % top-1 on the training images, 39 % on the test images.
"""

import ml_collections

from convoy.trainer.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """Returns the recipe."""
    config = default_config()
    config.model.name = "baseline_cnn"
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.epochs = 15
    return config
