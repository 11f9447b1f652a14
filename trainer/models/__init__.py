"""Builds models by name: four built-in ones, `keras.applications`, Keras Hub, and functions of users.

    built = build_model("baseline_cnn", num_classes=42, image_size=64)
    logits = built.model(built.scale_pixels(images))

All models return logits. They are written in Keras' own layers, then rebuilt with the faster ones of
`convoy.trainer.tf_compat.layers`. Layers are named explicitly, because checkpoints are keyed by variable paths.
"""

import dataclasses
from collections.abc import Callable, Mapping

import keras
import tensorflow as tf

from convoy.core.errors import UsageError
from convoy.core.registry import Found
from convoy.trainer.models.applications import application
from convoy.trainer.models.built_in import baseline_cnn, convnet, residual_convnet
from convoy.trainer.models.from_users import APPLICATIONS, MODELS, model_from_user, unit_scale
from convoy.trainer.models.hub import HUB, PRESET, hub_model
from convoy.trainer.models.pretrained import load_pretrained
from convoy.trainer.models.resnet import resnet
from convoy.trainer.tf_compat.layers import with_fast_layers

for _function in (baseline_cnn, convnet, residual_convnet, resnet):
    MODELS.register(_function.__name__)(_function)
# The models that have each option.
_OPTIONS = {
    "depth": ("resnet",),
    "width": ("resnet",),
    "stochastic_depth": ("resnet",),
    "dropout": ("convnet", "residual_convnet", "resnet"),
    "instance_norm": ("convnet", "residual_convnet", "resnet"),
}


@dataclasses.dataclass(frozen=True)
class ModelBundle:
    """A model and the scaling of its input.

    Attributes:
      model: maps images [batch, size, size, 3] in the compute dtype to logits [batch, num_classes].
      scale_pixels: maps float pixels in [0, 255] to the range that the model expects.
      loaded: how many weights came from a weights file, as text; empty without a file.
      found: the user's function that built the model; None for others.
      preset: of a model of Keras Hub, the content of the files that describe it, by name.
    """

    model: keras.Model
    scale_pixels: Callable[[tf.Tensor], tf.Tensor]
    loaded: str = ""
    found: Found | None = None
    preset: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def inputs(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the input of the model for images [batch, size, size, 3] uint8."""
        return tf.cast(self.scale_pixels(tf.cast(images, tf.float32)), self.model.compute_dtype)


def build_model(
    name: str,
    *,
    num_classes: int,
    image_size: int,
    weights: str = "",
    same_classes: bool | None = None,
    dropout: float = -1.0,
    depth: int = 0,
    width: int = 0,
    stochastic_depth: float = 0.0,
    instance_norm: str = "auto",
) -> ModelBundle:
    """Builds a model with random weights, or with weights from a file.

    Args:
      name: `baseline_cnn`, `convnet`, `resnet`, `keras_applications:NAME` (such as `keras_applications:ResNet50`),
        `keras_hub:PRESET`, or a user's function of `num_classes` and `image_size` that keeps the contract of
        `contract`, as `FILE.py:FUNCTION`, `package.module:FUNCTION` or by the name it is registered under.
      num_classes: 2 or more.
      image_size: side of the square input in pixels.
      weights: file with weights of this architecture (`pretrained.load_pretrained`), or `preset` for those of a preset
        of Keras Hub; empty: random weights.
      same_classes: whether the file is known to be of a classifier of the same classes; None: unknown.
      dropout: rate before the last layer of `convnet` and `resnet`, in [0, 1); negative: the model's default.
      depth: number of layers of `resnet`; 0: its default.
      width: channels of the first stage of `resnet`; 0: its default.
      stochastic_depth: drop rate of the last block of `resnet`, in [0, 1).
      instance_norm: `on`, `off` or `auto` (the model's default), for `convnet` and `resnet`.

    Raises:
      UsageError: unknown model, an option that it does not have, or images too small for it.
      DataError: the weights file is missing, damaged or for another model; a preset cannot be downloaded.
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
        if name not in _OPTIONS[option]:
            raise UsageError(
                f"config.model.{option}={value}: model {name!r} has no such option. Remove it, or set "
                f"config.model.name to {' or '.join(_OPTIONS[option])}."
            )
    if "instance_norm" in options:
        options["instance_norm"] = options["instance_norm"] == "on"
    found, hub = None, None
    try:
        if name.startswith(APPLICATIONS):
            model, scale_pixels = application(name.removeprefix(APPLICATIONS), num_classes, image_size)
        elif name.startswith(HUB):
            hub = hub_model(name.removeprefix(HUB), num_classes, image_size, with_weights=weights == PRESET)
            model, scale_pixels = hub.model, hub.scale_pixels
        elif MODELS.is_built_in(name):
            model, scale_pixels = MODELS.find(name).value(num_classes, image_size, **options), unit_scale
        else:
            found = MODELS.find(name)
            model, scale_pixels = model_from_user(found, num_classes, image_size)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"config.model.name={name!r} cannot be built for config.image_size={image_size}: {reason}"
        ) from error
    fast = with_fast_layers(model)
    if hub and weights == PRESET:
        return ModelBundle(fast, scale_pixels, hub.loaded, preset=hub.preset)
    loaded = load_pretrained(model, fast, weights, same_classes=same_classes) if weights else ""
    return ModelBundle(fast, scale_pixels, loaded, found, hub.preset if hub else {})


def is_from_user(name: str) -> bool:
    """Returns whether a model's name is that of a user's function."""
    return not MODELS.is_built_in(name) and not name.startswith((APPLICATIONS, HUB))


def supports_any_size(model: keras.Model) -> bool:
    """Returns whether a model accepts images of any size, not only of the one that it was built for."""
    return getattr(model, "input_shape", (None, 0))[1] is None
