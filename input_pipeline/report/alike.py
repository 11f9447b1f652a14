"""Duplicates and near duplicates in a dataset, within and across classes and splits.

    images = gather(splits, sidecars)
    alike = find_alike(images)
    alike.leaks[0].exact, alike.across_classes[0].members

Images are numbered across all splits: image i is entry i of the arrays of `Images`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convoy.input_pipeline.dataset.image_facts import IMAGE_TYPES
from convoy.input_pipeline.dataset.open import Split
from convoy.input_pipeline.images.perceptual import FLAT, NearPairs, components, near_pairs


@dataclass(frozen=True)
class Images:
    """The images of all splits that have an images-SPLIT.npz, one split after another.

    Attributes:
      splits: names of the splits, the training split first.
      split: [n] int64, index into `splits`.
      position: [n] int64, number of the record in its split.
      label: [n] int32, from 0; with any number of labels per image, a number for each set of labels.
      width: [n] uint32, pixels, as in the record.
      height: [n] uint32, pixels, as in the record.
      source_bytes: [n] int64, size of the source file.
      content: [n] uint64, hash of the source file's bytes.
      perceptual: [n] uint64, `perceptual_hash`.
      changed: [n] bool, whether the image was re-encoded.
    """

    splits: tuple[str, ...]
    split: np.ndarray
    position: np.ndarray
    label: np.ndarray
    width: np.ndarray
    height: np.ndarray
    source_bytes: np.ndarray
    content: np.ndarray
    perceptual: np.ndarray
    changed: np.ndarray


@dataclass(frozen=True)
class Group:
    """Duplicates and near duplicates of each other.

    Attributes:
      members: two or more images, ascending.
      exact: whether two of them have the same bytes, and different labels if the group has several labels.
    """

    members: tuple[int, ...]
    exact: bool


@dataclass(frozen=True)
class Leak:
    """Images of the split `later` that are also in the split `earlier`.

    Attributes:
      earlier: name of the split that comes first, usually the training split.
      later: name of the other split.
      images: number of images of `later`.
      exact: number of them with the same bytes as an image of `earlier`.
      near: number of them that are only near duplicates.
      pairs: the first few as (image of `later`, image of `earlier`), exact ones first, then by distance.
    """

    earlier: str
    later: str
    images: int
    exact: int
    near: int
    pairs: tuple[tuple[int, int], ...]

    @property
    def number(self) -> int:
        """Number of images of `later` that are also in `earlier`."""
        return self.exact + self.near

    @property
    def summary(self) -> str:
        """Both numbers as text: `3 with the same bytes, 4 that look alike`."""
        exact = f"{self.exact:,} with the same bytes" if self.exact else ""
        near = f"{self.near:,} that look{'s' * (self.near == 1)} alike" if self.near else ""
        return ", ".join(filter(None, (exact, near)))


@dataclass(frozen=True)
class Alike:
    """Duplicates and near duplicates of a dataset.

    Attributes:
      leaks: one for each pair of splits that share images.
      across_classes: groups with more than one label; exact ones first, then the largest first.
      within_classes: groups with one label and two or more images in one split; the largest first.
      flat: [flat images] int64, images of a single color. All of them look alike, so they are grouped by bytes only.
      complete: False if there were too many near duplicates to compare all pairs.
    """

    leaks: tuple[Leak, ...]
    across_classes: tuple[Group, ...]
    within_classes: tuple[Group, ...]
    flat: np.ndarray
    complete: bool

    @property
    def surplus(self) -> int:
        """Number of images that could be removed so that each group of `within_classes` keeps one."""
        return sum(len(group.members) - 1 for group in self.within_classes)


def gather(splits: Mapping[str, Split], sidecars: Mapping[str, Mapping[str, np.ndarray]]) -> Images:
    """Concatenates the splits that have an images-SPLIT.npz.

    Args:
      splits: splits by name, in order.
      sidecars: the arrays of `IMAGE_TYPES` by split, each as long as its split.
    """
    names = tuple(name for name in splits if name in sidecars)

    def joined(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype), *arrays]).astype(dtype, copy=False)

    sizes = [splits[name].num_images for name in names]
    return Images(
        splits=names,
        split=np.repeat(np.arange(len(names)), sizes),
        position=joined([np.arange(size) for size in sizes], np.int64),
        label=joined(_labels([splits[name] for name in names]), np.int32),
        **{array: joined([sidecars[name][array] for name in names], dtype) for array, dtype in IMAGE_TYPES.items()},
    )


def _labels(splits: Sequence[Split]) -> list[np.ndarray]:
    """Returns the label of each image, or a number for its set of labels, by split."""
    numbers: dict[tuple[int, ...], int] = {}
    return [
        split.label
        if split.label_sets is None
        else np.array([numbers.setdefault(tuple(split.labels_of(i)), len(numbers)) for i in range(split.num_images)])
        for split in splits
    ]


def find_alike(images: Images, *, leaks_shown: int) -> Alike:
    """Finds duplicates and near duplicates.

    Args:
      images: images of all splits.
      leaks_shown: maximum number of pairs of a `Leak`.
    """
    content = np.unique(images.content, return_inverse=True)[1]
    hashes, hash_ids = np.unique(images.perceptual, return_inverse=True)
    pairs = near_pairs(hashes)
    is_flat = images.perceptual == FLAT
    group = components(len(hashes), pairs.first, pairs.second)[hash_ids]
    group[is_flat] = len(hashes) + content[is_flat]
    across, within = _groups(images, group, content)
    leaks = [
        _leak(images, earlier, later, hash_ids, pairs, leaks_shown)
        for later in range(len(images.splits))
        for earlier in range(later)
    ]
    return Alike(
        leaks=tuple(leak for leak in leaks if leak.exact or leak.near),
        across_classes=across,
        within_classes=within,
        flat=np.flatnonzero(is_flat),
        complete=pairs.complete,
    )


def _groups(images: Images, group: np.ndarray, content: np.ndarray) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    order = np.argsort(group, kind="stable")
    order = order[np.bincount(group)[group[order]] > 1]
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    across, within = [], []
    for members in np.split(order, starts[1:]) if len(order) else ():
        label, contents, places = images.label[members], set(content[members].tolist()), tuple(members.tolist())
        if (label != label[0]).any():
            labeled = set(zip(content[members].tolist(), label.tolist(), strict=True))
            across.append(Group(places, exact=len(contents) < len(labeled)))
        elif np.bincount(images.split[members]).max() > 1:
            within.append(Group(places, exact=len(contents) < len(places)))

    def worst_first(group: Group) -> tuple[bool, int, tuple[int, ...]]:
        return not group.exact, -len(group.members), group.members

    return tuple(sorted(across, key=worst_first)), tuple(sorted(within, key=lambda group: worst_first(group)[1:]))


def _leak(images: Images, earlier: int, later: int, hash_ids: np.ndarray, pairs: NearPairs, shown: int) -> Leak:
    """Finds the images of split `later` that are also in `earlier`.

    Args:
      images: images of all splits.
      earlier: index of a split.
      later: index of a later split.
      hash_ids: [n] index of each image's hash among those of `pairs`.
      pairs: similar hashes.
      shown: maximum number of pairs.
    """
    content, old, new = images.content, np.flatnonzero(images.split == earlier), np.flatnonzero(images.split == later)
    exact = np.isin(content[new], content[old])
    there = np.zeros(hash_ids.max() + 1, bool)  # which hashes `earlier` has
    there[hash_ids[old]] = True
    reached = there.copy()
    reached[pairs.first[there[pairs.second]]] = True
    reached[pairs.second[there[pairs.first]]] = True
    near = reached[hash_ids[new]] & ~exact & (images.perceptual[new] != FLAT)
    partners = [(i, old[np.argmax(content[old] == content[i])]) for i in new[exact][:shown]]
    likes = []
    for i in new[near][: shown - len(partners)]:
        distance = np.bitwise_count(images.perceptual[old] ^ images.perceptual[i])
        likes.append((int(distance.min()), int(i), int(old[np.argmin(distance)])))
    partners += [(i, like) for _, i, like in sorted(likes)]
    return Leak(
        earlier=images.splits[earlier],
        later=images.splits[later],
        images=len(new),
        exact=int(exact.sum()),
        near=int(near.sum()),
        pairs=tuple((int(i), int(like)) for i, like in partners),
    )
