"""Plan of a conversion, made before any image is decoded: duplicates, splits, shuffling, shards.

The plan is a pure function of the sources, their bytes and the seed, so that the files do not depend on the number of
processes.
"""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convoy.input_pipeline.convert import stratify
from convoy.input_pipeline.convert.sources import Source

_SHARD_BYTES = 128 * 2**20
_MIN_SHARDS = 8  # so that several readers can share the work, if there are enough images
_MIN_IMAGES_PER_SHARD = 64
_SAMPLE_BYTES = 64


@dataclass(frozen=True)
class Duplicates:
    """Images with the same bytes.

    Attributes:
      kept: images without the duplicates, in order.
      dropped: pairs of (image left out, image kept instead).
      conflicting: names of kept images for which a kept image of another category has the same bytes.
      conflicts: pairs of images of two categories with the same bytes, kept or not.
    """

    kept: tuple[Source, ...]
    dropped: tuple[tuple[Source, Source], ...]
    conflicting: frozenset[str]
    conflicts: tuple[tuple[Source, Source], ...]


def find_duplicates(images: Sequence[Source]) -> Duplicates:
    """Drops an image if an earlier one of the same category or of another split has the same bytes.

    Images with the same bytes and different categories in one split are all kept: the right category is unknown, and
    dropping one would hide the conflict from the user.

    Only files of equal size are compared, first by a few bytes in the middle, so that few are read in full. Empty and
    unreadable files count as different; decoding reports them.
    """
    by_size: dict[int, list[int]] = {}
    for i, image in enumerate(images):
        by_size.setdefault(image.size, []).append(i)
    groups: dict[tuple[int, bytes], list[int]] = {}
    for size, same_size in by_size.items():
        if size and len(same_size) > 1:
            for i in same_size:
                groups.setdefault((size, _sample(images[i])), []).append(i)
    by_content: dict[bytes, list[int]] = {}
    for (_, sample), alike in groups.items():
        if sample and len(alike) > 1:
            for i in alike:
                content = _digest(images[i])
                if content:
                    by_content.setdefault(content, []).append(i)
    dropped: dict[int, int] = {}
    conflicting: set[str] = set()
    conflicts: list[tuple[int, int]] = []
    for equal in by_content.values():
        first: dict[str, int] = {}
        earliest = min(equal)
        for i in sorted(equal):
            if images[i].category != images[earliest].category:
                conflicts.append((i, earliest))
            if images[i].split != images[earliest].split:  # a leak between splits, whatever its category
                dropped[i] = earliest
            elif first.setdefault(images[i].category, i) != i:
                dropped[i] = first[images[i].category]
        if len(first) > 1:
            conflicting.update(images[i].name for i in first.values())
    return Duplicates(
        kept=tuple(image for i, image in enumerate(images) if i not in dropped),
        dropped=tuple((images[i], images[dropped[i]]) for i in sorted(dropped)),
        conflicting=frozenset(conflicting),
        conflicts=tuple((images[i], images[earliest]) for i, earliest in sorted(conflicts)),
    )


def find_known(
    images: Sequence[Source], known: Mapping[tuple[int, int], tuple[str, int]]
) -> dict[str, tuple[str, int]]:
    """Returns the images whose bytes another split has, as (split, number of the image there) by image name.

    Args:
      images: images to look up.
      known: (split, number of the image) by (size in bytes, `content_hash`) of the other splits.
    """
    sizes = {size for size, _ in known}
    found = {}
    for image in images:
        if image.size in sizes:
            try:
                content = content_hash(image.read())
            except OSError:  # decoding reports it
                continue
            if (image.size, content) in known:
                found[image.name] = known[image.size, content]
    return found


def content_hash(data: bytes) -> int:
    """Returns a 64-bit hash of a file's bytes."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def divide(
    images: Sequence[Source],
    shares: Mapping[str, float],
    seed: int,
    together: frozenset[str] = frozenset(),
    groups: Sequence[Sequence[Source]] = (),
) -> dict[str, tuple[Source, ...]]:
    """Divides images among splits, stratified by class.

    Args:
      images: all images.
      shares: share of each split, in (0, 1]. The first split gets the remainder. Each other split gets its share of
        every class to within one image, and of the total as exactly as that allows. A class keeps at least one image
        in the first split.
      seed: seed of the draw. An image's rank in the draw depends on its name only, so that adding images to a class
        moves few of the others.
      together: names of images that must stay in the first split, because another image there has the same bytes.
      groups: disjoint groups of images that must stay in one split. The shares are then kept as well as they allow.

    Returns:
      The images of each split, in the order of `images`; a split may be empty if there are few images or groups.
      Images with any number of labels are divided as in `stratify`.
    """
    if any(image.labels is not None for image in images):
        return stratify.divide(images, shares, lambda image: _rank(image, _key(f"validation {seed}")), together, groups)
    first, *others = shares
    if not others:
        return {first: tuple(images)}
    by_class: dict[str, list[Source]] = {}
    for image in images:
        by_class.setdefault(image.category, []).append(image)
    sizes = {category: len(members) for category, members in by_class.items()}
    key = _key(f"validation {seed}")
    split_of = _place_groups(groups, sizes, shares, key, together)
    stays = together | split_of.keys()
    drawn = {
        category: _shuffled([image for image in members if image.name not in stays], key)
        for category, members in by_class.items()
    }
    given: dict[str, Counter[str]] = {split: Counter() for split in shares}  # images of groups
    for image in (image for group in groups for image in group):
        given[split_of[image.name]][image.category] += 1
    left = {  # to give away
        category: size - 1 - sum(given[split][category] for split in others) for category, size in sizes.items()
    }

    def take(category: str, number: int, split: str) -> None:
        split_of.update((image.name, split) for image in drawn[category][:number])
        del drawn[category][:number]
        left[category] -= number

    for split in others:
        seen = taken = 0
        for category in sorted(by_class):
            seen += len(by_class[category])
            most = math.ceil(shares[split] * sizes[category])
            of_groups = min(given[split][category], most)  # one class does not make up for the groups of another
            # The share of all classes so far minus what they gave, so that rounding errors cancel.
            wanted = math.floor(shares[split] * seen + 0.5) - taken - of_groups
            quota = max(0, min(wanted, most - of_groups, left[category], len(drawn[category])))
            take(category, quota, split)
            taken += quota + of_groups
        if by_class and not taken:
            largest = max(sorted(by_class), key=lambda category: len(by_class[category]))
            take(largest, min(1, left[largest], len(drawn[largest])), split)
    return {split: tuple(image for image in images if split_of.get(image.name, first) == split) for split in shares}


def _place_groups(
    groups: Sequence[Sequence[Source]],
    sizes: Mapping[str, int],
    shares: Mapping[str, float],
    key: bytes,
    together: frozenset[str],
) -> dict[str, str]:
    """Returns the split of each image of the groups, given the sizes of the classes and arguments of `divide`.

    The largest groups come first, and each goes where the chi-squared distance between the images of each class so far
    and those that the split should have in the end grows least. A split that no image outside the groups can fill gets
    a small group.
    """
    first, *others = shares
    counts: dict[str, Counter[str]] = {split: Counter() for split in shares}
    left = {category: size - 1 for category, size in sizes.items()}  # to give away
    placed: dict[str, list[Sequence[Source]]] = {split: [] for split in shares}

    def growth(numbers: Mapping[str, int], split: str) -> float:
        targets = {category: shares[split] * sizes[category] for category in numbers}
        return sum(n * (n + 2 * (counts[split][c] - targets[c])) / targets[c] for c, n in numbers.items())

    def may_leave(group: Sequence[Source]) -> bool:
        numbers = Counter(image.category for image in group)
        return all(n <= left[c] for c, n in numbers.items()) and not any(image.name in together for image in group)

    def place(group: Sequence[Source], split: str) -> None:
        placed[split].append(group)
        for image in group:
            counts[split][image.category] += 1
            left[image.category] -= split != first

    for group in sorted(groups, key=lambda group: (-len(group), _rank(group[0], key))):
        numbers = Counter(image.category for image in group)
        place(group, min(shares, key=lambda split: growth(numbers, split)) if may_leave(group) else first)
    alone = sum(sizes.values()) - sum(map(len, groups))
    for split in [split for split in others if not placed[split]][alone:]:
        if movable := [group for group in placed[first] if may_leave(group)]:
            placed[first].remove(movable[-1])
            place(movable[-1], split)
    return {image.name: split for split, found in placed.items() for group in found for image in group}


def assign_shards(
    images: Sequence[Source], *, split: str, seed: int, total_bytes: int, shards: int = 0
) -> tuple[tuple[Source, ...], ...]:
    """Shuffles a split's images and distributes them over shards.

    Args:
      images: images of the split.
      split: name of the split, part of the seed.
      seed: seed of the shuffle.
      total_bytes: estimated total size of the shards.
      shards: number of shards; 0 is one per 128 MiB, and at least 8 if each then has 64 images or more.

    Returns:
      The images of each shard, in the order of the records.
    """
    if not shards:
        shards = max(math.ceil(total_bytes / _SHARD_BYTES), min(_MIN_SHARDS, len(images) // _MIN_IMAGES_PER_SHARD))
    shards = max(1, min(shards, len(images)))
    shuffled = _shuffled(images, _key(f"shuffle {split} {seed}"))
    bounds = [len(images) * i // shards for i in range(shards + 1)]
    return tuple(tuple(shuffled[start:end]) for start, end in zip(bounds, bounds[1:], strict=False))


def _key(salt: str) -> bytes:
    return hashlib.sha256(salt.encode()).digest()


def _shuffled(images: Sequence[Source], key: bytes) -> list[Source]:
    return sorted(images, key=lambda image: _rank(image, key))


def _rank(image: Source, key: bytes) -> bytes:
    # By a hash, not by a random number generator, whose stream may differ between library versions.
    return hashlib.blake2b(os.fsencode(image.name), key=key, digest_size=16).digest()


def _sample(image: Source) -> bytes:
    middle = image.size // 2
    try:
        descriptor = os.open(image.path, os.O_RDONLY)  # half the time of `open`
        try:
            # Not past the end of an image in a shard: the bytes that follow differ between equal images.
            return os.pread(descriptor, min(_SAMPLE_BYTES, image.size - middle), (image.offset or 0) + middle)
        finally:
            os.close(descriptor)
    except OSError:
        return b""


def _digest(image: Source) -> bytes:
    try:
        return hashlib.sha256(image.read()).digest()
    except OSError:
        return b""
