"""Plan of a conversion, made before any image is decoded: duplicates, splits, shuffling, shards.

The plan is a pure function of the sources, their bytes and the seed, so that the files do not depend on the number of
processes.
"""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    images: Sequence[Source], shares: Mapping[str, float], seed: int, together: frozenset[str] = frozenset()
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

    Returns:
      The images of each split, in the order of `images`; a split may be empty if there are few images.
    """
    first, *others = shares
    by_class: dict[str, list[Source]] = {}
    for image in images:
        by_class.setdefault(image.category, []).append(image)
    drawn = {
        category: _shuffled([image for image in members if image.name not in together], f"validation {seed}")
        for category, members in by_class.items()
    }
    left = {category: len(members) - 1 for category, members in by_class.items()}  # to give away
    split_of: dict[str, str] = {}

    def take(category: str, number: int, split: str) -> None:
        split_of.update((image.name, split) for image in drawn[category][:number])
        del drawn[category][:number]
        left[category] -= number

    for split in others:
        seen = taken = 0
        for category in sorted(by_class):
            seen += len(by_class[category])
            # The share of all classes so far minus what they gave, so that rounding errors cancel.
            wanted = math.floor(shares[split] * seen + 0.5) - taken
            most = math.ceil(shares[split] * len(by_class[category]))
            quota = max(0, min(wanted, most, left[category], len(drawn[category])))
            take(category, quota, split)
            taken += quota
        if not taken:
            largest = max(sorted(by_class), key=lambda category: len(by_class[category]))
            take(largest, min(1, left[largest], len(drawn[largest])), split)
    return {split: tuple(image for image in images if split_of.get(image.name, first) == split) for split in shares}


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
    shuffled = _shuffled(images, f"shuffle {split} {seed}")
    bounds = [len(images) * i // shards for i in range(shards + 1)]
    return tuple(tuple(shuffled[start:end]) for start, end in zip(bounds, bounds[1:], strict=False))


def _shuffled(images: Sequence[Source], salt: str) -> list[Source]:
    # By a hash, not by a random number generator, whose stream may differ between library versions.
    key = hashlib.sha256(salt.encode()).digest()
    return sorted(images, key=lambda image: hashlib.blake2b(os.fsencode(image.name), key=key, digest_size=16).digest())


def _sample(image: Source) -> bytes:
    middle = image.size // 2
    try:
        with open(image.path, "rb", buffering=0) as file:
            # Not past the end of an image in a shard: the bytes that follow differ between equal images.
            return os.pread(file.fileno(), min(_SAMPLE_BYTES, image.size - middle), (image.offset or 0) + middle)
    except OSError:
        return b""


def _digest(image: Source) -> bytes:
    try:
        return hashlib.sha256(image.read()).digest()
    except OSError:
        return b""
