"""Writes a trained model in each export format, in float32, with preprocessing and class names included.

    model = serving_model(trained)
    write("onnx", model, Path("model.onnx"))

The output of every format is `probabilities` [n, num_classes] float32. Inputs, and where the class names are:

    saved_model  signature `serving_default`: `image_bytes` [n], encoded images.
                 signature `images`: `images` [n, any height, any width, 3] uint8.
                 Both also return `category` [n]. Class names: a constant, and the asset labels.txt.
    keras        [n, size, size, 3] uint8. Class names: labels.txt in the file, which is a zip.
    litert       `images` [1, size, size, 3] uint8. Class names: labels.txt in a zip appended to the file.
    onnx         `images` [n, size, size, 3] uint8. Class names: metadata property `class_names`, as JSON.

The last three take images that were resized as `convoy.input_pipeline.reading.decode.Crop.resize` says.
"""

import contextlib
import errno
import io
import json
import logging
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import keras
import tensorflow as tf

from convoy.input_pipeline.reading.decode import CROP_DRAWS, VIEWED, Crop, decode_and_crop, resize
from convoy.input_pipeline.reading.file_kinds import READABLE, unreadable_kind
from convoy.input_pipeline.tf_startup import captured_stderr
from convoy.trainer.run.task import Decision
from convoy.trainer.session.restore import TrainedRun
from convoy.trainer.step.outputs import calibrated
from convoy.trainer.tf_compat.layers import all_layers, with_keras_layers

LABELS = "labels.txt"
_T = TypeVar("_T")
_NEEDS_CODE = "{} has code that is not in Keras, so the file could not be loaded without it. Use another format."


@dataclass(frozen=True)
class ServingModel:
    """A model ready to be written.

    Attributes:
      model: model of built-in Keras layers only, with the weights that evaluation uses.
      scale_pixels: maps float pixels in [0, 255] to the model's input; for tensors and symbolic Keras tensors.
      crop: how images are resized to its square input.
      decision: class names, and how probabilities become labels.
      temperature: what the logits are divided by.
    """

    model: keras.Model
    scale_pixels: Callable[[tf.Tensor], tf.Tensor]
    crop: Crop
    decision: Decision
    temperature: float = 1.0

    @property
    def class_names(self) -> Sequence[str]:
        """The class names, by label."""
        return self.decision.class_names

    @property
    def labels(self) -> str:
        """The class names, one per line."""
        return "".join(f"{name}\n" for name in self.class_names)

    def probabilities(self, images: tf.Tensor) -> tf.Tensor:
        """Returns probabilities [n, num_classes] float32 for images [n, size, size, 3] uint8."""
        logits = calibrated(
            self.model(self.scale_pixels(tf.cast(images, tf.float32)), training=False), self.temperature
        )
        return tf.sigmoid(logits) if self.decision.multi_label else tf.nn.softmax(logits)

    def categories(self, probabilities: tf.Tensor) -> tf.Tensor:
        """Returns the class of each image, [n] string; of several labels per image all of them, as `Decision.text`."""
        names = tf.constant(list(self.class_names))
        if self.decision.thresholds is None:
            return tf.gather(names, tf.argmax(probabilities, 1))
        # As float64, in which they are chosen.
        chosen = tf.cast(probabilities, tf.float64) >= tf.constant(self.decision.thresholds, tf.float64)
        rows = tf.ragged.boolean_mask(tf.broadcast_to(names, tf.shape(probabilities)), chosen)
        return tf.strings.reduce_join(rows, axis=-1, separator=self.decision.delimiter)


def serving_model(trained: TrainedRun) -> ServingModel:
    """Returns a run's model as evaluation uses it. The run must have been opened in float32.

    If the run keeps an average, it replaces the weights of `trained`.
    """
    state, built = trained.runtime.state, trained.runtime.built
    for weight, value in zip(state.weights, state.evaluated_weights, strict=True):
        weight.assign(value)
    model = with_keras_layers(built.model)
    return ServingModel(model, built.scale_pixels, trained.crop, trained.decision, trained.temperature or 1.0)


def obstacle(file_format: str, model: keras.Model) -> str:
    """Returns why a format cannot hold a model, as far as that shows before it is written; otherwise an empty string.

    Args:
      file_format: one of `loaders.FILES`.
      model: a run's model.
    """
    if file_format != "keras":  # the others hold operations, whatever code they come from
        return ""
    for layer in (model, *all_layers(model)):
        name = f"{type(layer).__name__} {layer.name!r}"
        package = type(layer).__module__.partition(".")[0]
        try:
            own_config = {} if isinstance(layer, keras.Model) else layer.get_config()  # a model's layers follow
            config = json.loads(json.dumps(keras.saving.serialize_keras_object(own_config)))
        except Exception:  # of any object in it
            package, config = "", {}
        # `with_keras_layers` replaces Convoy's.
        if package not in ("keras", "convoy"):
            return _NEEDS_CODE.format(name)
        if own := next(_own_objects(config), None):
            return _NEEDS_CODE.format(f"{own} in {name}")
    return ""


def _own_objects(config: Any) -> Iterator[str]:  # noqa: ANN401 (any JSON value)
    """Yields the names of functions and classes that are not Keras' own, in a serialized config."""
    if isinstance(config, dict) and config.get("class_name") == "__lambda__":
        yield "a lambda"
    elif isinstance(config, dict) and config.get("registered_name"):
        yield str(config["config"] if config["class_name"] == "function" else config["class_name"])
    for value in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        yield from _own_objects(value)


def write(file_format: str, model: ServingModel, path: Path) -> None:
    """Writes a model without console output. `labels.txt` must already be in the folder of `path`.

    Args:
      file_format: one of `loaders.FILES`.
      model: the model.
      path: the file or folder to create.

    Raises:
      OSError: the file cannot be written.
      Exception: of any type; the format cannot express the model.
    """
    writer = {"saved_model": _saved_model, "keras": _keras, "litert": _litert, "onnx": _onnx}[file_format]
    without_output(lambda: writer(model, path))


def without_output(call: Callable[[], _T]) -> _T:
    """Calls a function of another library without console output; returns its result.

    Raises:
      OSError: a file cannot be written.
      Exception: of any type, the function's.
    """
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)  # without any, logging.info() installs one for good
    with captured_stderr(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except Exception as error:  # raised below: raised here, it would release the converter's output
            is_full = isinstance(error, tf.errors.OpError) and os.strerror(errno.ENOSPC) in str(error)
            failure = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if is_full else error
        finally:
            root.removeHandler(handler)
    raise failure


def _saved_model(model: ServingModel, path: Path) -> None:
    module = tf.Module()
    module.variables_of_model = [variable.value for variable in model.model.variables]
    module.labels = tf.saved_model.Asset(str(path.with_name(LABELS)))
    one_image = tf.TensorSpec([model.crop.size, model.crop.size, 3], tf.uint8)

    def classify(images: tf.Tensor) -> dict[str, tf.Tensor]:
        # Some operations fail on no images at all: one takes their place, and its answer is dropped.
        number = tf.shape(images)[0]
        images = tf.pad(images, [[0, tf.cast(number == 0, tf.int32)], [0, 0], [0, 0], [0, 0]])
        probabilities = model.probabilities(images)[:number]
        return {"probabilities": probabilities, "category": model.categories(probabilities)}

    def decode_image(numbered: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        number, encoded = numbered
        kind = unreadable_kind(encoded)
        message = tf.strings.format("image {} is of kind {}: send {}", (number, kind, READABLE))
        with tf.control_dependencies([tf.debugging.Assert(kind == "", [message])]):
            encoded = tf.identity(encoded)
        unused = tf.constant(0, tf.int64)  # height and width are needed for raw pixels only
        features = {"encoded": encoded, "format": tf.constant(VIEWED), "height": unused, "width": unused}
        return decode_and_crop(features, tf.zeros([CROP_DRAWS]), model.crop)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")], autograph=False)
    def classify_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        numbers = tf.range(tf.size(image_bytes))
        return classify(tf.map_fn(decode_image, (numbers, image_bytes), fn_output_signature=one_image))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "images")], autograph=False)
    def classify_pixels(images: tf.Tensor) -> dict[str, tf.Tensor]:
        def resize_image(image: tf.Tensor) -> tf.Tensor:
            return resize(image, model.crop)

        return classify(tf.map_fn(resize_image, images, fn_output_signature=one_image))

    tf.saved_model.save(module, str(path), signatures={"serving_default": classify_bytes, "images": classify_pixels})


def _keras(model: ServingModel, path: Path) -> None:
    images = keras.Input((model.crop.size, model.crop.size, 3), dtype="uint8", name="images")
    logits = model.model(model.scale_pixels(keras.ops.cast(images, "float32")))
    if model.temperature != 1.0:
        logits = keras.layers.Rescaling(1.0 / model.temperature, name="temperature")(logits)
    last = keras.layers.Softmax(name="probabilities")
    if model.decision.multi_label:
        last = keras.layers.Activation("sigmoid", name="probabilities")
    keras.Model(images, last(logits), name="classifier").save(path)
    add_labels(model, path)


def _litert(model: ServingModel, path: Path) -> None:
    path.write_bytes(litert_converter(model, tf.uint8).convert())
    add_labels(model, path)


def litert_converter(model: ServingModel, input_type: tf.DType) -> tf.lite.TFLiteConverter:
    """Returns a converter of a model with an input `images` of a type."""
    module = tf.Module()  # the converter reads the values of the variables in it
    module.variables_of_model = [variable.value for variable in model.model.variables]
    function = _classify_function(model, batch_size=1, input_type=input_type).get_concrete_function()
    return tf.lite.TFLiteConverter.from_concrete_functions([function], module)


def _onnx(model: ServingModel, path: Path) -> None:
    import tf2onnx

    # tf2onnx skips an optimization that fails, but logs its traceback.
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    function = _classify_function(model, batch_size=None)
    converted, _ = tf2onnx.convert.from_function(function, input_signature=function.input_signature)
    for value in (*converted.graph.input, *converted.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    path.write_bytes(converted.SerializeToString())
    add_metadata(model, path)


def add_metadata(model: ServingModel, path: Path) -> None:
    """Adds class names, resize and thresholds to the metadata of an ONNX file."""
    import onnx

    written = onnx.load(path)
    properties = {"class_names": json.dumps(list(model.class_names)), "resize": model.crop.resize}
    if model.decision.thresholds is not None:
        properties["thresholds"] = json.dumps(list(model.decision.thresholds))
    onnx.helper.set_model_props(written, properties)
    onnx.save(written, path)


def _classify_function(
    model: ServingModel, *, batch_size: int | None, input_type: tf.DType = tf.uint8
) -> tf.types.experimental.PolymorphicFunction:
    spec = tf.TensorSpec([batch_size, model.crop.size, model.crop.size, 3], input_type, "images")

    @tf.function(input_signature=[spec], autograph=False)
    def classify(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": model.probabilities(images)}

    return classify


def add_labels(model: ServingModel, path: Path) -> None:
    """Adds labels.txt to a zip, or appends a zip with it, where LiteRT's metadata readers look for it."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(LABELS), model.labels)  # with a constant date
