"""The models by name: three built-ins, everything in `keras.applications`, and a function in a file. All return logits.

    built = build_model("baseline_cnn", num_classes=42, image_size=64)
    logits = built.model(built.scale_pixels(images))

Models are written in Keras' own layers, then rebuilt with the fast ones of `convoy.trainer.tf_compat.layers`. Their layers are named
explicitly, because checkpoints are keyed by the paths of variables.
"""

import dataclasses
from collections.abc import Callable

import keras
import tensorflow as tf

from convoy.core.errors import UsageError, did_you_mean
from convoy.trainer.models.applications import application
from convoy.trainer.models.built_in import baseline_cnn, convnet
from convoy.trainer.models.from_file import model_from_file
from convoy.trainer.models.pretrained import load_pretrained
from convoy.trainer.models.resnet import resnet
from convoy.trainer.tf_compat.layers import with_fast_layers

_BUILT_IN = {"baseline_cnn": baseline_cnn, "convnet": convnet, "resnet": resnet}
_APPLICATIONS = "keras_applications:"
_TAKEN_BY = {option: ("resnet",) for option in ("depth", "width", "stochastic_depth")} | {
    option: ("convnet", "resnet") for option in ("dropout", "instance_norm")
}


@dataclasses.dataclass(frozen=True)
class ModelBundle:
    """A model and the scaling its input wants.

    Attributes:
      model: maps [batch, size, size, 3] of the compute dtype to logits [batch, num_classes].
      scale_pixels: maps float pixels in [0, 255] to what the model takes.
      loaded: what a weights file gave, in words; empty where all weights are random.
    """

    model: keras.Model
    scale_pixels: Callable[[tf.Tensor], tf.Tensor]
    loaded: str = ""


def build_model(
    name: str,
    *,
    num_classes: int,
    image_size: int,
    weights: str = "",
    dropout: float = -1.0,
    depth: int = 0,
    width: int = 0,
    stochastic_depth: float = 0.0,
    instance_norm: str = "auto",
) -> ModelBundle:
    """Builds a model with random weights, or with those of a file.

    Args:
      name: `baseline_cnn`, `convnet`, `resnet`, `keras_applications:NAME` (for example `keras_applications:ResNet50`), or
        `FILE.py:FUNCTION`, a function of `num_classes` and `image_size` that returns a Keras model; it sees pixels in
        [0, 1] and returns logits.
      num_classes: 2 or more.
      image_size: side of the square input in pixels.
      weights: a file of weights of this architecture (`pretrained.load_pretrained`); random where empty.
      dropout: rate before the last layer of `convnet` and `resnet`, in [0, 1); the model's own where negative.
      depth: of `resnet`; its own where 0.
      width: of `resnet`; its own where 0.
      stochastic_depth: of `resnet`, in [0, 1).
      instance_norm: of `convnet` and `resnet`: `on`, `off`, or the model's own with `auto`.

    Raises:
      UsageError: no such model, an option that it does not have, or an image too small for it.
      DataError: the weights file is missing or fits another model.
    """
    given = {
        "depth": depth or None,
        "width": width or None,
        "stochastic_depth": stochastic_depth or None,
        "dropout": dropout if dropout >= 0 else None,
        "instance_norm": None if instance_norm == "auto" else instance_norm,
    }
    options = {option: value for option, value in given.items() if value is not None}
    for option, value in options.items():
        if name not in _TAKEN_BY[option]:
            raise UsageError(
                f"config.model.{option}={value}: only {' and '.join(_TAKEN_BY[option])} can have it. Leave it out, or "
                f"give --config.model.name={_TAKEN_BY[option][-1]}."
            )
    if "instance_norm" in options:
        options["instance_norm"] = options["instance_norm"] == "on"
    try:
        if name.startswith(_APPLICATIONS):
            model, scale_pixels = application(name.removeprefix(_APPLICATIONS), num_classes, image_size)
        elif ".py:" in name:
            model, scale_pixels = model_from_file(name, num_classes, image_size), _unit_scale
        elif name in _BUILT_IN:
            model, scale_pixels = _BUILT_IN[name](num_classes, image_size, **options), _unit_scale
        else:
            raise UsageError(
                f"config.model.name={name!r} is no known model{did_you_mean(name, _BUILT_IN)}. "
                f"Known: {', '.join(_BUILT_IN)}, {_APPLICATIONS}NAME, FILE.py:FUNCTION."
            )
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"config.model.name={name!r} cannot be built for images of {image_size} pixels: {reason}"
        ) from error
    fast = with_fast_layers(model)
    return ModelBundle(fast, scale_pixels, load_pretrained(model, fast, weights) if weights else "")


def supports_any_size(model: keras.Model) -> bool:
    """Whether a model takes images of other sizes than the one it was built for."""
    return getattr(model, "input_shape", (None, 0))[1] is None


def _unit_scale(pixels: tf.Tensor) -> tf.Tensor:
    return pixels / 255.0
