"""Splits of images with any number of labels: iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011).

The rarest label goes first: each of its images goes to the split that lacks most images with this label, and in case of
a tie most images at all. Then follows the label that is the rarest among the images that are left. Images without a
label count as having a label of their own. Ties that remain, and the order of the images, depend on the names of the
images only, not on random numbers. A group of images that must stay together is placed like one image.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set

from convoy.input_pipeline.convert.sources import Source

_UNLABELED = ("",)  # no class has this name


def divide(
    images: Sequence[Source],
    shares: Mapping[str, float],
    rank: Callable[[Source], bytes],
    together: Set[str] = frozenset(),
    groups: Sequence[Sequence[Source]] = (),
) -> dict[str, tuple[Source, ...]]:
    """Divides images among splits so that each gets its share of every label. Arguments and result as `plan.divide`.

    The first split gets an image of every label, and each other split at least one unit, if there are enough.
    """
    first = next(iter(shares))
    grouped = {image.name for group in groups for image in group}
    units = [tuple(group) for group in groups] + [(image,) for image in images if image.name not in grouped]
    units.sort(key=lambda unit: (-len(unit), rank(unit[0])))
    labels = [Counter(name for image in unit for name in (image.labels or _UNLABELED)) for unit in units]
    with_label: dict[str, list[int]] = {}
    for number, counts in enumerate(labels):
        for name in counts:
            with_label.setdefault(name, []).append(number)
    left = Counter[str]()
    for counts in labels:
        left.update(counts)
    wanted = {split: {name: share * left[name] for name in left} for split, share in shares.items()}
    wanted_images = {split: share * len(images) for split, share in shares.items()}
    split_of: dict[int, str] = {}
    in_first = Counter[str]()

    def place(number: int, split: str) -> None:
        split_of[number] = split
        wanted_images[split] -= len(units[number])
        for name, count in labels[number].items():
            wanted[split][name] -= count
            left[name] -= count
        if split == first:
            in_first.update(labels[number])

    for number, unit in enumerate(units):
        if any(image.name in together for image in unit):
            place(number, first)
    while remaining := [name for name in left if left[name] > 0]:
        rarest = min(remaining, key=lambda name: (left[name], name))
        for number in with_label[rarest]:
            if number not in split_of:
                most = max(shares, key=lambda split: (wanted[split][rarest], wanted_images[split]))
                place(number, most if in_first[rarest] else first)
    _fill_empty(units, labels, split_of, in_first, shares, together)
    split_of_image = {image.name: split_of[number] for number, unit in enumerate(units) for image in unit}
    return {split: tuple(image for image in images if split_of_image[image.name] == split) for split in shares}


def _fill_empty(
    units: Sequence[Sequence[Source]],
    labels: Sequence[Counter[str]],
    split_of: dict[int, str],
    in_first: Counter[str],
    shares: Mapping[str, float],
    together: Set[str],
) -> None:
    """Moves the smallest unit that the first split can spare to each other split without images."""
    first, *others = shares
    for split in others:
        if split in split_of.values():
            continue
        for number in reversed(range(len(units))):
            can_spare = all(in_first[name] > count for name, count in labels[number].items())
            stays = any(image.name in together for image in units[number])
            if split_of[number] == first and can_spare and not stays:
                split_of[number] = split
                in_first.subtract(labels[number])
                break
