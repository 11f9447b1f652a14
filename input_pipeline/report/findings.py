"""What stands out in a data set, in a sentence each, the worst first; and the classes that are too small."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convoy.core.text import counted, percent
from convoy.input_pipeline.report.alike import Alike, Images

FEW_IMAGES = 10  # of a class: fewer teach and measure little
_UNEVEN = 10  # largest class to smallest
_SMALL_SIDE = 64  # pixels
_LEVELS = ("bad", "odd", "note")


@dataclass(frozen=True)
class Finding:
    """Something that stands out: `level` is one of `_LEVELS`, `section` where the page has more of it."""

    level: str
    text: str
    section: str


@dataclass(frozen=True)
class SmallClasses:
    """The classes of a split that have no image, and those with fewer than `FEW_IMAGES` to train on, smallest first."""

    split: str
    missing: tuple[str, ...]
    small: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Balance:
    """A split's largest class and its smallest that has images, each with its number of images."""

    split: str
    largest: tuple[str, int]
    smallest: tuple[str, int]

    @property
    def ratio(self) -> float:
        """How many times the images of the smallest class the largest has."""
        return self.largest[1] / self.smallest[1]


def small_classes(counts: Mapping[str, np.ndarray], class_names: Sequence[str]) -> list[SmallClasses]:
    """Returns the small classes of each split that has some.

    Args:
      counts: images a class, by split; the split that is trained on comes first.
      class_names: by label.
    """
    found = []
    for number, (split, of_split) in enumerate(counts.items()):
        order = np.argsort(of_split, kind="stable").tolist()
        missing = tuple(class_names[label] for label in order if not of_split[label])
        small = tuple((class_names[label], int(of_split[label])) for label in order if 0 < of_split[label] < FEW_IMAGES)
        if number:
            small = ()
        if missing or small:
            found.append(SmallClasses(split, missing, small))
    return found


def balances(counts: Mapping[str, np.ndarray], class_names: Sequence[str]) -> list[Balance]:
    """Returns the balance of each split that has images; `counts` are images a class, by split."""
    found = []
    for split, of_split in counts.items():
        present = np.flatnonzero(of_split)
        if len(present):
            largest, smallest = present[np.argmax(of_split[present])], present[np.argmin(of_split[present])]
            extremes = [(class_names[label], int(of_split[label])) for label in (largest, smallest)]
            found.append(Balance(split, *extremes))
    return found


def findings(
    *,
    small: Sequence[SmallClasses],
    balance: Sequence[Balance],
    num_classes: int,
    images: Images,
    alike: Alike,
    num_kept: int,
    num_bad: int,
    num_duplicates: int,
) -> list[Finding]:
    """Returns what stands out.

    Args:
      small: as `small_classes` has it.
      balance: as `balances` has it, the split that is trained on first.
      num_classes: of the data set.
      images: of the splits that have a sidecar.
      alike: what is there more than once.
      num_kept: images in the data set.
      num_bad: files left out because they could not be used.
      num_duplicates: files left out because their bytes are there already.
    """
    found = [
        *_of_leaks(alike),
        *_of_twins(alike),
        *_of_classes(small, balance, num_classes),
        *_of_files(num_kept, num_bad, num_duplicates),
        *_of_pictures(images, alike),
    ]
    return sorted(found, key=lambda finding: _LEVELS.index(finding.level))


def _of_leaks(alike: Alike) -> list[Finding]:
    return [
        Finding(
            "bad",
            f"{counted(leak.number, 'image')} of {leak.later} ({percent(leak.number, leak.images)}) "
            f"{_are(leak.number)} in {leak.earlier} too: {leak.in_words}. Results on {leak.later} will be too good.",
            "leakage",
        )
        for leak in alike.leaks
    ]


def _of_twins(alike: Alike) -> list[Finding]:
    found = []
    exact = sum(group.exact for group in alike.across_classes)
    near = len(alike.across_classes) - exact
    if exact:
        text = f"{counted(exact, 'picture')} {_are(exact)} in more than one class with the very same bytes."
        found.append(Finding("bad", text, "alike"))
    if near:
        text = f"{counted(near, 'group')} of pictures that look alike {_are(near)} spread over different classes."
        found.append(Finding("odd", text, "alike"))
    return found


def _of_classes(small: Sequence[SmallClasses], balance: Sequence[Balance], num_classes: int) -> list[Finding]:
    found = []
    for row in small:
        if row.missing:
            text = (
                f"{row.split} has no image of {len(row.missing):,} of the {counted(num_classes, 'class', 'classes')}."
            )
            found.append(Finding("odd", text, "classes"))
    first = balance[0] if balance else None
    for row in small:
        if row.small:
            have = counted(len(row.small), "class has", "classes have")
            found.append(Finding("odd", f"{have} fewer than {FEW_IMAGES} images in {row.split}.", "classes"))
    if first and first.ratio >= _UNEVEN:
        text = f"The largest class of {first.split} has {first.ratio:,.0f} times the images of the smallest."
        found.append(Finding("odd", text, "classes"))
    return found


def _of_files(num_kept: int, num_bad: int, num_duplicates: int) -> list[Finding]:
    found = []
    if num_bad:
        share = percent(num_bad, num_kept + num_bad)
        text = f"{counted(num_bad, 'file')} ({share}) could not be used and {_were(num_bad)} left out."
        found.append(Finding("odd", text, "left-out"))
    if num_duplicates:
        text = f"{counted(num_duplicates, 'file')} had the bytes of another image and {_were(num_duplicates)} left out."
        found.append(Finding("note", text, "left-out"))
    return found


def _of_pictures(images: Images, alike: Alike) -> list[Finding]:
    found = []
    number = len(images.label)
    if len(alike.flat):
        text = f"{counted(len(alike.flat), 'image')} {_are(len(alike.flat))} of a single colour."
        found.append(Finding("odd", text, "alike"))
    if alike.surplus:
        share = percent(alike.surplus, number)
        text = f"{counted(alike.surplus, 'image')} ({share}) could be spared: another of the class looks the same."
        found.append(Finding("note", text, "alike"))
    small = int((np.minimum(images.width, images.height) < _SMALL_SIDE).sum())
    if small:
        text = f"{percent(small, number)} of the images have a side of fewer than {_SMALL_SIDE} pixels."
        found.append(Finding("note", text, "sizes"))
    return found


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _were(number: int) -> str:
    return "was" if number == 1 else "were"
