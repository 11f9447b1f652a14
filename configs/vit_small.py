"""Fine-tunes a small vision transformer of Keras Hub at 224 pixels, earlier blocks at lower learning rates.

    pip install 'convoy-train[hub]'
    convoy train --config=vit_small --data=data --workdir=runs/vit_small

DeiT-S with a distillation token: Keras Hub has no plain ViT-S with ImageNet weights. 22 million parameters, for a GPU.
The preset (87 MB) is downloaded once. Any other `config.model.name=keras_hub:PRESET` works too.
"""

import ml_collections

from convoy.configs.finetune import get_config as finetune


def get_config() -> ml_collections.ConfigDict:
    """Returns the recipe."""
    config = finetune()
    config.model.name = "keras_hub:deit_small_distilled_patch16_224_imagenet"
    config.model.weights = "preset"
    config.model.freeze_epochs = 2
    config.model.backbone_rate = 1.0
    config.model.layer_decay = 0.75  # as Bao et al. 2022 and He et al. 2022 fine-tune transformers of 12 blocks
    config.optimizer.learning_rate = 5e-4
    config.optimizer.clip_norm = 1.0
    config.ema.decay = 0.999
    config.image_size = 224
    return config
