"""Fine-tunes ConvNeXt-T with ImageNet weights at 224 pixels, earlier blocks at lower learning rates.

    convoy train --config=convnext_tiny --data=data --workdir=runs/convnext_tiny

28 million parameters, for a GPU. The weights (111 MB) are downloaded once.
"""

import ml_collections

from convoy.configs.finetune import get_config as finetune


def get_config() -> ml_collections.ConfigDict:
    """Returns the recipe."""
    config = finetune()
    config.model.name = "keras_applications:ConvNeXtTiny"
    config.model.freeze_epochs = 2
    config.model.backbone_rate = 1.0
    config.model.layer_decay = 0.8  # as Liu et al. 2022 fine-tune it: 0.7 to 0.9
    config.optimizer.learning_rate = 5e-4
    config.ema.decay = 0.999
    config.image_size = 224
    return config
