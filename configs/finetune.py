"""Fine-tunes a small model with ImageNet weights: the new head first, then all, earlier blocks at lower rates.

    convoy train --config=finetune --data=data --workdir=runs/finetune

MobileNetV2 at 96 pixels. Its weights (9 MB) are downloaded once. Any other `config.model.name=keras_applications:NAME`
works too, and so does `config.model.weights` with a file, a run or an export.
"""

import ml_collections

from convoy.configs import common


def get_config() -> ml_collections.ConfigDict:
    """Returns the recipe."""
    config = common()
    config.model.name = "keras_applications:MobileNetV2"
    config.model.weights = "imagenet"
    config.model.freeze_epochs = 3
    config.model.backbone_rate = 0.2
    config.model.layer_decay = 0.95  # 17 blocks: from 0.19 to 0.08 of the head's rate
    config.optimizer.learning_rate = 2e-3
    config.ema.decay = 0.99
    config.augment.ops = "crop(scale=0.4..1) | flip | brightness(0.2) | contrast(0.4) | saturation(0.4)"
    config.image_size = 96
    config.epochs = 15
    return config
