"""Summary of a conversion, by split and by class."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convoy.input_pipeline.convert.marks import Shard
from convoy.input_pipeline.convert.plan import Duplicates
from convoy.input_pipeline.convert.quarantine import LeftOut
from convoy.input_pipeline.convert.sources import Source


@dataclass(frozen=True)
class SplitSummary:
    """Counts of a split that was written; `size` in bytes.

    `labels_per_image` has the number of images with 0, 1, 2, ... labels; empty if each has one.
    """

    name: str
    images: int
    classes: int
    shards: int
    size: int
    labels_per_image: tuple[int, ...] = ()


@dataclass(frozen=True)
class ClassSummary:
    """Counts of a class.

    Attributes:
      name: name of the class.
      kept: images in each split.
      changed: images that were re-encoded.
      duplicates: images left out because another image has the same bytes.
      quarantined: images left out because they are unusable.
    """

    name: str
    kept: Mapping[str, int]
    changed: int
    duplicates: int
    quarantined: int


@dataclass(frozen=True)
class GroupSummary:
    """Groups of images that were kept in one split each.

    Attributes:
      groups: number of groups of two or more images.
      images: images in them.
      largest: images in the largest one.
      otherwise_spread: groups that would be in more than one split otherwise.
      complete: whether all images that look alike were found; False if there were too many to compare all of them.
      missed: splits whose size is not what it should be because of the groups, as (wanted share, actual share).
    """

    groups: int
    images: int
    largest: int
    otherwise_spread: int
    complete: bool
    missed: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Summary:
    """Result of a conversion.

    Attributes:
      splits: splits that were written.
      classes: classes of the dataset, in the order of their labels.
      duplicates: images left out because another image of the same class has the same bytes.
      leaked: images left out because an earlier split has an image with the same bytes.
      conflicts: pairs of names of images of two classes with the same bytes. Both are kept if they are of one split.
      ignored: files left out because the CSV does not name them or their names have no image suffix.
      missing: files that the CSV names and that do not exist.
      quarantined: images left out because they are unusable.
      grouped: what became of groups of images; None without groups.
      left_out: the images and files that were left out, with reasons, as in quarantine.jsonl.
    """

    splits: tuple[SplitSummary, ...]
    classes: tuple[ClassSummary, ...]
    duplicates: int
    leaked: int
    conflicts: tuple[tuple[str, str], ...]
    ignored: int
    missing: int
    quarantined: int
    grouped: GroupSummary | None = None
    left_out: tuple[LeftOut, ...] = ()


def find_conflicts(
    duplicates: Duplicates,
    leaked: Mapping[str, tuple[str, int]],
    category_of: Callable[[str, int], str],
) -> tuple[tuple[str, str], ...]:
    """Returns pairs of names of images of two classes with the same bytes.

    Args:
      duplicates: result of `plan.find_duplicates`.
      leaked: as in `summarize_classes`.
      category_of: returns the class of an image of an earlier split.
    """
    found = [(image.name, other.name) for image, other in duplicates.conflicts]
    for image in duplicates.kept:
        if image.name in leaked and category_of(*leaked[image.name]) != image.category:
            split, number = leaked[image.name]
            found.append((image.name, f"image {number} of {split}"))
    return tuple(found)


def planned_split(split: str, images: Sequence[Source], shards: int) -> SplitSummary:
    """Returns the counts of a split before its images are decoded."""
    classes = {name for image in images for name in image.classes}
    numbers = Counter(len(image.labels) for image in images if image.labels is not None)
    labels_per_image = tuple(numbers[number] for number in range(1 + max(numbers, default=-1)))
    return SplitSummary(split, len(images), len(classes), shards, size=0, labels_per_image=labels_per_image)


def summarize_split(split: str, entry: Mapping[str, Any]) -> SplitSummary:
    """Returns the counts of a split from its entry in the manifest."""
    return SplitSummary(
        name=split,
        images=entry["num_images"],
        classes=sum(1 for count in entry["counts"] if count),
        shards=len(entry["shards"]),
        size=sum(shard["bytes"] for shard in entry["shards"]),
        labels_per_image=tuple(entry.get("labels_per_image", ())),
    )


def summarize_classes(
    class_names: Sequence[str],
    counts: Mapping[str, Sequence[int]],
    shards: Mapping[str, Sequence[Shard]],
    duplicates: Duplicates,
    leaked: Mapping[str, tuple[str, int]],
) -> Iterator[ClassSummary]:
    """Yields the counts of each class in the splits that were written.

    Args:
      class_names: names of the classes, by label.
      counts: images of each class, by split.
      shards: shards that were written, by split.
      duplicates: result of `plan.find_duplicates`.
      leaked: (split, number of the image) by name of an image whose bytes an earlier split has.
    """
    changed: Counter[int] = Counter()
    quarantined: Counter[str] = Counter()
    for shard in (shard for split_shards in shards.values() for shard in split_shards):
        changed.update(shard.columns["label"][shard.columns["changed"][shard.image_of_label]].tolist())
        quarantined.update(name for image, _ in shard.bad for name in image.classes)
    left_out = Counter(name for image, _ in duplicates.dropped for name in image.classes)
    left_out.update(name for image in duplicates.kept if image.name in leaked for name in image.classes)
    for label, name in enumerate(class_names):
        kept = {split: of_split[label] for split, of_split in counts.items()}
        yield ClassSummary(name, kept, changed[label], left_out[name], quarantined[name])
