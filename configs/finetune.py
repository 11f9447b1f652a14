"""Fine-tunes pretrained weights: first only a new head, then everything, the backbone at a tenth of the learning rate.

    convoy train --config=finetune --data=data --workdir=runs/finetune \\
        --config.model.weights=mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_96_no_top.h5

The file is the one that Keras downloads to `~/.keras/models` for `keras.applications.MobileNetV2(include_top=False,
input_shape=(96, 96, 3))`. Any other `config.model.name=keras_applications:NAME` works with its own file.
"""

import ml_collections

from convoy.configs.convnet import get_config as convnet


def get_config() -> ml_collections.ConfigDict:
    """Returns the recipe."""
    config = convnet()
    config.model.name = "keras_applications:MobileNetV2"
    config.model.weights = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_96_no_top.h5"
    config.model.freeze_epochs = 3
    config.model.backbone_rate = 0.1
    config.optimizer.learning_rate = 2e-3
    config.augment.ops = "crop(scale=0.4..1) | flip | brightness(0.2) | contrast(0.4) | saturation(0.4)"
    config.image_size = 96
    config.epochs = 15
    return config
