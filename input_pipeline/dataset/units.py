"""What tells the images of a dataset apart, whatever their order, and which of them stay together.

    keys, groups = keys_and_groups(dataset, ("train", "validation"))
    units = units_of(keys, groups, labels, num_classes)
    units.of[i], units.before[units.of[i]]       # the unit of image i, and how many images of its class come before

Images with the same bytes stay together, and so do the groups of a conversion with `--group_column` or
`--group_similar`.
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from convoy.input_pipeline.dataset.image_facts import GROUP, read_images
from convoy.input_pipeline.dataset.open import Dataset, Split
from convoy.input_pipeline.dataset.source import SourceName
from convoy.input_pipeline.images.perceptual import FLAT, components, near_pairs


class Units(NamedTuple):
    """Images that stay together, by class, each class in the order of the keys.

    Attributes:
      of: [n] int64: the unit of each image.
      label: [units] integers: the class of each unit, that of its image with the smallest key.
      before: [units] int64: number of images in earlier units of the class.
      size: [units] int64: number of its images.
    """

    of: np.ndarray
    label: np.ndarray
    before: np.ndarray
    size: np.ndarray


def units_of(keys: np.ndarray, groups: np.ndarray, labels: np.ndarray, num_classes: int) -> Units:
    """Returns the units of images.

    Args:
      keys: [n] unsigned integers: where an image comes in its class.
      groups: [n] integers: images with the same stay together. Images with the same key have the same group.
      labels: [n] integers in [0, num_classes).
      num_classes: number of classes.
    """
    by_key = np.lexsort((labels, keys))
    _, first, unit_by_key = np.unique(groups[by_key], return_index=True, return_inverse=True)
    leader = by_key[first]
    order = np.lexsort((keys[leader], labels[leader]))
    sizes, classes = np.bincount(unit_by_key)[order], labels[leader][order]
    totals = np.bincount(classes, sizes, num_classes).astype(np.int64)
    before = np.cumsum(sizes) - sizes - (np.cumsum(totals) - totals)[classes]
    place, of = np.empty(len(order), np.int64), np.empty(len(keys), np.int64)
    place[order] = np.arange(len(order))
    of[by_key] = place[unit_by_key]
    return Units(of, classes, before, sizes)


def keys_and_groups(dataset: Dataset, splits: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns key and group of the images of splits, one split after another, each [n], as for `units_of`."""
    contents, columns = facts(dataset, splits, "content"), facts(dataset, splits, GROUP, or_zero=True)
    hashes = facts(dataset, splits, "perceptual") if _groups_alike(dataset) else None
    keys = contents
    if keys is None:
        keys = np.concatenate([_checksums(dataset.split(name)) for name in splits])
    return keys, _groups(keys, columns, hashes)


def _groups_alike(dataset: Dataset) -> bool:
    entries = dataset.manifest.get("splits", {}).values()
    return any("--group_similar" in entry.get("grouped", {}).get("by", "") for entry in entries)


def facts(dataset: Dataset, splits: Sequence[str], array: str, *, or_zero: bool = False) -> np.ndarray | None:
    """Returns an array of images-SPLIT.npz for all images of splits; None, or with zeros, if a split has none."""
    if isinstance(dataset.directory, SourceName) or not dataset.manifest:
        return None
    parts = []
    for name in splits:
        images, found = dataset.split(name).num_images, read_images(dataset.directory, name)
        part = found.get(array, np.zeros(images if or_zero else 0, np.uint64))
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
        links.append((np.flatnonzero(hashes != FLAT), looks(hashes)[hashes != FLAT]))
    # An image is linked to its bytes, its group and its look, as nodes that follow those of the images.
    first = np.concatenate([images for images, _ in links])
    second = [(1 + i) * number + np.unique(values, return_inverse=True)[1] for i, (_, values) in enumerate(links)]
    return components((1 + len(links)) * number, first, np.concatenate(second))[:number]


def looks(hashes: np.ndarray) -> np.ndarray:
    """Returns a number for each image, [n], the same for those that look alike, also by way of others."""
    distinct, which = np.unique(hashes, return_inverse=True)
    pairs = near_pairs(distinct)
    return components(len(distinct), pairs.first, pairs.second)[which]
