"""`residual` for about 0.4 of its time: a candidate for `convnet_fast`, and for today's accuracy of `convnet` sooner.

    convoy bench generalization --recipes=convnet,benchmarks/candidates/residual_short.py --image_seed=1

The weight decay is that of about 2,100 steps.
"""

import ml_collections

from benchmarks.candidates.residual import get_config as residual


def get_config() -> ml_collections.ConfigDict:
    """Returns the recipe."""
    config = residual()
    config.epochs = 30
    config.eval_every_epochs = 15
    config.optimizer.weight_decay = 0.7
    return config
