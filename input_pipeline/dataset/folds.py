"""Folds of a dataset for cross-validation, as views: nothing is copied.

    folds = make_folds(open_dataset("data"), 5)
    folds.without(2)          # a dataset: `validation` is fold 2, `train` the other labelled images
    folds.together()          # a dataset with a split of all labelled images, `OUT_OF_FOLD`, in the order of `folds.of`

The labelled images are those of the splits `train` and `validation`; other splits stay as they are. The images of each
class are put in the order of a hash of their files and cut into K equal parts, so that a fold depends neither on their
order nor on a seed, and added images move few others. Images with the same bytes stay together, and so do the groups of
a conversion with `--group_column` or `--group_similar`.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from convoy.core.errors import DataError
from convoy.core.text import counted
from convoy.input_pipeline.dataset.open import Dataset
from convoy.input_pipeline.dataset.units import facts, keys_and_groups, looks, units_of
from convoy.input_pipeline.dataset.views import View, make_view
from convoy.input_pipeline.images.perceptual import FLAT

LABELLED = ("train", "validation")
OUT_OF_FOLD = "out_of_fold"


class TooFewImagesError(DataError):
    """A fold would be empty."""


@dataclass(frozen=True)
class Folds:
    """The folds of a dataset.

    Attributes:
      dataset: the dataset.
      number: number of folds, K.
      of: [n] int64, the fold of each labelled image, from 1: those of `train`, then those of `validation`.
      groups: [n] integers, images with the same are in the same fold.
    """

    dataset: Dataset
    number: int
    of: np.ndarray
    groups: np.ndarray

    def check(self) -> None:
        """Raises a DataError if no class has enough images, or groups of them, for every fold."""
        labels = self._labels
        label_of_group, _ = np.unique(np.stack([labels.astype(np.int64), self.groups]), axis=1)
        most = int(np.bincount(label_of_group).max())
        if self.number > most:
            fix = f"Pass fewer folds, at most {most}." if most > 1 else "Train a single run, without --folds."
            raise DataError(
                f"--folds={self.number}: no class of {self.dataset.directory} has more than "
                f"{counted(most, 'labelled image')}, or groups of images that stay together, so each would be missing "
                f"from some fold. {fix}"
            )

    def without(self, fold: int) -> View:
        """Returns the dataset to train on without a fold, which is validated on."""
        in_fold = self.of == fold
        return self._view({"train": np.flatnonzero(~in_fold), "validation": np.flatnonzero(in_fold)}, fold)

    def together(self) -> View:
        """Returns the dataset with the split `OUT_OF_FOLD` of all labelled images."""
        return self._view({OUT_OF_FOLD: np.arange(len(self.of))})

    def images(self, fold: int) -> np.ndarray:
        """Returns the numbers of a fold's images among the labelled ones, ascending."""
        return np.flatnonzero(self.of == fold)

    def alike_across_folds(self) -> int:
        """Returns the number of images that look like an image of another fold."""
        hashes = facts(self.dataset, _labelled(self.dataset), "perceptual")
        if hashes is None:
            return 0
        shown = np.flatnonzero(hashes != FLAT)
        _, look = np.unique(looks(hashes)[shown], return_inverse=True)
        first, last = np.full(len(shown), self.number + 1), np.zeros(len(shown), np.int64)
        np.minimum.at(first, look, self.of[shown])
        np.maximum.at(last, look, self.of[shown])
        return int((first != last)[look].sum())

    def small_classes(self) -> list[str]:
        """Returns the classes that some fold has no image of, although there are images."""
        labels, names = self._labels, self.dataset.class_names
        pairs = np.unique(labels.astype(np.int64) * (self.number + 1) + self.of)
        folds_of_class = np.bincount(pairs // (self.number + 1), minlength=len(names))
        return [names[label] for label in np.flatnonzero((folds_of_class > 0) & (folds_of_class < self.number))]

    def _view(self, chosen: Mapping[str, np.ndarray], fold: int = 0) -> View:
        return make_view(self.dataset, _labelled(self.dataset), chosen, fold=fold, folds=self.number)

    @cached_property
    def _labels(self) -> np.ndarray:
        return np.concatenate([self.dataset.split(name).label for name in _labelled(self.dataset)])


def make_folds(dataset: Dataset, number: int) -> Folds:
    """Returns the folds of a dataset.

    Args:
      dataset: with a split `train`.
      number: number of folds, 2 or more.

    Raises:
      DataError: it has no split `train`, any number of labels per image, or too few images.
    """
    if dataset.multi_label:
        raise DataError(
            f"--folds={number}: {dataset.directory} has any number of labels per image, and cross-validation needs "
            "one. Train a single run, without --folds."
        )
    splits = _labelled(dataset)
    keys, groups = keys_and_groups(dataset, splits)
    labels = np.concatenate([dataset.split(name).label for name in splits])
    of = assign(keys, groups, labels, number, dataset.class_names)
    if empty := sorted({*range(1, number + 1)} - {*of.tolist()}):
        raise TooFewImagesError(
            f"--folds={number}: fold {empty[0]} would be empty, {dataset.directory} has "
            f"{counted(len(labels), 'labelled image')} in {counted(len(np.unique(labels)), 'class', 'classes')}. Pass "
            "fewer folds."
        )
    return Folds(dataset, number, of, groups)


def assign(
    keys: np.ndarray, groups: np.ndarray, labels: np.ndarray, number: int, class_names: Sequence[str]
) -> np.ndarray:
    """Returns the fold of each image, from 1, [n] int64.

    Args:
      keys: [n] unsigned integers: where an image comes in its class.
      groups: [n] integers: images with the same stay together, at the place and in the class of the one with the
        smallest key. Images with the same key have the same group.
      labels: [n] integers.
      number: number of folds.
      class_names: class names by label. A class begins at a fold that depends on its name, so that the folds of many
        small classes add up to the same size.
    """
    units = units_of(keys, groups, labels, len(class_names))
    totals = np.bincount(units.label, units.size, len(class_names)).astype(np.int64)
    middles = 2 * units.before + units.size  # in half images
    turns = np.array([zlib.crc32(name.encode()) for name in class_names])
    of_unit = (number * middles // (2 * totals[units.label]) + turns[units.label]) % number + 1
    return of_unit[units.of]


def _labelled(dataset: Dataset) -> list[str]:
    return [name for name in LABELLED if name == "train" or name in dataset.splits]
