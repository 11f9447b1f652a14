"""Where a classifier's head begins: the two models whose one after the other is the classifier.

    backbone, head = split(model)
    logits = head(backbone(images))

The head is what follows the last pooling over the whole image (or, in older models, the last Flatten) that has weights
behind it. Both share their layers with the model.
"""

from typing import Any

import keras
from keras import layers

_ENDS = (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D, layers.Flatten)


def split(model: keras.Model) -> tuple[keras.Model, keras.Model] | None:
    """Returns a model's backbone, from images to features, and its head, from features to logits.

    Args:
      model: functional or sequential.

    Returns:
      None where there is no such place: a subclassed model, or one in which something goes around the pooling.
    """
    if not isinstance(model, keras.Sequential) and not hasattr(model, "operations"):
        return None
    images = layers.Input(batch_shape=model.inputs[0].shape, dtype=model.inputs[0].dtype)
    calls, logits = _called(model, images)
    last = max((number for number, (layer, _) in enumerate(calls) if getattr(layer, "weights", ())), default=0)
    features = [outputs for layer, outputs in calls[:last] if isinstance(layer, _ENDS)]
    try:
        return keras.Model(images, features[-1], name="backbone"), keras.Model(features[-1], logits, name="head")
    except (IndexError, ValueError):  # there is none, or the head's graph has another way to the images
        return None


def _called(model: keras.Model, images: keras.KerasTensor) -> tuple[list[tuple[keras.Layer, Any]], keras.KerasTensor]:
    """Calls a model's layers once more; returns each with its outputs, in order, and the logits."""
    calls = []

    def call(layer: keras.Layer, *inputs: Any, **options: Any) -> Any:  # noqa: ANN401 (what layers take and give)
        calls.append((layer, layer(*inputs, **options)))
        return calls[-1][1]

    if isinstance(model, keras.Sequential):  # Keras clones those without `call_function`
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
