"""Handwritten digits (the 1,797 of scikit-learn, 8x8 pixels): no augmentation that turns a digit into another.

    python -m benchmarks.digits photos       # with `pip install '.[bench]'`
    convoy convert --images=photos/train --output=data --split=train
    convoy train --config=digits --data=data --workdir=runs/digits

99.6 % top-1 on the test images of `convoy bench generalization --dataset=digits`. Its settings were chosen on other
splits of the dataset.
"""

import ml_collections

from convoy.configs import common


def get_config() -> ml_collections.ConfigDict:
    """Returns the recipe."""
    config = common()
    config.model.name = "convnet"
    config.image_size = 16
    config.epochs = 40
    config.eval_every_epochs = 20
    config.optimizer.weight_decay = 1.0  # as in convnet_fast, for few steps
    config.augment.ops = "crop(scale=0.7..1) | shear(0.2) | rotate(10) | contrast(0.4)"
    return config
