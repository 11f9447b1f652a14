"""Findings of the dataset report, and the class counts that they and the page use."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convoy.core.finding import Finding, Severity
from convoy.core.text import counted, percent
from convoy.input_pipeline.report.alike import Alike, Images

FEW_IMAGES = 10  # a training class with fewer is reported
_IMBALANCE = 10  # ratio of the largest class to the smallest that is reported
_SMALL_SIDE = 64  # pixels
_LISTED = 3
# What programs and people write where a label is missing.
_PLACEHOLDERS = frozenset(("nan", "none", "null", "nil", "n/a", "na", "#n/a", "<na>", "undefined", "missing", "-", "?"))


@dataclass(frozen=True)
class SmallClasses:
    """Classes of a split without images, and training classes with fewer than `FEW_IMAGES`, smallest first."""

    split: str
    missing: tuple[str, ...]
    small: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Balance:
    """Largest and smallest nonempty class of a split, each as (name, number of images)."""

    split: str
    largest: tuple[str, int]
    smallest: tuple[str, int]

    @property
    def ratio(self) -> float:
        """Images of the largest class divided by images of the smallest."""
        return self.largest[1] / self.smallest[1]


def small_classes(counts: Mapping[str, np.ndarray], class_names: Sequence[str]) -> list[SmallClasses]:
    """Returns the small classes of each split that has any.

    Args:
      counts: images per class by split, each [num_classes]; the training split comes first.
      class_names: class names by label.
    """
    found = []
    for number, (split, images) in enumerate(counts.items()):
        order = np.argsort(images, kind="stable").tolist()
        missing = tuple(class_names[label] for label in order if not images[label])
        small = tuple((class_names[label], int(images[label])) for label in order if 0 < images[label] < FEW_IMAGES)
        if number:
            small = ()
        if missing or small:
            found.append(SmallClasses(split, missing, small))
    return found


def balances(counts: Mapping[str, np.ndarray], class_names: Sequence[str]) -> list[Balance]:
    """Returns the balance of each split that has images; `counts` are images per class, by split."""
    found = []
    for split, images in counts.items():
        present = np.flatnonzero(images)
        if len(present):
            largest, smallest = present[np.argmax(images[present])], present[np.argmin(images[present])]
            extremes = [(class_names[label], int(images[label])) for label in (largest, smallest)]
            found.append(Balance(split, *extremes))
    return found


def findings(
    *,
    small: Sequence[SmallClasses],
    balance: Sequence[Balance],
    class_names: Sequence[str],
    images: Images,
    alike: Alike,
    num_kept: int,
    num_bad: int,
    num_stray: int,
    num_duplicates: int,
) -> list[Finding]:
    """Returns the findings, the most serious first.

    Args:
      small: result of `small_classes`.
      balance: result of `balances`, the training split first.
      class_names: class names of the dataset.
      images: images of the splits that have an images-SPLIT.npz.
      alike: duplicates and near duplicates.
      num_kept: number of images in the dataset.
      num_bad: number of images left out because they are unusable.
      num_stray: number of files left out because they are no images by their name, or the CSV does not name them.
      num_duplicates: number of files left out because their bytes are in the dataset already.
    """
    found = [
        *_leakage_findings(alike),
        *_label_conflict_findings(alike),
        *_class_findings(small, balance, len(class_names)),
        *_name_findings(class_names),
        *_left_out_findings(num_kept, num_bad, num_stray, num_duplicates),
        *_image_findings(images, alike),
    ]
    return sorted(found, key=lambda finding: finding.severity.rank)


def _leakage_findings(alike: Alike) -> list[Finding]:
    together = " Where convert draws the splits, --group_similar keeps images that look alike in one."
    return [
        Finding(
            Severity.ERROR,
            "split-leakage",
            f"{counted(leak.number, 'image')} of {leak.later} ({percent(leak.number, leak.images)}) "
            f"{_are(leak.number)} also in {leak.earlier}: {leak.summary}. Results on {leak.later} will be too good.",
            fix=f"Remove them from {leak.later} or {leak.earlier}, and convert again." + together * bool(leak.near),
            section="leakage",
        )
        for leak in alike.leaks
    ]


def _label_conflict_findings(alike: Alike) -> list[Finding]:
    found = []
    exact = sum(group.exact for group in alike.across_classes)
    near = len(alike.across_classes) - exact
    if exact:
        text = f"{counted(exact, 'image')} {_are(exact)} there more than once, with different labels."
        fix = "Correct the labels, or keep one copy of each."
        found.append(Finding(Severity.ERROR, "label-conflict", text, fix, "alike"))
    if near:
        text = f"{counted(near, 'group')} of near duplicates {'has' if near == 1 else 'have'} different labels."
        fix = "Check their labels."
        found.append(Finding(Severity.WARNING, "near-duplicates-across-classes", text, fix, "alike"))
    return found


def _class_findings(small: Sequence[SmallClasses], balance: Sequence[Balance], num_classes: int) -> list[Finding]:
    found = []
    for row in small:
        if row.missing:
            text = f"{row.split} has no images of {len(row.missing):,} of {counted(num_classes, 'class', 'classes')}."
            found.append(Finding(Severity.WARNING, "empty-classes", text, section="classes"))
    for row in small:
        if row.small:
            have = counted(len(row.small), "class has", "classes have")
            text = f"{have} fewer than {FEW_IMAGES} images in {row.split}."
            found.append(Finding(Severity.WARNING, "small-classes", text, section="classes"))
    if balance and balance[0].ratio >= _IMBALANCE:
        text = f"The largest class of {balance[0].split} has {balance[0].ratio:,.0f} times the images of the smallest."
        found.append(Finding(Severity.WARNING, "class-imbalance", text, section="classes"))
    return found


def _name_findings(class_names: Sequence[str]) -> list[Finding]:
    found = []
    alike: dict[str, list[str]] = {}
    for name in class_names:
        alike.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    groups = [names for names in alike.values() if len(names) > 1]
    if groups:
        listed = "; ".join(" and ".join(map(repr, names)) for names in groups[:_LISTED])
        text = f"{counted(len(groups), 'group')} of class names differ in case, width or blanks only: {listed}."
        fix = "If they mean the same, give them the same name and convert again."
        found.append(Finding(Severity.WARNING, "alike-class-names", text, fix, "classes"))
    placeholders = [name for name in class_names if name.strip().lower() in _PLACEHOLDERS]
    if placeholders:
        text = f"The class {' and '.join(map(repr, placeholders))} may stand for a missing label."
        fix = "If so, remove these images and convert again."
        found.append(Finding(Severity.WARNING, "placeholder-class-names", text, fix, "classes"))
    return found


def _left_out_findings(num_kept: int, num_bad: int, num_stray: int, num_duplicates: int) -> list[Finding]:
    found = []
    if num_bad:
        share = percent(num_bad, num_kept + num_bad)
        text = f"{counted(num_bad, 'file')} ({share}) could not be used and {_were(num_bad)} left out."
        found.append(Finding(Severity.WARNING, "unusable-files", text, section="left-out"))
    if num_stray:
        text = f"{counted(num_stray, 'file')} {_were(num_stray)} ignored: no image by the name, or not in the CSV."
        found.append(Finding(Severity.NOTE, "ignored-files", text, section="left-out"))
    if num_duplicates:
        text = f"{counted(num_duplicates, 'file')} had the bytes of another image and {_were(num_duplicates)} left out."
        found.append(Finding(Severity.NOTE, "duplicate-files", text, section="left-out"))
    return found


def _image_findings(images: Images, alike: Alike) -> list[Finding]:
    found = []
    number = len(images.label)
    if len(alike.flat):
        text = f"{counted(len(alike.flat), 'image')} {_are(len(alike.flat))} of a single color."
        found.append(Finding(Severity.WARNING, "single-color-images", text, section="alike"))
    if alike.surplus:
        share = percent(alike.surplus, number)
        are = f"{counted(alike.surplus, 'image')} ({share}) {_are(alike.surplus)}"
        text = f"{are} redundant: there is a copy with the same label."
        found.append(Finding(Severity.NOTE, "redundant-images", text, section="alike"))
    small = int((np.minimum(images.width, images.height) < _SMALL_SIDE).sum())
    if small:
        text = f"{percent(small, number)} of the images have a side of fewer than {_SMALL_SIDE} pixels."
        found.append(Finding(Severity.NOTE, "small-images", text, section="sizes"))
    return found


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _were(number: int) -> str:
    return "was" if number == 1 else "were"
