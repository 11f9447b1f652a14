"""Writes a trained model in each format, with preprocessing and label names inside; everything computes in float32.

    model = deployable(trained)
    write("onnx", model, Path("model.onnx"))

All give `probabilities` [n, num_classes] float32. What they take, and where the label names are:

    saved_model  `serving_default`: `image_bytes` [n], encoded images; `images`: [n, any height, any width, 3] uint8.
                 Both also give `category` [n]. The names are a constant, and the asset labels.txt.
    keras        [n, size, size, 3] uint8. labels.txt is an entry of the file, which is a zip.
    litert       `images` [1, size, size, 3] uint8. labels.txt is in a zip at the file's end.
    onnx         `images` [n, size, size, 3] uint8. The metadata's `class_names` holds them as JSON.
"""

import contextlib
import errno
import io
import json
import logging
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf

from convoy.input_pipeline.reading.decode import CROP_DRAWS, Crop, decode_and_crop, resize
from convoy.input_pipeline.tf_startup import captured_stderr
from convoy.trainer.session.restore import TrainedRun
from convoy.trainer.tf_compat.layers import with_keras_layers

LABELS = "labels.txt"


@dataclass(frozen=True)
class Deployable:
    """A model to take away.

    Attributes:
      model: in Keras' own layers, with the weights that evaluation uses.
      scale_pixels: from float pixels in [0, 255] to what the model takes; for tensors and in a Keras model.
      image_size: side of the square images that it takes, in pixels.
      class_names: the categories, by label.
    """

    model: keras.Model
    scale_pixels: Callable
    image_size: int
    class_names: Sequence[str]

    @property
    def labels(self) -> str:
        """The categories, a line each."""
        return "".join(f"{name}\n" for name in self.class_names)

    def probabilities(self, images: tf.Tensor) -> tf.Tensor:
        """Returns [n, num_classes] float32 for [n, size, size, 3] uint8."""
        return tf.nn.softmax(self.model(self.scale_pixels(tf.cast(images, tf.float32)), training=False))


def deployable(trained: TrainedRun) -> Deployable:
    """Returns a run's model as it is evaluated. The run must have been opened in float32.

    Its weights become their moving average, where it keeps one.
    """
    state, built = trained.runtime.state, trained.runtime.built
    for weight, value in zip(state.weights, state.evaluated_weights, strict=True):
        weight.assign(value)
    return Deployable(with_keras_layers(built.model), built.scale_pixels, trained.image_size, trained.class_names)


def write(file_format: str, model: Deployable, path: Path) -> None:
    """Writes a model, silently. `labels.txt` must lie beside `path` already.

    Raises:
      OSError: it cannot be written.
      Exception: of any kind; the format cannot express the model.
    """
    writer = {"saved_model": _saved_model, "keras": _keras, "litert": _litert, "onnx": _onnx}[file_format]
    failure = None
    with captured_stderr(), contextlib.redirect_stdout(io.StringIO()):
        try:
            writer(model, path)
        except Exception as error:  # raised outside: else all that the converter wrote to the screen would come out
            is_full = isinstance(error, tf.errors.OpError) and os.strerror(errno.ENOSPC) in str(error)
            failure = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if is_full else error
    if failure:
        raise failure


def _saved_model(model: Deployable, path: Path) -> None:
    module = tf.Module()
    module.variables_of_model = [variable.value for variable in model.model.variables]
    module.labels = tf.saved_model.Asset(str(path.with_name(LABELS)))
    module.class_names = tf.constant(list(model.class_names))
    one_image = tf.TensorSpec([model.image_size, model.image_size, 3], tf.uint8)

    def answer(images: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities = model.probabilities(images)
        category = tf.gather(module.class_names, tf.argmax(probabilities, 1))
        return {"probabilities": probabilities, "category": category}

    def decoded(encoded: tf.Tensor) -> tf.Tensor:
        unused = tf.constant(0, tf.int64)  # size is asked for of images that are stored without one
        features = {"encoded": encoded, "format": tf.constant("jpeg"), "height": unused, "width": unused}
        return decode_and_crop(features, tf.zeros([CROP_DRAWS]), Crop(model.image_size))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")], autograph=False)
    def of_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        return answer(tf.map_fn(decoded, image_bytes, fn_output_signature=one_image))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "images")], autograph=False)
    def of_pixels(images: tf.Tensor) -> dict[str, tf.Tensor]:
        def resized(image: tf.Tensor) -> tf.Tensor:
            return resize(image, model.image_size)

        return answer(tf.map_fn(resized, images, fn_output_signature=one_image))

    tf.saved_model.save(module, str(path), signatures={"serving_default": of_bytes, "images": of_pixels})


def _keras(model: Deployable, path: Path) -> None:
    images = keras.Input((model.image_size, model.image_size, 3), dtype="uint8", name="images")
    logits = model.model(model.scale_pixels(keras.ops.cast(images, "float32")))
    keras.Model(images, keras.layers.Softmax(name="probabilities")(logits), name="classifier").save(path)
    _add_labels(model, path)


def _litert(model: Deployable, path: Path) -> None:
    module = tf.Module()  # the converter takes the values from the variables that it finds here
    module.variables_of_model = [variable.value for variable in model.model.variables]
    function = _function_of_images(model, number=1).get_concrete_function()
    path.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([function], module).convert())
    _add_labels(model, path)


def _onnx(model: Deployable, path: Path) -> None:
    import tf2onnx

    # It goes on without an optimization that fails, and logs the traceback.
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    function = _function_of_images(model, number=None)
    converted, _ = tf2onnx.convert.from_function(function, input_signature=function.input_signature)
    converted.metadata_props.add(key="class_names", value=json.dumps(list(model.class_names)))
    path.write_bytes(converted.SerializeToString())


def _function_of_images(model: Deployable, *, number: int | None) -> Callable:
    spec = tf.TensorSpec([number, model.image_size, model.image_size, 3], tf.uint8, "images")

    @tf.function(input_signature=[spec], autograph=False)
    def of_images(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": model.probabilities(images)}

    return of_images


def _add_labels(model: Deployable, path: Path) -> None:
    """Adds labels.txt to a zip, or at the end of what is none, where the readers of LiteRT models look for it."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(LABELS, model.labels)
