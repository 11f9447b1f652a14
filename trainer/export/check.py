"""Compares an exported file, loaded in a new process, with the run's own evaluation, on images of its dataset.

samples = draw_samples(dataset, image_size=64)
reference = evaluated(trained, samples)
largest_difference = compare("onnx", Path("model.onnx"), samples, reference, class_names)
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from convoy.core.errors import DataError
from convoy.input_pipeline.dataset.examples import from_bytes, read_features
from convoy.input_pipeline.dataset.open import Dataset
from convoy.input_pipeline.reading.decode import Crop, decode, resize
from convoy.input_pipeline.reading.reader import Reader
from convoy.trainer.evaluation.classifier import RunClassifier
from convoy.trainer.export import loaders
from convoy.trainer.session.restore import TrainedRun

NUM_SAMPLES = 64
TOLERANCE = 1e-4  # of a probability
_TIE = 1e-6  # probabilities closer than this are in no order: float32 rounds by about as much
_SPLITS = ("validation", "test", "train")
_SECONDS = 1200.0  # for a new process to load and apply an export


@dataclass(frozen=True)
class Samples:
    """Images of a dataset.

    Attributes:
      split: where they are from.
      images: as evaluation sees them, [n, size, size, 3] uint8.
      encoded: as they are stored, or as PNG where the dataset stores pixels, [n].
    """

    split: str
    images: np.ndarray
    encoded: tuple[bytes, ...]


def draw_samples(dataset: Dataset, image_size: int) -> Samples:
    """Returns at most `NUM_SAMPLES` images from all over the validation split; of test or train where there is none.

    Raises:
      DataError: the dataset has no such split, or a record cannot be used.
    """
    split = dataset.split(next((name for name in _SPLITS if name in dataset.splits), dataset.splits[0]))
    reader = Reader(split, Crop(image_size))
    numbers = np.unique(np.linspace(0, split.num_images - 1, NUM_SAMPLES).astype(np.int64))
    images, encoded = [], []
    for number, payload in zip(numbers.tolist(), reader.read(numbers), strict=True):
        try:
            features = read_features(from_bytes(payload), len(payload))
            is_raw = features.get("image/format") == [b"raw"]
            height, width = (features.get(f"image/{side}", [0])[0] for side in ("height", "width"))
            (stored,) = features[split.keys.image]
            pixels = decode({"encoded": stored, "format": "raw" if is_raw else "", "height": height, "width": width})
        except (ValueError, KeyError, tf.errors.OpError):
            raise DataError(
                f"image {number} of split {split.name!r} in {dataset.directory} cannot be decoded. "
                f"`convoy verify --data={dataset.directory}` says more."
            ) from None
        images.append(resize(pixels, image_size).numpy())
        encoded.append(tf.io.encode_png(pixels).numpy() if is_raw else stored)
    reader.close()
    return Samples(split.name, np.stack(images), tuple(encoded))


def evaluated(trained: TrainedRun, samples: Samples) -> np.ndarray:
    """Returns what evaluation computes for the samples, [n, num_classes] float32."""
    images = tf.constant(samples.images)
    return np.stack([*RunClassifier(trained).probabilities(lambda number: images[number], len(samples.images))])


def compare(file_format: str, path: Path, samples: Samples, reference: np.ndarray, class_names: Sequence[str]) -> float:
    """Returns by how much a probability differs at most. A SavedModel is asked in all the ways that it can be.

    Args:
      file_format: of `loaders.FILES`.
      path: the exported file or folder.
      samples: what to classify.
      reference: what evaluation gives, [n, num_classes].
      class_names: the categories, by label.

    Raises:
      DataError: it cannot be loaded, another category comes first, or a probability differs by more than `TOLERANCE`.
    """
    ways, categories = _in_a_new_process(file_format, path, samples)
    for probabilities in ways:
        difference = float(np.max(np.abs(probabilities - reference)))
        if not difference <= TOLERANCE:
            raise DataError(
                f"--format={file_format}: reloaded, it gives probabilities that differ by {difference:.2g} from "
                f"evaluation's, more than {TOLERANCE:g}: not exported."
            )
        of_first = np.take_along_axis(reference, probabilities.argmax(1)[:, np.newaxis], 1)[:, 0]
        if np.any(reference.max(1) - of_first > _TIE):
            raise DataError(f"--format={file_format}: reloaded, it puts other categories first: not exported.")
    if len(categories) and categories != [class_names[label] for label in ways[1].argmax(1)]:
        raise DataError(f"--format={file_format}: reloaded, it gives other names to the categories: not exported.")
    return float(np.max(np.abs(ways - reference)))


def _in_a_new_process(file_format: str, path: Path, samples: Samples) -> tuple[np.ndarray, list[str]]:
    with tempfile.TemporaryDirectory(prefix="convoy-") as folder:
        given, output = Path(folder) / "given.npz", Path(folder) / "output.npz"
        joined = np.frombuffer(b"".join(samples.encoded), np.uint8)
        np.savez(given, images=samples.images, encoded=joined, lengths=[*map(len, samples.encoded)])
        program = Path(loaders.__file__).read_text(encoding="utf-8")
        try:
            finished = subprocess.run(
                [sys.executable, "-c", program, file_format, str(path.absolute()), str(given), str(output)],
                cwd=folder,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise DataError(f"--format={file_format}: it was not loaded and applied in {_SECONDS:.0f} s.") from None
        if finished.returncode:
            told = finished.stderr.strip().splitlines() or [f"exit code {finished.returncode}"]
            raise DataError(f"--format={file_format}: a new process cannot load and apply it: {told[-1]}")
        with np.load(output) as arrays:
            return arrays["probabilities"], arrays["categories"].tolist()
