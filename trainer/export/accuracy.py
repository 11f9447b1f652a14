"""Accuracy of an exported int8 file, compared with the same format in float32.

before, after = count_correct([load("onnx", float32), load("onnx", int8)], dataset.split("validation"), crop)
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from convoy.core.text import share
from convoy.input_pipeline.dataset.open import Dataset, Split
from convoy.input_pipeline.reading.decode import Crop
from convoy.input_pipeline.reading.reader import BatchSlice, Reader
from convoy.trainer.export.loaders import Classify

_SPLITS = ("validation", "train")  # in order of preference; never test, which would no longer be unseen
_BATCH_SIZE = 64
_ACCEPTED_POINTS = 1.0


@dataclass(frozen=True)
class Int8Accuracy:
    """How many images of a split an int8 file classifies correctly, and the same format in float32.

    Attributes:
      split: name of the split.
      images: number of its images.
      correct: correctly classified in int8.
      float32_correct: correctly classified in float32.
      float32_bytes: size of the file in float32.
      same_top1: number of images of the comparison with evaluation that have the same predicted class in both.
    """

    split: str
    images: int
    correct: int
    float32_correct: int
    float32_bytes: int
    same_top1: int

    @property
    def top1(self) -> float:
        """Top-1 accuracy in int8, in [0, 1]."""
        return self.correct / self.images

    @property
    def float32_top1(self) -> float:
        """Top-1 accuracy in float32, in [0, 1]."""
        return self.float32_correct / self.images

    def as_dict(self) -> dict[str, Any]:
        """Returns what export.json has of it."""
        return {
            "split": self.split,
            "images": self.images,
            "top1": self.top1,
            "float32_top1": self.float32_top1,
            "float32_bytes": self.float32_bytes,
            "same_top1_as_in_float32": self.same_top1,
        }

    def warning(self) -> str:
        """Returns a warning if int8 costs more than a point of top-1, otherwise an empty string."""
        lost = 100 * (self.float32_correct - self.correct) / self.images
        if lost <= _ACCEPTED_POINTS:
            return ""
        return (
            f"int8 loses {lost:.1f} points of top-1 on split {self.split!r} ({share(self.float32_top1)} to "
            f"{share(self.top1)}, {self.float32_correct - self.correct:,} of {self.images:,} images). Where that "
            "matters, export in float32."
        )


def split_to_measure(dataset: Dataset) -> Split:
    """Returns the validation split, or the training split without one. Raises a DataError if it cannot be used."""
    return dataset.split(next(name for name in _SPLITS if name in dataset.splits))


def count_correct(models: Sequence[Classify], split: Split, crop: Crop) -> list[int]:
    """Returns for each model how many images of a split have the highest probability at their label.

    Args:
      models: functions of `loaders.load`.
      split: the split, of which every image counts once.
      crop: how evaluation resizes images.

    Raises:
      DataError: a record cannot be used.
    """
    correct = np.zeros(len(models), np.int64)
    with contextlib.closing(Reader(split, crop)) as reader:
        try:
            for batch in reader.evaluation(BatchSlice(min(_BATCH_SIZE, split.num_images))):
                counts = batch["weight"].numpy() > 0
                images, labels = batch["image"].numpy()[counts], batch["label"].numpy()[counts]
                correct += [np.sum(classify(images).argmax(1) == labels) for classify in models]
        except tf.errors.OpError:
            if cause := reader.explain():
                raise cause from None
            raise
    return correct.tolist()
