"""A candidate for `convnet`: residual blocks, 32 pixels, smaller batches, mixup and CutMix, for about the same time.

    convoy bench generalization --recipes=convnet,benchmarks/candidates/residual.py --image_seed=1

The weight decay suits about 5,000 steps. On small datasets it should be larger: `DECAY_PER_RUN` divided by the peak
learning rate and the number of steps.
"""

from pathlib import Path

import ml_collections

from convoy.configs.convnet import get_config as convnet

# Weight decay times peak learning rate times steps: AdamW averages over about a quarter of the run (Wang and Aitchison
# 2024, "How to set AdamW's weight decay as you scale model and dataset size").
DECAY_PER_RUN = 4.0


def get_config() -> ml_collections.ConfigDict:
    """Returns the recipe."""
    config = convnet()
    config.model.name = f"{Path(__file__).parent / 'models.py'}:residual"
    config.image_size = 32
    config.batch_size = 32
    config.epochs = 70
    config.eval_every_epochs = 35
    config.optimizer.weight_decay = 0.3
    config.mix.mixup = 0.2
    config.mix.cutmix = 1.0
    config.mix.off_fraction = 0.2
    config.flip_tta = True
    return config
