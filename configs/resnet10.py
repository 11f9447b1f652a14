"""convnet with a ResNet-10 of half the usual width as its model. On small images convnet is better, and faster.

    convoy train --config=resnet10 --data=data --workdir=runs/resnet10

benchmarks/candidates/results.jsonl has runs of both. For a deeper network, change `config.model.depth`.
"""

import ml_collections

from convoy.configs.convnet import get_config as convnet


def get_config() -> ml_collections.ConfigDict:
    """Returns the recipe."""
    config = convnet()
    config.model.name = "resnet"
    config.model.depth = 10
    config.model.width = 32
    config.model.instance_norm = "on"
    return config
