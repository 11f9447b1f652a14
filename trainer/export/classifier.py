"""Classifies images with an exported model, for `convoy predict --export`.

classifier = open_export(Path("exported"), "onnx")
classifier.class_names
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from convoy.core.errors import DataError, UsageError, did_you_mean
from convoy.core.processes import usable_cores
from convoy.core.user_code import check_owner
from convoy.input_pipeline.reading.decode import Crop
from convoy.trainer.export.folder import file_digests, read_description
from convoy.trainer.export.loaders import FILES, Classify, load
from convoy.trainer.run.task import Decision
from convoy.trainer.run.temperature import softened

_BATCH_SIZE = 64


class ExportClassifier:
    """An exported model as a `convoy.trainer.evaluation.classifier.Classifier`.

    Attributes:
      class_names: class names, by label.
      decision: how probabilities become labels.
      crop: how to resize the images.
      step: step of the exported weights.
      models: 1.
      checkpoint: as `TrainedRun.checkpoint`.
      flip_tta: whether the run is evaluated with each image and its mirror image.
      file_format: the format, one of `loaders.FILES`.
    """

    def __init__(self, description: dict[str, Any], classify: Classify, file_format: str):
        """Takes the results of `read_description` and `load`, and the format."""
        self._classify = classify
        self.file_format = file_format
        self.class_names: list[str] = description["class_names"]
        self.decision = Decision(
            self.class_names, description.get("thresholds"), description.get("label_delimiter", "")
        )
        resize = description.get("resize", "squash")  # as in exports of older versions
        self.crop = Crop(description["image_size"], resize=resize)
        self.step: int = description["step"]
        self.models = 1
        self.checkpoint: str = description.get("checkpoint", "")
        self._temperature: float = description.get("temperature", 1.0)
        before_0_2 = description.get("mirrored_too", False)
        self.flip_tta: bool = description.get("flip_tta", before_0_2)

    def probabilities(
        self, image_of: Callable[[tf.Tensor], tf.Tensor], num_images: int, *, flip_tta: bool = False
    ) -> Iterator[np.ndarray]:
        """Implements `Classifier.probabilities`."""
        numbers = tf.data.Dataset.range(num_images)
        for images in numbers.map(image_of, num_parallel_calls=usable_cores()).batch(_BATCH_SIZE).prefetch(2):
            images = images.numpy()
            probabilities = self._classify(images)
            if flip_tta:
                probabilities = self._mean([probabilities, self._classify(images[:, :, ::-1])])
            yield from probabilities

    def _mean(self, batches: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the mean as a run computes it: before the temperature, which the file has applied."""
        if self._temperature == 1.0:
            return np.mean(batches, 0)
        soften = functools.partial(softened, multi_label=self.decision.multi_label)
        raw = np.mean([soften(batch, 1 / self._temperature) for batch in batches], 0)
        return soften(raw, self._temperature).astype(np.float32)


def open_export(folder: Path, file_format: str = "", *, trust_code: bool = False) -> ExportClassifier:
    """Opens an export in one of its formats.

    Args:
      folder: the `--output` of `convoy export`.
      file_format: one of `loaders.FILES`; empty for the first one that the export has.
      trust_code: whether a SavedModel, which can read and write files, may run although another user owns it.

    Raises:
      UsageError: the export does not have this format, its library is not installed, or it is not trusted.
      DataError: the folder is not an export, or a damaged one.
    """
    description = read_description(folder)
    try:
        formats = description["formats"]
        file_format = file_format or next(name for name in FILES if name in formats)
        if file_format not in formats:
            raise UsageError(
                f"--format={file_format}: not in {folder}{did_you_mean(file_format, formats)}. "
                f"Pass one of {', '.join(formats)}."
            )
        contents = formats[file_format]["contents"]
        path = folder / FILES[file_format]
        if file_format == "saved_model" and not trust_code:
            check_owner(path / "saved_model.pb", "predicting")
        if file_digests(path) != contents:
            raise DataError(f"{path}: modified since the export (SHA-256 differs). Export again.")
        return ExportClassifier(description, load(file_format, path), file_format)
    except FileNotFoundError:
        raise DataError(f"{folder / FILES[file_format]}: no such file. Export again.") from None
    except ImportError as error:
        raise UsageError(f"--format={file_format}: {error}. Run `pip install 'convoy-train[onnx]'`.") from None
    except (KeyError, TypeError, AttributeError, StopIteration) as error:
        raise DataError(f"{folder}/export.json: damaged ({error!r}). Export again.") from None
