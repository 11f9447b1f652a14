"""What a step trains: the whole model, or only its head while the backbone is frozen (transfer from other images).

    whole, head = phases_of(built, freeze_steps=200, backbone_rate=0.1)
    phase = head if step < 200 else whole
    logits, others, penalties = phase.model.stateless_call(weights, others, images, training=True, return_losses=True)

A frozen backbone computes as in inference: batch norm by its moving averages, nothing dropped. Its weights, their
optimizer's state and moving averages, and its statistics take no part in the step, so they stay as they are to the bit.
Which phase a step is in follows from its number alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from convoy.core.errors import UsageError
from convoy.trainer.models import ModelBundle
from convoy.trainer.models.head import split
from convoy.trainer.tf_compat.internals import is_seed_state


class _WithFrozenBackbone:
    """Is called as the model is, with all of its variables; differentiates and changes only the head's."""

    def __init__(self, model: keras.Model, backbone: keras.Model, head: keras.Model):
        self._model = model
        self._backbone = backbone
        self._head = head

    def stateless_call(
        self, weights: Sequence[tf.Tensor], others: Sequence[tf.Tensor], images: tf.Tensor, **options: Any
    ) -> tuple:
        """As `keras.Model.stateless_call` of the whole model in training; only the head's penalties count."""
        variables = [*self._model.trainable_variables, *self._model.non_trainable_variables]
        value_of = {id(variable): value for variable, value in zip(variables, [*weights, *others], strict=True)}

        def values(model: keras.Model) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
            groups = (model.trainable_variables, model.non_trainable_variables)
            return tuple([value_of[id(variable)] for variable in group] for group in groups)

        features, _ = self._backbone.stateless_call(*values(self._backbone), images, training=False)
        logits, changed, *penalties = self._head.stateless_call(*values(self._head), features, **options)
        value_of |= {id(v): value for v, value in zip(self._head.non_trainable_variables, changed, strict=True)}
        return logits, [value_of[id(variable)] for variable in self._model.non_trainable_variables], *penalties


@dataclass(frozen=True, eq=False)  # one traced step each
class Phase:
    """What some steps of a run train.

    Attributes:
      built: the whole model.
      model: to be called.
      weights: which of the model's weights are trained, by their place in `TrainState.weights`.
      statistics: which of its statistics change, by their place in `TrainState.statistics`.
      rates: of each of `weights`: its learning rate, as a factor of the step's.
      steps_before: of each of `weights`: the run's steps before its first update. An optimizer that corrects for slots
        that start at zero counts from there.
    """

    built: ModelBundle
    model: keras.Model | _WithFrozenBackbone
    weights: Sequence[int]
    statistics: Sequence[int]
    rates: Sequence[float]
    steps_before: Sequence[int]


def phases_of(built: ModelBundle, *, freeze_steps: int = 0, backbone_rate: float = 1.0) -> tuple[Phase, Phase | None]:
    """Returns the phase in which all is trained, and the one before it, None without frozen steps.

    Args:
      built: the model.
      freeze_steps: how many of the run's first steps train the head alone.
      backbone_rate: learning rate of the backbone, as a factor of the head's (Howard and Ruder 2018), above 0.

    Raises:
      UsageError: the model has no head that can be told from the rest.
    """
    model = built.model
    its_weights = model.trainable_variables
    its_statistics = [v for v in model.non_trainable_variables if not is_seed_state(v)]
    weights, statistics = range(len(its_weights)), range(len(its_statistics))
    if not freeze_steps and backbone_rate == 1:
        return Phase(built, model, weights, statistics, [1.0] * len(weights), [0] * len(weights)), None
    parts = split(model)
    if parts is None:
        raise UsageError(
            f"model {model.name!r} has no head to train by itself: config.model.freeze and config.model.backbone_rate "
            "need a model of Keras' functional API whose classifier follows a pooling over the image."
        )
    in_head = {id(variable) for variable in parts[1].variables}
    is_head = [id(weight) in in_head for weight in its_weights]
    whole = Phase(
        built,
        model,
        weights,
        statistics,
        rates=[1.0 if own else backbone_rate for own in is_head],
        steps_before=[0 if own else freeze_steps for own in is_head],
    )
    head_weights = [number for number in weights if is_head[number]]
    head = Phase(
        built,
        _WithFrozenBackbone(model, *parts),
        head_weights,
        [number for number in statistics if id(its_statistics[number]) in in_head],
        rates=[1.0] * len(head_weights),
        steps_before=[0] * len(head_weights),
    )
    return whole, head if freeze_steps else None
