"""Splits a classifier into backbone and head.

    backbone, head = split(model)
    logits = head(backbone(images))

The head follows the last global pooling (in older models: the last Flatten) with weights after it. Backbone and head
share their layers with the model.
"""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf
from keras import layers

_BACKBONE_ENDS = (
    *(layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D, layers.Flatten),
    layers.GlobalAveragePooling1D,  # over the tokens of a transformer
)


def split(model: keras.Model, *, before_pooling: bool = False) -> tuple[keras.Model, keras.Model] | None:
    """Returns the backbone of a model, from images to features, and its head, from features to logits.

    Args:
      model: functional or sequential.
      before_pooling: make the pooling part of the head; features are the last feature map then.

    Returns:
      None if the model cannot be split: a subclassed model, or a connection that bypasses the pooling.
    """
    if not isinstance(model, keras.Sequential) and not hasattr(model, "operations"):
        return None
    images = layers.Input(batch_shape=model.inputs[0].shape, dtype=model.inputs[0].dtype)
    calls, logits = trace(model, images)
    last = max((number for number, (layer, *_) in enumerate(calls) if getattr(layer, "weights", ())), default=0)
    pooled = [(maps, outputs) for layer, maps, outputs in calls[:last] if isinstance(layer, _BACKBONE_ENDS)]
    features = [maps if before_pooling else outputs for maps, outputs in pooled]
    try:
        return keras.Model(images, features[-1], name="backbone"), keras.Model(features[-1], logits, name="head")
    except (IndexError, ValueError):  # no pooling, or a connection that bypasses it
        return None


def values_of(part: keras.Model, value_of: Mapping[int, tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Returns the values of a part's trainable and other variables, for `stateless_call`.

    Args:
      part: a backbone or head.
      value_of: values of all variables of the whole model, by the variable's `id`.
    """
    trainable, others = (
        [value_of[id(variable)] for variable in group]
        for group in (part.trainable_variables, part.non_trainable_variables)
    )
    return trainable, others


def trace(
    model: keras.Model, images: keras.KerasTensor
) -> tuple[list[tuple[keras.Layer, Any, Any]], keras.KerasTensor]:
    """Calls the layers of a model on `images`.

    Returns:
      Each layer with its first input and its outputs, in order; and the logits.
    """
    calls: list[tuple[keras.Layer, Any, Any]] = []

    def call(layer: keras.Layer, *inputs: Any, **options: Any) -> Any:  # noqa: ANN401 (the inputs and outputs of any layer)
        calls.append((layer, next(iter(inputs), None), layer(*inputs, **options)))
        return calls[-1][-1]

    if isinstance(model, keras.Sequential):  # Keras ignores `call_function` for these
        for layer in model.layers:
            images = call(layer, images)
        return calls, images
    rebuilt = keras.models.clone_model(
        model,
        input_tensors=[images] if isinstance(model.input, list) else images,
        clone_function=lambda layer: layer,
        call_function=call,
    )
    return calls, rebuilt.outputs[0]
