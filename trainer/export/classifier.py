"""An export as a classifier: what `convoy predict --export` asks.

classifier = open_export(Path("exported"), "onnx")
classifier.class_names
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from convoy.core.errors import DataError, UsageError, did_you_mean
from convoy.core.processes import usable_cores
from convoy.trainer.export.folder import contents_of, read_description
from convoy.trainer.export.loaders import FILES, Classify, load

_BATCH_SIZE = 64


class ExportClassifier:
    """An exported model; a `convoy.trainer.evaluation.classifier.Classifier`."""

    def __init__(self, description: dict[str, Any], classify: Classify):
        """Takes what `read_description` and `load` return."""
        self._classify = classify
        self.class_names = description["class_names"]
        self.image_size = description["image_size"]
        self.step = description["step"]
        self.flip_tta = description.get(
            "flip_tta", description.get("mirrored_too", False)
        )  # its name before version 0.2

    def probabilities(
        self, image_of: Callable[[tf.Tensor], tf.Tensor], num_images: int, *, flip_tta: bool = False
    ) -> Iterator[np.ndarray]:
        """As `Classifier` says."""
        numbers = tf.data.Dataset.range(num_images)
        for images in numbers.map(image_of, num_parallel_calls=usable_cores()).batch(_BATCH_SIZE).prefetch(2):
            images = images.numpy()
            probabilities = self._classify(images)
            if flip_tta:
                probabilities = (probabilities + self._classify(images[:, :, ::-1])) / 2
            yield from probabilities


def open_export(folder: Path, file_format: str = "") -> ExportClassifier:
    """Opens an export, in one of its formats; in the first of `loaders.FILES` that it has where none is named.

    Raises:
      UsageError: no such format, or its library is not installed.
      DataError: no export, or a damaged one.
    """
    description = read_description(folder)
    try:
        formats = description["formats"]
        file_format = file_format or next(name for name in FILES if name in formats)
        if file_format not in formats:
            raise UsageError(
                f"--format={file_format}: {folder} has no such format{did_you_mean(file_format, formats)}. "
                f"It has {', '.join(formats)}."
            )
        contents = formats[file_format]["contents"]
        path = folder / FILES[file_format]
        if contents_of(path) != contents:
            raise DataError(f"{path} is not as it was exported (SHA-256 differs). Export again.")
        return ExportClassifier(description, load(file_format, path))
    except FileNotFoundError:
        raise DataError(f"{folder / FILES[file_format]} is missing. Export again.") from None
    except ImportError as error:
        raise UsageError(f"--format={file_format}: {error}. `pip install 'convoy-train[onnx]'` brings it.") from None
    except (KeyError, TypeError, AttributeError, StopIteration) as error:
        raise DataError(f"{folder}/export.json is damaged ({error!r}). Export again.") from None
