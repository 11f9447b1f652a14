"""The part of the dataset report on images with any number of labels: how many they have, and which occur together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convoy.core.text import Bar, bars
from convoy.input_pipeline.dataset.label_sets import LabelSets
from convoy.input_pipeline.dataset.open import Split

_NUMBERS = 12  # rows of the table of numbers of labels; the last one has the rest
_PAIRS = 15
_MOST_CLASSES = 2000  # the table of pairs grows with their square


@dataclass(frozen=True)
class Pair:
    """Two classes: the number of images with both, and what share of the images with each that is."""

    first: str
    second: str
    images: int
    of_first: float
    of_second: float


@dataclass(frozen=True)
class Section:
    """Numbers of labels per image by split, and the most frequent pairs of classes in the first split."""

    numbers: Mapping[str, Sequence[Bar]]
    means: Mapping[str, float]
    split: str
    pairs: Sequence[Pair]


def section(splits: Mapping[str, Split], class_names: Sequence[str]) -> Section | None:
    """Returns the section of a multi-label dataset, the training split first; None for another dataset."""
    found = {name: split.label_sets for name, split in splits.items() if split.label_sets}
    if not found:
        return None
    first = next(iter(found))
    return Section(
        numbers={name: _numbers(labels.sizes) for name, labels in found.items()},
        means={name: float(labels.sizes.mean()) for name, labels in found.items()},
        split=first,
        pairs=_pairs(found[first], class_names) if len(class_names) <= _MOST_CLASSES else (),
    )


def _numbers(sizes: np.ndarray) -> list[Bar]:
    counts = np.bincount(np.minimum(sizes, _NUMBERS - 1)).tolist()
    names = [str(number) for number in range(len(counts))]
    if sizes.max(initial=0) >= _NUMBERS:
        names[-1] += " or more"
    return bars(names, counts)


def _pairs(labels: LabelSets, class_names: Sequence[str]) -> list[Pair]:
    classes = labels.num_classes
    together = np.zeros([classes, classes], np.int64)
    for image in np.flatnonzero(labels.sizes > 1).tolist():
        own = labels[image]
        together[own[:, np.newaxis], own] += 1
    together = np.triu(together, 1)
    counts = np.maximum(1, labels.counts())
    most = np.argsort(-together, axis=None, kind="stable")[:_PAIRS]
    return [
        Pair(class_names[a], class_names[b], number, number / counts[a], number / counts[b])
        for a, b in (divmod(int(place), classes) for place in most)
        if (number := int(together[a, b]))
    ]
