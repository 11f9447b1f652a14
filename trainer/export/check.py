"""Verifies an exported file: loads it in a new process and compares its predictions with the run's evaluation.

samples = draw_samples(dataset, Crop(64))
reference = predict_samples(trained, samples)
largest_difference = compare("onnx", Path("model.onnx"), samples, reference, decision)
"""

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from convoy.core.errors import DataError
from convoy.core.processes import helper_starting
from convoy.core.text import counted
from convoy.input_pipeline.dataset.open import Dataset
from convoy.input_pipeline.reading.decode import Crop, parse_records, resize
from convoy.input_pipeline.reading.reader import Reader
from convoy.trainer.evaluation.classifier import RunClassifier
from convoy.trainer.export import loaders
from convoy.trainer.run.task import Decision
from convoy.trainer.session.restore import TrainedRun

NUM_SAMPLES = 64
TOLERANCE = 1e-4  # largest difference of a probability
_ORIENTATION_TAG = 0x0112  # EXIF
_TIE = 1e-6  # probabilities closer than this count as equal: about the rounding error of float32
_INT8_TIE = 1e-2  # the same for int8
_INT8_AGREEMENT = 0.5  # least share of images whose predicted class is that of evaluation
_SPLITS = ("validation", "test", "train")  # in order of preference
_TIMEOUT_SECONDS = 1200.0


@dataclass(frozen=True)
class Samples:
    """Images of a dataset.

    Attributes:
      split: split that they are from.
      images: pixels as evaluation sees them, [n, size, size, 3] uint8.
      encoded: n encoded images as stored in the dataset; PNG if it stores raw pixels.
      others: how many at the end are files that a viewer shows otherwise than stored, made from the first image.
    """

    split: str
    images: np.ndarray
    encoded: tuple[bytes, ...]
    others: int = 0


def draw_samples(dataset: Dataset, crop: Crop) -> Samples:
    """Returns up to `NUM_SAMPLES` evenly spaced images of the validation split, or of test or train without one.

    Args:
      dataset: the dataset.
      crop: how evaluation resizes images.

    Raises:
      DataError: the dataset has no split, or a record cannot be decoded.
    """
    split = dataset.split(next((name for name in _SPLITS if name in dataset.splits), dataset.splits[0]))
    numbers = np.unique(np.linspace(0, split.num_images - 1, NUM_SAMPLES).astype(np.int64))
    images, encoded = [], []
    others: list[tuple[bytes, np.ndarray]] = []
    with contextlib.closing(Reader(split, crop)) as reader:
        for number in numbers[:, np.newaxis]:
            (image,) = reader.images(number)
            record = {name: column[0].numpy() for name, column in parse_records(reader.read(number), split).items()}
            images.append(resize(tf.constant(image), crop).numpy())
            others = others or list(_other_kinds(image))
            # The exported model turns images, which an earlier reading did not.
            is_encoded = record["format"] != b"raw" and (split.as_viewed or dataset.manifest)
            encoded.append(record["encoded"] if is_encoded else tf.io.encode_png(image).numpy())
    images += [resize(tf.constant(pixels), crop).numpy() for _, pixels in others]
    encoded += [data for data, _ in others]
    return Samples(split.name, np.stack(images), tuple(encoded), len(others))


def _other_kinds(image: np.ndarray) -> Iterator[tuple[bytes, np.ndarray]]:
    """Yields files that a viewer shows otherwise than stored, with the pixels it shows, [height, width, 3] uint8.

    Data sets written by Convoy do not have them, but clients of the exported model do.
    """

    def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        return file.getvalue()

    drawn, exif = Image.fromarray(image), Image.Exif()
    exif[_ORIENTATION_TAG] = 6  # a quarter turn clockwise
    for kind in ("JPEG", "PNG"):
        turned = saved(drawn, kind, exif=exif)
        stored = tf.io.decode_image(turned, channels=3, expand_animations=False).numpy()
        yield turned, np.rot90(stored, -1)
    is_visible = np.tri(*image.shape[:2])[..., np.newaxis] > 0
    transparent = Image.fromarray(np.dstack([image, 255 * is_visible.astype(np.uint8)]))
    yield saved(transparent, "PNG"), np.where(is_visible, image, np.uint8(255))
    for kind, colors in (("PNG", 16), ("BMP", 256)):
        with_palette = drawn.quantize(colors)
        yield saved(with_palette, kind), np.asarray(with_palette.convert("RGB"))


def predict_samples(trained: TrainedRun, samples: Samples) -> np.ndarray:
    """Returns the probabilities that evaluation computes for the samples, [n, num_classes] float32."""
    images = tf.constant(samples.images)
    return np.stack([*RunClassifier(trained).probabilities(lambda number: images[number], len(samples.images))])


def compare(file_format: str, path: Path, samples: Samples, reference: np.ndarray, decision: Decision) -> float:
    """Returns the largest difference of a probability. For a SavedModel, all its signatures are compared.

    Args:
      file_format: one of `loaders.FILES`.
      path: the exported file or folder.
      samples: the images to classify.
      reference: probabilities computed by evaluation, [n, num_classes] float32.
      decision: how probabilities become labels.

    Raises:
      DataError: the file cannot be loaded, predicts another class, or a probability differs by more than `TOLERANCE`.
    """
    outputs, categories = _predict_in_new_process(file_format, path, samples)
    for probabilities in outputs:
        difference = float(np.max(np.abs(probabilities - reference)))
        if not difference <= TOLERANCE:
            raise DataError(
                f"--format={file_format}: not exported. Probabilities of the reloaded file differ from evaluation by "
                f"{difference:.2g}; the limit is {TOLERANCE:g}."
            )
        if _predicts_others(probabilities, reference, decision):
            raise DataError(f"--format={file_format}: not exported. The reloaded file predicts other classes.")
    if categories and categories != list(map(decision.text, outputs[1])):
        raise DataError(f"--format={file_format}: not exported. The reloaded file returns other class names.")
    return float(np.max(np.abs(outputs - reference)))


def compare_int8(file_format: str, path: Path, samples: Samples, reference: np.ndarray) -> tuple[float, int]:
    """Returns the largest difference of a probability, and how many images of the split have the same top class.

    Args:
      file_format: one of `request.QUANTIZABLE`.
      path: the exported file, in int8.
      samples: the images to classify.
      reference: probabilities computed by evaluation in float32, [n, num_classes].

    Raises:
      DataError: the file cannot be loaded, or predicts another class for most images.
    """
    ((probabilities,), _) = _predict_in_new_process(file_format, path, samples)
    of_split = slice(len(samples.images) - samples.others)
    same = _same_class(probabilities[of_split], reference[of_split], _INT8_TIE)
    if not same.mean() >= _INT8_AGREEMENT:
        raise DataError(
            f"--format={file_format}: not exported. In int8 the model predicts another class than in float32 for "
            f"{len(same) - same.sum()} of {counted(len(same), 'image')}. Export it without --quantize."
        )
    return float(np.max(np.abs(probabilities - reference))), int(same.sum())


def _same_class(probabilities: np.ndarray, reference: np.ndarray, tie: float) -> np.ndarray:
    """Returns per image whether the predicted class is that of `reference`, or as probable there up to `tie`."""
    of_predicted = np.take_along_axis(reference, probabilities.argmax(1)[:, np.newaxis], 1)[:, 0]
    return np.isfinite(probabilities).all(1) & (reference.max(1) - of_predicted <= tie)


def _predicts_others(probabilities: np.ndarray, reference: np.ndarray, decision: Decision) -> bool:
    """Returns whether any image gets another class, other than by a tie or rounding at a threshold."""
    if decision.thresholds is None:
        return not _same_class(probabilities, reference, _TIE).all()
    thresholds = np.asarray(decision.thresholds)
    differs = (probabilities >= thresholds) != (reference >= thresholds)
    return bool(np.any(differs & (np.abs(reference - thresholds) > TOLERANCE)))


def _predict_in_new_process(file_format: str, path: Path, samples: Samples) -> tuple[np.ndarray, list[str]]:
    with tempfile.TemporaryDirectory(prefix="convoy-") as folder:
        samples_file, output = Path(folder) / "samples.npz", Path(folder) / "output.npz"
        joined = np.frombuffer(b"".join(samples.encoded), np.uint8)
        np.savez(
            samples_file,
            images=samples.images,
            encoded=joined,
            lengths=[*map(len, samples.encoded)],
            others=samples.others,
        )
        program = Path(loaders.__file__).read_text(encoding="utf-8")
        try:
            with helper_starting():
                finished = subprocess.run(
                    [sys.executable, "-c", program, file_format, str(path.absolute()), str(samples_file), str(output)],
                    cwd=folder,
                    env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=_TIMEOUT_SECONDS,
                )
        except subprocess.TimeoutExpired:
            raise DataError(
                f"--format={file_format}: no predictions from the reloaded file after {_TIMEOUT_SECONDS:.0f} s."
            ) from None
        if finished.returncode:
            lines = finished.stderr.strip().splitlines() or [f"exit code {finished.returncode}"]
            # The text of an error may have many lines, the first of which says what is wrong.
            reason = next((line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception)\b", line)), lines[-1])
            raise DataError(
                f"--format={file_format}: a new process cannot load and run the exported file: "
                f"{textwrap.shorten(reason, 300)}"
            )
        with np.load(output) as arrays:
            return arrays["probabilities"], arrays["categories"].tolist()
