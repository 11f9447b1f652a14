"""Loads each format with its own library and nothing of Convoy's, as whoever receives an export would.

    classify = load("onnx", Path("exported/model.onnx"))
    classify(images)      # [n, size, size, 3] uint8 -> probabilities [n, num_classes] float32

As a program this file is the process that proves that an export works elsewhere (`convoy.trainer.export.check`):

    python loaders.py FORMAT FILE INPUT.npz OUTPUT.npz

Keras imports the modules of layers that it does not know. The program hides Convoy's, as if it were not installed.
"""

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

FILES = {"saved_model": "saved_model", "keras": "model.keras", "litert": "model.tflite", "onnx": "model.onnx"}
Classify = Callable[[np.ndarray], np.ndarray]


def load(file_format: str, path: Path) -> Classify:
    """Returns what maps images [n, size, size, 3] uint8 to probabilities [n, num_classes] float32.

    Raises:
      ImportError: the format's library is not installed.
      Exception: of any kind; the file is damaged.
    """
    return {"saved_model": _saved_model, "keras": _keras, "litert": _litert, "onnx": _onnx}[file_format](path)


def _saved_model(path: Path) -> Classify:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    # A signature alone does not keep the variables of its model alive.
    return lambda images: loaded.signatures["images"](images=tf.constant(images))["probabilities"].numpy()


def _keras(path: Path) -> Classify:
    import keras

    model = keras.models.load_model(path, compile=False)
    return lambda images: np.asarray(model.predict_on_batch(images))


def _litert(path: Path) -> Classify:
    import tensorflow as tf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that the class is about to move to a package of its own
        interpreter = tf.lite.Interpreter(model_path=str(path))
    runner = interpreter.get_signature_runner()
    return lambda images: np.concatenate([runner(images=image[np.newaxis])["probabilities"] for image in images])


def _onnx(path: Path) -> Classify:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": images})[0]


def _of_encoded(path: Path, encoded: list[bytes]) -> tuple[list[np.ndarray], list[bytes]]:
    """Returns what a SavedModel says of encoded images, and of their pixels in their own size.

    Returns:
      Probabilities [n, num_classes], two of them, and the categories [n] as UTF-8.
    """
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    answer = loaded.signatures["serving_default"](image_bytes=tf.constant(encoded))
    whole = [tf.io.decode_image(image, channels=3, expand_animations=False)[tf.newaxis] for image in encoded]
    of_pixels = [loaded.signatures["images"](images=image)["probabilities"].numpy() for image in whole]
    return [answer["probabilities"].numpy(), np.concatenate(of_pixels)], answer["category"].numpy().tolist()


def _main(file_format: str, path: str, given: str, output: str) -> None:
    """Classifies `images` and, in a SavedModel, also `encoded`, which lie one after another, `lengths` bytes each."""
    with np.load(given) as arrays:
        images, joined, lengths = arrays["images"], arrays["encoded"].tobytes(), arrays["lengths"]
    ways, categories = [load(file_format, Path(path))(images)], []
    if file_format == "saved_model":
        ends = np.cumsum(lengths).tolist()
        more, categories = _of_encoded(Path(path), [joined[a:b] for a, b in zip([0, *ends], ends, strict=False)])
        ways += more
    np.savez(output, probabilities=np.stack(ways), categories=np.array([name.decode() for name in categories], str))


if __name__ == "__main__":
    sys.modules.update(dict.fromkeys(("convoy",)))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    _main(*sys.argv[1:])
