"""Backbones of Keras Hub with a classifier on top: `config.model.name=keras_hub:PRESET`.

    hub = hub_model("vit_base_patch16_224_imagenet", num_classes=5, image_size=224, with_weights=True)
    logits = hub.model(hub.scale_pixels(images))

A preset is a folder with the config of a backbone, the scaling of its pixels and its weights: one of Keras Hub's names,
`hf://USER/MODEL`, `kaggle://...`, or a folder of this machine. Its own classifier is not used.
"""

import contextlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from convoy.core.downloads import alone, cache_folder
from convoy.core.errors import ConvoyError, DataError, UsageError, did_you_mean, failure
from convoy.core.text import counted
from convoy.trainer.tf_compat.internals import automatic_names_kept

HUB = "keras_hub:"
PRESET = "preset"  # the value of config.model.weights
_CONFIG, _SCALING, _WEIGHTS = "config.json", "image_converter.json", "model.weights.h5"  # files of a preset
_MOST_SPECIAL_TOKENS = 5  # before those of the patches: a class token, a distillation token, four registers


@dataclass(frozen=True)
class HubModel:
    """A classifier with a backbone of Keras Hub.

    Attributes:
      model: maps images to logits.
      scale_pixels: maps float pixels in [0, 255] to what the backbone expects.
      loaded: how many weights came from the preset, as text; empty if they are random.
      preset: content of the files that describe the backbone, by name: a preset without weights.
    """

    model: keras.Model
    scale_pixels: Callable[[tf.Tensor], tf.Tensor]
    loaded: str = ""
    preset: Mapping[str, str] = field(default_factory=dict)


def hub_model(preset: str, num_classes: int, image_size: int, *, with_weights: bool = False) -> HubModel:
    """Returns a backbone with a new head: average pooling or the class token, then a dense layer.

    Args:
      preset: the preset.
      num_classes: 2 or more.
      image_size: side of the square input in pixels. Position embeddings are interpolated for it.
      with_weights: whether to load the preset's weights; they are random otherwise.

    Raises:
      UsageError: Keras Hub is not installed, there is no such preset, or it is not a model of images of this size.
      DataError: it cannot be downloaded.
    """
    with _errors_of(preset):
        hub = _keras_hub(preset)
        backbone = _backbone(hub, preset, image_size, with_weights=with_weights)
        try:
            converter = hub.layers.ImageConverter.from_preset(preset)
            scale, offset = converter.scale, converter.offset
            files = {_SCALING: _description(converter)}
        except FileNotFoundError:  # pixels in [0, 1], as for models of users
            scale, offset, files = 1 / 255, None, {}
        classifier = _classifier(hub, backbone, num_classes)
    loaded = ""
    if with_weights:
        number = len(backbone.weights)
        head = len(classifier.weights) - number
        loaded = (
            f"{number} of {counted(number, 'backbone weight')} from {preset}, 0 of {counted(head, 'head weight')}; the "
            "rest is random"
        )
    scale_pixels = _scaling(scale, offset)
    return HubModel(classifier, scale_pixels, loaded, {_CONFIG: _description(backbone), **files})


def fetch_preset(preset: str, *, with_weights: bool) -> None:
    """Downloads the files of a preset, unless they are there. One process of a host does, others wait for it.

    Raises:
      UsageError: Keras Hub is not installed, or there is no such preset.
      DataError: they cannot be downloaded.
    """
    if Path(preset).is_dir():
        return
    with _errors_of(preset), alone(cache_folder() / "presets", preset.replace("/", "_")):
        from keras_hub.src.utils.preset_utils import get_file

        for name in (_CONFIG, _SCALING, *([_WEIGHTS] if with_weights else [])):
            with contextlib.suppress(FileNotFoundError):  # other formats have other files
                get_file(preset, name)


def is_preset_folder(folder: Path) -> bool:
    """Returns whether a folder has the description of a backbone."""
    return (folder / _CONFIG).is_file()


def preset_weights(preset: str) -> str:
    """Returns the path of the weights file of a preset that has been downloaded; "" if it is in another format."""
    from keras_hub.src.utils.preset_utils import get_file

    with contextlib.suppress(FileNotFoundError):
        return get_file(preset, _WEIGHTS)
    return ""


def _keras_hub(preset: str) -> Any:  # noqa: ANN401 (a module without annotations)
    try:
        import keras_hub
    except ImportError as error:
        raise UsageError(
            f"config.model.name='{HUB}{preset}': keras_hub cannot be imported ({failure(error)}). Run `pip install "
            "'convoy-train[hub]'`."
        ) from None
    return keras_hub


@contextlib.contextmanager
def _errors_of(preset: str) -> Iterator[None]:
    """Turns what Keras Hub raises about a preset into errors of one line."""
    name = f"config.model.name='{HUB}{preset}'"
    try:
        yield
    except (ConvoyError, tf.errors.OpError):
        raise
    except Exception as error:  # of the libraries that download, too
        hub = _keras_hub(preset)
        known = [*hub.models.ImageClassifier.presets, *hub.models.DINOV2Backbone.presets]
        is_local = os.path.exists(preset)
        if not is_local and preset not in known and "://" not in preset:
            raise UsageError(
                f"{name}: no such preset{did_you_mean(preset, known)}. Pass a name of Keras Hub, hf://USER/MODEL, "
                "kaggle://HANDLE, or a folder."
            ) from error
        if is_local:
            raise DataError(f"{name}: damaged, or not a preset of Keras Hub: {failure(error)}.") from error
        raise DataError(
            f"{name}: cannot be downloaded or used: {failure(error)}. Without internet access, pass the folder of a "
            f"preset that was downloaded elsewhere: config.model.name={HUB}FOLDER."
        ) from error


def _backbone(hub: Any, preset: str, image_size: int, *, with_weights: bool) -> keras.Model:  # noqa: ANN401
    """Returns the backbone of a preset for square images, on an input of any size if it can."""

    def load(*, weights: bool, **options: Any) -> keras.Model:  # noqa: ANN401
        dtype = keras.config.dtype_policy()
        return hub.models.Backbone.from_preset(preset, load_weights=weights, dtype=dtype, **options)

    with automatic_names_kept():  # variables must have the same paths whatever else is built
        own = load(weights=False)
        shape = tuple(own.input_shape[1:]) if isinstance(own.input_shape, tuple) else ()
        if len(shape) != 3 or shape[2] != 3 or not isinstance(own.output, keras.KerasTensor):
            raise UsageError(f"config.model.name='{HUB}{preset}': {type(own).__name__} is not a model of RGB images.")
        is_resized = None not in shape and shape != (image_size, image_size, 3)
        source = load(weights=True) if is_resized and with_weights else None
    if not is_resized:
        return load(weights=with_weights)
    name = next(name for name in ("image_shape", "input_shape") if name in inspect.signature(type(own)).parameters)
    try:
        resized = load(weights=False, **{name: (image_size, image_size, 3)})
    except ValueError as error:
        raise UsageError(
            f"config.model.name='{HUB}{preset}' cannot be built for config.image_size={image_size}: {failure(error)}. "
            f"Its own size is {shape[0]}."
        ) from error
    for weight, value in zip(resized.weights, source.weights if source else (), strict=bool(source)):
        weight.assign(_interpolated(value.numpy(), tuple(weight.shape)))
    return resized


def _interpolated(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns position embeddings [..., tokens, width] for another number of patches; other values as they are."""
    if value.shape == shape:
        return value
    before, after = value.shape[-2], shape[-2]
    for special in range(_MOST_SPECIAL_TOKENS + 1):
        sides = [int(max(tokens - special, 0) ** 0.5) for tokens in (before, after)]
        if all(side and side**2 == tokens - special for side, tokens in zip(sides, (before, after), strict=True)):
            tokens = value.reshape(before, -1)
            grid = tokens[special:].reshape(1, sides[0], sides[0], -1)
            patches = tf.image.resize(grid, [sides[1]] * 2, "bicubic", antialias=True).numpy()
            return np.concatenate([tokens[:special], patches.reshape(after - special, -1)]).reshape(shape)
    raise ValueError(f"weights of shape {list(value.shape)} do not fit {list(shape)}")


def _classifier(hub: Any, backbone: keras.Model, num_classes: int) -> keras.Model:  # noqa: ANN401
    """Returns a functional model of the backbone's own layers and a head, as the hub's classifier pools features."""
    features = backbone.output
    if len(features.shape) == 4:
        pooled = layers.GlobalAveragePooling2D(name="average")(features)
    elif _has_class_token(hub, backbone):
        pooled = layers.Cropping1D((0, features.shape[1] - 1), name="class_token")(features)
        pooled = layers.Flatten(name="features")(pooled)
    else:
        pooled = layers.GlobalAveragePooling1D(name="average")(features)
    logits = layers.Dense(num_classes, name="logits")(pooled)
    return keras.Model(backbone.inputs, logits, name=backbone.name)


def _has_class_token(hub: Any, backbone: keras.Model) -> bool:  # noqa: ANN401
    """Returns whether the first token represents the image: in self-supervised models without a classifier too."""
    classifiers = [
        value for value in vars(hub.models).values() if getattr(value, "backbone_cls", None) is type(backbone)
    ]
    for classifier in (value for value in classifiers if issubclass(value, hub.models.ImageClassifier)):
        pooling = inspect.signature(classifier).parameters.get("pooling")
        return pooling is not None and pooling.default == "token"
    return True


def _scaling(scale: Any, offset: Any) -> Callable[[tf.Tensor], tf.Tensor]:  # noqa: ANN401
    """Returns the function `pixels * scale + offset`, with numbers for all channels or for each of them."""

    def scale_pixels(pixels: tf.Tensor) -> tf.Tensor:
        for value, combine in ((scale, keras.ops.multiply), (offset, keras.ops.add)):
            if value is not None:
                pixels = combine(pixels, keras.ops.convert_to_tensor(value, dtype=pixels.dtype))
        return pixels

    return scale_pixels


def _description(layer: keras.Layer) -> str:
    """Returns the config of a backbone or converter in the format of a preset's files."""
    return json.dumps(keras.saving.serialize_keras_object(layer), indent=1)
