"""Subsets of the training images of a dataset, as views: a half, a quarter.

    half = training_subset(open_dataset("data"), 0.5)      # a dataset whose `train` has every second image

A subset has the same share of each class, at least one image, and a smaller one is a part of every larger one. Which
images it has depends on their files alone, as in `folds`: neither on their order nor on a seed.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from convoy.input_pipeline.dataset.open import Dataset
from convoy.input_pipeline.dataset.units import keys_and_groups, units_of
from convoy.input_pipeline.dataset.views import View, make_view


def training_subset(dataset: Dataset, fraction: float) -> View:
    """Returns a dataset with some of the training images.

    Args:
      dataset: with a split `train`, and one label per image.
      fraction: share of the training images, in (0, 1).
    """
    splits = ("train",)
    keys, groups = keys_and_groups(dataset, splits)
    kept = in_subset(keys, groups, dataset.split("train").label, fraction, dataset.class_names)
    return make_view(dataset, splits, {"train": np.flatnonzero(kept)}, fraction=fraction)


def in_subset(
    keys: np.ndarray, groups: np.ndarray, labels: np.ndarray, fraction: float, class_names: Sequence[str]
) -> np.ndarray:
    """Returns which images are in a subset, [n] bool.

    Args:
      keys: [n] unsigned integers: where an image comes in its class.
      groups: [n] integers, as in `units_of`: images with the same are in it together.
      labels: [n] integers.
      fraction: share of the images, in (0, 1).
      class_names: class names by label. Whether the number of images of a class is rounded up or down depends on its
        name, so that those of many small classes add up to the share.
    """
    units = units_of(keys, groups, labels, len(class_names))
    totals = np.bincount(units.label, units.size, len(class_names))
    rounding = np.array([zlib.crc32(name.encode()) / 2**32 for name in class_names])
    kept = units.before + rounding[units.label] * units.size < fraction * totals[units.label]
    by_key = np.lexsort((labels, keys))
    _, first = np.unique(labels[by_key], return_index=True)
    kept[units.of[by_key[first]]] = True  # an image of each class, the same in every subset
    return kept[units.of]
