"""Training phases for transfer learning: the head alone while the backbone is frozen, then the whole model.

    whole, head = training_phases(built, freeze_steps=200, backbone_rate=0.1, layer_decay=0.9)
    phase = head if step < 200 else whole
    logits, others, penalties = phase.model.stateless_call(weights, others, images, training=True, return_losses=True)

A frozen backbone runs in inference mode: batch norm uses its moving averages, and nothing is dropped. Its weights,
their optimizer slots and moving averages, and its statistics are not part of the step, so they stay bit-identical.
The phase of a step depends only on its number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from convoy.core.errors import UsageError
from convoy.trainer.models import ModelBundle
from convoy.trainer.models.blocks import blocks_of_weights
from convoy.trainer.models.head import split, values_of
from convoy.trainer.tf_compat.internals import is_seed_state


@dataclass(frozen=True, eq=False)
class _FrozenBackboneModel:
    """A model with a frozen backbone: takes all variables of the model, but depends on and updates only the head's."""

    whole: keras.Model
    backbone: keras.Model
    head: keras.Model

    def stateless_call(
        self, weights: Sequence[tf.Tensor], others: Sequence[tf.Tensor], images: tf.Tensor, **options: Any
    ) -> tuple[Any, ...]:
        """Does what `keras.Model.stateless_call` does in training; returns only the penalties of the head."""
        variables = [*self.whole.trainable_variables, *self.whole.non_trainable_variables]
        value_of = {id(variable): value for variable, value in zip(variables, [*weights, *others], strict=True)}

        features, _ = self.backbone.stateless_call(*values_of(self.backbone, value_of), images, training=False)
        logits, changed, *penalties = self.head.stateless_call(*values_of(self.head, value_of), features, **options)
        value_of |= {id(v): value for v, value in zip(self.head.non_trainable_variables, changed, strict=True)}
        return logits, [value_of[id(variable)] for variable in self.whole.non_trainable_variables], *penalties


@dataclass(frozen=True, eq=False)  # compared by identity: each phase has its own traced step
class Phase:
    """The part of a model that some steps of a run train.

    Attributes:
      built: the whole model.
      model: the model to call.
      weights: indices in `TrainState.weights` of the weights that are trained.
      statistics: indices in `TrainState.statistics` of the statistics that change.
      rates: for each of `weights`, its learning rate as a factor of the step's.
      steps_before: for each of `weights`, the number of steps before its first update. Bias correction, as in Adam,
        counts from there.
    """

    built: ModelBundle
    model: keras.Model | _FrozenBackboneModel
    weights: Sequence[int]
    statistics: Sequence[int]
    rates: Sequence[float]
    steps_before: Sequence[int]


def training_phases(
    built: ModelBundle, *, freeze_steps: int = 0, backbone_rate: float = 1.0, layer_decay: float = 1.0
) -> tuple[Phase, Phase | None]:
    """Returns the phase that trains everything, and the phase before it, which is None without frozen steps.

    Args:
      built: the model.
      freeze_steps: number of first steps that train only the head.
      backbone_rate: learning rate of the backbone as a factor of the head's (Howard and Ruder 2018), above 0.
      layer_decay: factor of the learning rate from each block to the one before it, from the head on, in (0, 1].

    Raises:
      UsageError: the model cannot be split into backbone and head.
    """
    model = built.model
    all_weights = model.trainable_variables
    all_statistics = [v for v in model.non_trainable_variables if not is_seed_state(v)]
    weights, statistics = range(len(all_weights)), range(len(all_statistics))
    if not freeze_steps and backbone_rate == layer_decay == 1:
        return Phase(built, model, weights, statistics, [1.0] * len(weights), [0] * len(weights)), None
    parts = split(model)
    if parts is None:
        raise UsageError(
            f"model {model.name!r} has no separate head for config.model.freeze, backbone_rate and layer_decay. Use a "
            "functional Keras model with global pooling before its classifier, or leave these fields unset."
        )
    in_head = {id(variable) for variable in parts[1].variables}
    is_head = [id(weight) in in_head for weight in all_weights]
    rate_of = _rates(*parts, backbone_rate, layer_decay)
    whole = Phase(
        built,
        model,
        weights,
        statistics,
        rates=[rate_of[id(weight)] for weight in all_weights],
        steps_before=[0 if flag else freeze_steps for flag in is_head],
    )
    head_weights = [number for number in weights if is_head[number]]
    head = Phase(
        built,
        _FrozenBackboneModel(model, *parts),
        head_weights,
        [number for number in statistics if id(all_statistics[number]) in in_head],
        rates=[1.0] * len(head_weights),
        steps_before=[0] * len(head_weights),
    )
    return whole, head if freeze_steps else None


def _rates(backbone: keras.Model, head: keras.Model, backbone_rate: float, layer_decay: float) -> dict[int, float]:
    """Returns the learning rate of each weight by its `id`, as a factor of the step's.

    Layer-wise decay (Clark et al. 2020; Bao et al. 2022, "BEiT"): the last block has `layer_decay` times the rate of
    the head, the one before it `layer_decay` times that, and so on to the stem.
    """
    weights = backbone.trainable_variables
    blocks = blocks_of_weights(backbone) if layer_decay < 1 else [0] * len(weights)
    rates = dict.fromkeys(map(id, head.trainable_variables), 1.0)
    for weight, block in zip(weights, blocks, strict=True):
        rates.setdefault(id(weight), backbone_rate * layer_decay ** (1 + max(blocks) - block))
    return rates
