"""The labels of a multi-label split: any number of labels per image, also none, one image after another in one array.

labels = LabelSets.of(arrays, num_classes=20)      # arrays of an index with `num_labels`
labels[3], labels.multi_hot(np.array([3, 7]))      # [2] int32, [2, 20] float32
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelSets:
    """The labels of each image of a split.

    Attributes:
      num_classes: number of classes.
      label: [labels] int32, those of one image after another, ascending within each.
      start: [num_images + 1] int64: image `i` has `label[start[i] : start[i + 1]]`.
    """

    num_classes: int
    label: np.ndarray
    start: np.ndarray

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], num_classes: int) -> "LabelSets":
        """Returns the labels in the arrays `label` and `num_labels` of an index."""
        return cls(num_classes, arrays["label"], starts(arrays["num_labels"]))

    def __len__(self) -> int:
        """The number of images."""
        return len(self.start) - 1

    def __getitem__(self, image: int) -> np.ndarray:
        """Returns the labels of an image, ascending."""
        return self.label[self.start[image] : self.start[image + 1]]

    @property
    def sizes(self) -> np.ndarray:
        """Number of labels of each image, [num_images] int64."""
        return np.diff(self.start)

    @property
    def image(self) -> np.ndarray:
        """Image of each entry of `label`, [labels] int64."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def counts(self) -> np.ndarray:
        """Returns the number of images with each label, [num_classes] int64."""
        return np.bincount(self.label, minlength=self.num_classes)

    def multi_hot(self, images: np.ndarray) -> np.ndarray:
        """Returns the labels of images, [n] integers, as [n, num_classes] float32: 1 for each label, else 0."""
        first, sizes = self.start[images], self.start[np.asarray(images) + 1] - self.start[images]
        rows = np.repeat(np.arange(len(first)), sizes)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        targets = np.zeros([len(first), self.num_classes], np.float32)
        targets[rows, self.label[np.repeat(first, sizes) + within]] = 1.0
        return targets

    def rarest(self) -> np.ndarray:
        """Returns the label of each image that the fewest images have, `num_classes` for none, [num_images] int32."""
        rank = np.empty(self.num_classes + 1, np.int64)  # 0 for the rarest label
        order = np.append(np.argsort(self.counts(), kind="stable"), self.num_classes)
        rank[order] = np.arange(self.num_classes + 1)
        rarest = np.full(len(self), self.num_classes, np.int64)
        np.minimum.at(rarest, self.image, rank[self.label])
        return order[rarest].astype(np.int32)


def starts(num_labels: np.ndarray) -> np.ndarray:
    """Returns the first entry of each image and the end of the last one, [n + 1] int64; `num_labels` is [n]."""
    return np.concatenate([[0], np.cumsum(num_labels, dtype=np.int64)])


def unused_delimiter(class_names: Sequence[str]) -> str:
    """Returns what can separate class names in a cell of a CSV."""
    return next((mark for mark in (" ", ";", "|", "/") if not any(mark in name for name in class_names)), "\t")
