"""Folds of a dataset for cross-validation, as views: nothing is copied.

    folds = make_folds(open_dataset("data"), 5)
    folds.without(2)          # a dataset: `validation` is fold 2, `train` the other labelled images
    folds.together()          # a dataset with a split of all labelled images, `OUT_OF_FOLD`, in the order of `folds.of`

The labelled images are those of the splits `train` and `validation`; other splits stay as they are. The images of each
class are put in the order of a hash of their files and cut into K equal parts, so that a fold depends neither on their
order nor on a seed, and added images move few others. Images with the same bytes stay together, and so do the groups of
a conversion with `--group_column` or `--group_similar`.
"""

import hashlib
import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from convoy.core.errors import DataError
from convoy.core.text import counted
from convoy.input_pipeline.dataset.image_facts import GROUP, read_images
from convoy.input_pipeline.dataset.open import Dataset, Split
from convoy.input_pipeline.dataset.source import ChosenImages, OpenedSource, SourceName
from convoy.input_pipeline.images.perceptual import FLAT, components, near_pairs

LABELLED = ("train", "validation")
OUT_OF_FOLD = "out_of_fold"


class _TooFewImagesError(DataError):
    """A fold would be empty."""


@dataclass(frozen=True)
class View(Dataset):
    """A dataset with splits of its own.

    Attributes:
      whole: the dataset.
      chosen: the numbers of the labelled images in each of these splits, [n] int64.
      fold: number of the fold that is not trained on, from 1; 0 for all images together.
      folds: number of folds.
    """

    whole: Dataset | None = None
    chosen: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    fold: int = 0
    folds: int = 0

    def digest(self, split_name: str) -> str:
        """As `Dataset.digest`; that of a split of this view covers all labelled images, and which ones it has."""
        assert self.whole
        if split_name not in self.chosen:
            return self.whole.digest(split_name)
        content = hashlib.sha256(self.chosen[split_name].astype("<i8").tobytes())
        for name in _labelled(self.whole):
            content.update(self.whole.digest(name).encode())
        return content.hexdigest()


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
        labels = self._labelled.label
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
        hashes = _facts(self.dataset, "perceptual")
        if hashes is None:
            return 0
        shown = np.flatnonzero(hashes != FLAT)
        _, look = np.unique(_looks(hashes)[shown], return_inverse=True)
        first, last = np.full(len(shown), self.number + 1), np.zeros(len(shown), np.int64)
        np.minimum.at(first, look, self.of[shown])
        np.maximum.at(last, look, self.of[shown])
        return int((first != last)[look].sum())

    def small_classes(self) -> list[str]:
        """Returns the classes that some fold has no image of, although there are images."""
        labels, names = self._labelled.label, self.dataset.class_names
        pairs = np.unique(labels.astype(np.int64) * (self.number + 1) + self.of)
        folds_of_class = np.bincount(pairs // (self.number + 1), minlength=len(names))
        return [names[label] for label in np.flatnonzero((folds_of_class > 0) & (folds_of_class < self.number))]

    def _view(self, chosen: Mapping[str, np.ndarray], fold: int = 0) -> View:
        whole = self.dataset
        opened: dict[str, Any] = {name: split for name, split in whole._opened.items()}
        opened |= {name: _part(self._labelled, name, images) for name, images in chosen.items()}
        shared = {one.name: getattr(whole, one.name) for one in fields(Dataset)}
        shared |= {"splits": tuple(sorted(opened)), "_opened": opened}
        return View(**shared, whole=whole, chosen=chosen, fold=fold, folds=self.number)

    @cached_property
    def _labelled(self) -> Split:
        return _joined([self.dataset.split(name) for name in _labelled(self.dataset)])


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
    splits = [dataset.split(name) for name in _labelled(dataset)]
    labels = np.concatenate([split.label for split in splits])
    contents, columns = _facts(dataset, "content"), _facts(dataset, GROUP, or_zero=True)
    hashes = _facts(dataset, "perceptual") if _groups_alike(dataset) else None
    keys = contents if contents is not None else np.concatenate([_checksums(split) for split in splits])
    groups = _groups(keys, columns, hashes)
    of = assign(keys, groups, labels, number, dataset.class_names)
    if empty := sorted({*range(1, number + 1)} - {*of.tolist()}):
        raise _TooFewImagesError(
            f"--folds={number}: fold {empty[0]} would be empty, {dataset.directory} has "
            f"{counted(len(labels), 'labelled image')} in {counted(len(np.unique(labels)), 'class', 'classes')}. Pass "
            "fewer folds."
        )
    return Folds(dataset, number, of, groups)


def view_of(dataset: Dataset, description: Mapping[str, Any]) -> Dataset:
    """Returns a dataset as the run sees it whose dataset.json has this content; one that cannot be its own as it is."""
    fold, number = description.get("fold", 0), description.get("folds", 0)
    if not number or "train" not in dataset.splits:
        return dataset
    try:
        folds = make_folds(dataset, number)
    except _TooFewImagesError:
        return dataset
    return folds.without(fold) if fold else folds.together()


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
    by_key = np.lexsort((labels, keys))
    _, first, unit_by_key = np.unique(groups[by_key], return_index=True, return_inverse=True)
    leader = by_key[first]
    order = np.lexsort((keys[leader], labels[leader]))
    sizes, classes = np.bincount(unit_by_key)[order], labels[leader][order]
    totals = np.bincount(classes, sizes, len(class_names)).astype(np.int64)
    begins = np.cumsum(totals) - totals
    middles = 2 * (np.cumsum(sizes) - begins[classes]) - sizes  # in half images
    turns = np.array([zlib.crc32(name.encode()) for name in class_names])
    of_unit = np.empty(len(order), np.int64)
    of_unit[order] = (number * middles // (2 * totals[classes]) + turns[classes]) % number + 1
    of = np.empty(len(keys), np.int64)
    of[by_key] = of_unit[unit_by_key]
    return of


def _labelled(dataset: Dataset) -> list[str]:
    return [name for name in LABELLED if name == "train" or name in dataset.splits]


def _groups_alike(dataset: Dataset) -> bool:
    entries = dataset.manifest.get("splits", {}).values()
    return any("--group_similar" in entry.get("grouped", {}).get("by", "") for entry in entries)


def _facts(dataset: Dataset, array: str, *, or_zero: bool = False) -> np.ndarray | None:
    """Returns an array of images-SPLIT.npz for all labelled images; None, or with zeros, if a split has none."""
    if isinstance(dataset.directory, SourceName) or not dataset.manifest:
        return None
    parts = []
    for name in _labelled(dataset):
        images, facts = dataset.split(name).num_images, read_images(dataset.directory, name)
        part = facts.get(array, np.zeros(images if or_zero else 0, np.uint64))
        if len(part) != images:
            return None
        parts.append(part)
    return np.concatenate(parts)


def _checksums(split: Split) -> np.ndarray:
    """Returns what tells the images of a split apart without their files: [n] uint64."""
    if not split.source:
        return split.crc.astype(np.uint64)
    # A source has no checksums: by number.
    name = split.name.encode()
    numbers = (zlib.crc32(b"%d" % number, zlib.crc32(name)) for number in range(split.num_images))
    return np.fromiter(numbers, np.uint64, split.num_images)


def _groups(keys: np.ndarray, columns: np.ndarray | None, hashes: np.ndarray | None) -> np.ndarray:
    """Returns the number of each image's group, [n].

    Args:
      keys: [n] unsigned integers, the same for images with the same bytes.
      columns: [n] uint64, `GROUP`; None without.
      hashes: [n] uint64, perceptual, to group images that look alike; None not to.
    """
    number = len(keys)
    links = [(np.arange(number), keys)]
    if columns is not None:
        links.append((np.flatnonzero(columns), columns[columns != 0]))
    if hashes is not None:
        links.append((np.flatnonzero(hashes != FLAT), _looks(hashes)[hashes != FLAT]))
    # An image is linked to its bytes, its group and its look, as nodes that follow those of the images.
    first = np.concatenate([images for images, _ in links])
    second = [(1 + i) * number + np.unique(values, return_inverse=True)[1] for i, (_, values) in enumerate(links)]
    return components((1 + len(links)) * number, first, np.concatenate(second))[:number]


def _looks(hashes: np.ndarray) -> np.ndarray:
    """Returns a number for each image, [n], the same for those that look alike, also by way of others."""
    distinct, which = np.unique(hashes, return_inverse=True)
    pairs = near_pairs(distinct)
    return components(len(distinct), pairs.first, pairs.second)[which]


def _joined(splits: Sequence[Split]) -> Split:
    """Returns the images of several splits of a dataset, one after another."""
    first = splits[0]
    arrays: dict[str, Any] = {
        one.name: np.concatenate([getattr(split, one.name) for split in splits])
        for one in fields(Split)
        if isinstance(getattr(first, one.name), np.ndarray)
    }
    shards = np.cumsum([0, *(len(split.shard_paths) for split in splits[:-1])])
    arrays["shard"] = np.concatenate(
        [split.shard + before for split, before in zip(splits, shards, strict=True)]
    ).astype(first.shard.dtype)
    paths = tuple(path for split in splits for path in split.shard_paths)
    sources = [split.source for split in splits if split.source]
    return replace(first, shard_paths=paths, source=_source(sources, None, "labelled"), **arrays)


def _part(split: Split, name: str, images: np.ndarray) -> Split:
    """Returns some of the images of a split, which are in ascending order."""
    arrays = {
        one.name: value[images] for one in fields(Split) if isinstance(value := getattr(split, one.name), np.ndarray)
    }
    return replace(split, name=name, source=_source([split.source] if split.source else [], images, name), **arrays)


def _source(sources: Sequence[OpenedSource], images: np.ndarray | None, name: str) -> OpenedSource | None:
    if not sources:
        return None
    origin = sources[0].name.rpartition(" (")[0]
    return OpenedSource(f"{origin} ({name})", ChosenImages(sources, images), threading.Lock())
