"""Loads each export format with its own library only, without Convoy, as a recipient of an export would.

    classify = load("onnx", Path("exported/model.onnx"))
    classify(images)      # [n, size, size, 3] uint8 -> probabilities [n, num_classes] float32

`convoy.trainer.export.check` also runs this file as a program in a new process, to prove that an export works there:

    python loaders.py FORMAT FILE SAMPLES.npz OUTPUT.npz

Keras imports the module of any layer that it does not know, so the program makes `convoy` impossible to import.
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
    """Returns a function from images [n, size, size, 3] uint8 to probabilities [n, num_classes] float32.

    Args:
      file_format: one of `FILES`.
      path: the exported file or folder.

    Raises:
      ImportError: the format's library is not installed.
      Exception: of any type; the file is damaged.
    """
    return {"saved_model": _saved_model, "keras": _keras, "litert": _litert, "onnx": _onnx}[file_format](path)


def _saved_model(path: Path) -> Classify:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    # The lambda keeps `loaded` alive: a signature alone does not keep its model's variables.
    return lambda images: loaded.signatures["images"](images=tf.constant(images))["probabilities"].numpy()


def _keras(path: Path) -> Classify:
    import keras

    model = keras.models.load_model(path, compile=False)
    return lambda images: np.asarray(model.predict_on_batch(images))


def _litert(path: Path) -> Classify:
    import tensorflow as tf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation notice: the class is moving to its own package
        interpreter = tf.lite.Interpreter(model_path=str(path))
    runner = interpreter.get_signature_runner()
    return lambda images: np.concatenate([runner(images=image[np.newaxis])["probabilities"] for image in images])


def _onnx(path: Path) -> Classify:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": images})[0]


def _classify_encoded(path: Path, encoded: list[bytes], others: int) -> tuple[list[np.ndarray], list[bytes]]:
    """Classifies encoded images with a SavedModel: as bytes, and all but the last `others` as pixels at their size.

    Returns:
      Two arrays of probabilities [n, num_classes], and the n predicted class names as UTF-8.
    """
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    answer = loaded.signatures["serving_default"](image_bytes=tf.constant(encoded))
    from_bytes, plain = answer["probabilities"].numpy(), encoded[: len(encoded) - others]
    pixels = [tf.io.decode_image(image, channels=3, expand_animations=False)[tf.newaxis] for image in plain]
    from_pixels = [loaded.signatures["images"](images=image)["probabilities"].numpy() for image in pixels]
    return [from_bytes, np.concatenate([*from_pixels, from_bytes[len(plain) :]])], answer["category"].numpy().tolist()


def _main(file_format: str, path: str, samples: str, output: str) -> None:
    """Classifies `images` of the samples and, with a SavedModel, also `encoded`: concatenated, `lengths` bytes each."""
    with np.load(samples) as arrays:
        images, joined, lengths = arrays["images"], arrays["encoded"].tobytes(), arrays["lengths"]
        others = int(arrays["others"])
    outputs = [load(file_format, Path(path))(images)]
    categories: list[bytes] = []
    if file_format == "saved_model":
        ends = np.cumsum(lengths).tolist()
        encoded = [joined[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        more, categories = _classify_encoded(Path(path), encoded, others)
        outputs += more
    np.savez(output, probabilities=np.stack(outputs), categories=np.array([name.decode() for name in categories], str))


if __name__ == "__main__":
    sys.modules["convoy"] = None  # type: ignore[assignment]  # None makes `import convoy` fail
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    _main(*sys.argv[1:])
