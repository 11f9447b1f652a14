"""Which image goes where, settled before the first is decoded: duplicates, splits, shuffling, shards.

The plan is a pure function of the sources, their bytes and the seed. Whoever works it off, in whatever order and on
however many processes, writes the same files.
"""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convoy.input_pipeline.convert.sources import Source

SHARD_BYTES = 128 * 2**20
_READERS = 8  # at least one shard for each of so many readers, where there are images enough
_IMAGES_PER_SHARD = 64  # more shards than this makes are files without a use
_SAMPLE_BYTES = 64


@dataclass(frozen=True)
class Duplicates:
    """What looking at the bytes found.

    Attributes:
      kept: the images without the duplicates, in their order.
      dropped: (left out, kept in its stead).
      conflicting: names of kept images whose bytes another kept image has under another category.
    """

    kept: tuple[Source, ...]
    dropped: tuple[tuple[Source, Source], ...]
    conflicting: frozenset[str]


def find_duplicates(images: Sequence[Source]) -> Duplicates:
    """Drops images that have the same bytes as an earlier one and its category, or that are in another split than it.

    Images of the same bytes and different categories in one split are all kept: which category is right is not ours to
    know, and dropping one would hide the contradiction from the person who can settle it.

    Only files of one size can be equal, and of those most differ in a few bytes in the middle, so that few are read
    in full. Empty and unreadable files count as different; decoding says what is wrong with them.
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
    conflicting = set()
    for equal in by_content.values():
        first: dict[str, int] = {}
        earliest = min(equal)
        for i in sorted(equal):
            if images[i].split != images[earliest].split:  # whatever it is taken for, it has been learnt from
                dropped[i] = earliest
            elif first.setdefault(images[i].category, i) != i:
                dropped[i] = first[images[i].category]
        if len(first) > 1:
            conflicting.update(images[i].name for i in first.values())
    return Duplicates(
        kept=tuple(image for i, image in enumerate(images) if i not in dropped),
        dropped=tuple((images[i], images[dropped[i]]) for i in sorted(dropped)),
        conflicting=frozenset(conflicting),
    )


def find_known(
    images: Sequence[Source], known: Mapping[tuple[int, int], tuple[str, int]]
) -> dict[str, tuple[str, int]]:
    """Returns which image of another split has an image's bytes, by the image's name, where one has.

    Args:
      images: to look for.
      known: (split, number of the image) by (size in bytes, `content_hash`).
    """
    sizes = {size for size, _ in known}
    found = {}
    for image in images:
        if image.size in sizes:
            try:
                content = content_hash(image.read())
            except OSError:  # decoding says what is wrong with it
                continue
            if (image.size, content) in known:
                found[image.name] = known[image.size, content]
    return found


def content_hash(data: bytes) -> int:
    """Returns 64 bits by which a file's bytes are known again."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def divide(
    images: Sequence[Source], shares: Mapping[str, float], seed: int, together: frozenset[str] = frozenset()
) -> dict[str, tuple[Source, ...]]:
    """Divides images among splits, stratified by class.

    Args:
      images: all of them.
      shares: of each split, in (0, 1]. The first split gets what the others leave; of the others each gets its share of
        every class to within one image, and of all as exactly as that allows. No class gives its only image away.
      seed: which images of a class it falls on. An image's place in the draw depends on its name alone, so that adding
        images to a class leaves most of the others where they were.
      together: names of images that must stay in the first split, because one with their bytes might be left there.

    Returns:
      The images of each split, in the order of `images`; some may have none where there are few.
    """
    first, *others = shares
    by_class: dict[str, list[Source]] = {}
    for image in images:
        by_class.setdefault(image.category, []).append(image)
    drawn = {
        category: _shuffled([image for image in members if image.name not in together], f"validation {seed}")
        for category, members in by_class.items()
    }
    left = {category: len(members) - 1 for category, members in by_class.items()}  # that a class may still give away
    split_of: dict[str, str] = {}
    for split in others:
        seen = taken = 0
        for category in sorted(by_class):
            seen += len(by_class[category])
            # The share of all classes so far, less what they gave: rounding errors cancel instead of adding up.
            wanted = math.floor(shares[split] * seen + 0.5) - taken
            most = math.ceil(shares[split] * len(by_class[category]))
            quota = max(0, min(wanted, most, left[category], len(drawn[category])))
            _take(drawn, left, category, quota, split, split_of)
            taken += quota
        if not taken:
            largest = max(sorted(by_class), key=lambda category: len(by_class[category]))
            _take(drawn, left, largest, min(1, left[largest], len(drawn[largest])), split, split_of)
    return {split: tuple(image for image in images if split_of.get(image.name, first) == split) for split in shares}


def _take(
    drawn: dict[str, list[Source]], left: dict[str, int], category: str, number: int, split: str, split_of: dict
) -> None:
    split_of.update((image.name, split) for image in drawn[category][:number])
    del drawn[category][:number]
    left[category] -= number


def assign_shards(
    images: Sequence[Source], *, split: str, seed: int, total_bytes: int, shards: int = 0
) -> tuple[tuple[Source, ...], ...]:
    """Shuffles a split's images and deals them to shards.

    Args:
      images: of the split.
      split: its name, part of the seed.
      seed: of the shuffle.
      total_bytes: about how many bytes the shards will have together.
      shards: how many; 0 is one per 128 MiB, and at least 8 where that leaves each 64 images.

    Returns:
      The images of each shard in the order they are written.
    """
    if not shards:
        shards = max(math.ceil(total_bytes / SHARD_BYTES), min(_READERS, len(images) // _IMAGES_PER_SHARD))
    shards = max(1, min(shards, len(images)))
    shuffled = _shuffled(images, f"shuffle {split} {seed}")
    bounds = [len(images) * i // shards for i in range(shards + 1)]
    return tuple(tuple(shuffled[start:end]) for start, end in zip(bounds, bounds[1:], strict=False))


def _shuffled(images: Sequence[Source], salt: str) -> list[Source]:
    # By a hash rather than a random number generator: it is the same in every version of every library.
    key = hashlib.sha256(salt.encode()).digest()
    return sorted(images, key=lambda image: hashlib.blake2b(os.fsencode(image.name), key=key, digest_size=16).digest())


def _sample(image: Source) -> bytes:
    try:
        descriptor = os.open(image.path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        middle = image.size // 2
        # Behind the end of an image in a file of many there are other bytes than behind its equal's.
        return os.pread(descriptor, min(_SAMPLE_BYTES, image.size - middle), (image.offset or 0) + middle)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _digest(image: Source) -> bytes:
    try:
        return hashlib.sha256(image.read()).digest()
    except OSError:
        return b""
