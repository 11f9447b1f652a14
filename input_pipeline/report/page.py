"""Writes the report of a dataset.

    write_report(
        partial / REPORT,
        manifest=manifest,
        splits={"train": train, "test": test},
        quarantine=[json.loads(line) for line in lines],
        images={"train": np.load("images-train.npz")},
        sources={"train": Path("photos/train")},
    )

The page is one self-contained file without scripts. It depends on the arguments only, not on the time or the path.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convoy.core.files import write_whole
from convoy.core.html.templates import page_template
from convoy.input_pipeline.dataset.image_facts import IMAGE_TYPES
from convoy.input_pipeline.dataset.open import DUPLICATE, NO_IMAGE, NOT_NAMED, Split
from convoy.input_pipeline.images.perceptual import NEAR
from convoy.input_pipeline.report import label_sets, numbers, pictures
from convoy.input_pipeline.report.alike import Alike, Group, Images, find_alike, gather
from convoy.input_pipeline.report.findings import FEW_IMAGES, balances, findings, small_classes

REPORT = "report.html"

_LEAKED = re.compile(re.escape(DUPLICATE) + r"image \d+ of split \w+")  # duplicates of an image of another split
# Limits of what is shown, so that the page stays below 3 MB. Counts always cover everything.
_SAMPLES, _SAMPLES_PER_CLASS = 336, 8
_GROUPS, _GROUP_PICTURES = 20, 5
_LEAKS, _QUARANTINED, _DUPLICATES, _FLAT = 48, 48, 50, 12
_NAMED, _SIZES, _REASONS = 12, 8, 12
_PLOTTED_FROM = 60  # classes; with more, the counts are plotted too
_ALL_WITH_BARS = 300  # classes; with more, only the largest and smallest have bars
_EXTREMES = 15
_FIRST_SPLITS = ("train", "validation", "val", "test")


def write_report(
    path: Path,
    *,
    manifest: Mapping[str, Any],
    splits: Mapping[str, Split],
    quarantine: Sequence[Mapping[str, str]],
    images: Mapping[str, Mapping[str, np.ndarray]],
    sources: Mapping[str, Path],
) -> None:
    """Writes the report of a dataset.

    Args:
      path: file to write.
      manifest: content of manifest.json.
      splits: index of every split of the manifest. A bounded number of records is read for the pictures.
      quarantine: lines of quarantine.jsonl: `split`, `path`, `category`, `reason`.
      images: the arrays of `IMAGE_TYPES` by split, in the order of its records. A split may have none; arrays of a
        wrong length are ignored. The page then states what is missing.
      sources: folders of source images by split, if they still exist; for thumbnails of files that were left out.

    Raises:
      OSError: the file cannot be written.
    """
    names = sorted(splits, key=lambda name: (_FIRST_SPLITS.index(name) if name in _FIRST_SPLITS else 9, name))
    splits = {name: splits[name] for name in names}
    whole = {
        name: images[name]
        for name in names
        if name in images and all(len(images[name].get(array, ())) == splits[name].num_images for array in IMAGE_TYPES)
    }
    gathered = gather(splits, whole)
    content = gathered.content
    pairs_of_splits = math.comb(len(gathered.splits), 2)
    alike = find_alike(gathered, leaks_shown=max(1, _LEAKS // max(1, pairs_of_splits)))
    class_names = list(manifest["class_names"])
    counts = {name: split.class_counts(len(class_names)) for name, split in splits.items()}
    samples = _samples(splits, len(class_names))
    groups = {"across": alike.across_classes[:_GROUPS], "within": alike.within_classes[:_GROUPS]}
    records = [_record(gathered, i) for i in _pictured(alike, groups)]
    records += [record for _, chosen in samples for record in chosen]
    found = pictures.of_records(splits, class_names, records, delimiter=manifest.get("label_delimiter", ""))

    def picture(i: int) -> pictures.Picture:
        return found[_record(gathered, i)]

    duplicates = [entry for entry in quarantine if entry["reason"].startswith(DUPLICATE)]
    bad = [entry for entry in quarantine if not entry["reason"].startswith(DUPLICATE)]
    num_stray = sum(entry["reason"].startswith((NOT_NAMED, NO_IMAGE)) for entry in bad)
    kinds, num_kinds = numbers.reasons([entry["reason"] for entry in bad], _REASONS)
    small, balance = small_classes(counts, class_names), balances(counts, class_names)
    num_images = sum(split.num_images for split in splits.values())
    page = page_template(Path(__file__).with_name("report.html.j2")).render(
        name=manifest["name"],
        manifest=manifest,
        class_names=class_names,
        num_images=num_images,
        splits=[_split_row(name, manifest["splits"][name], quarantine) for name in splits],
        lacking=[name for name in splits if name not in whole],
        findings=findings(
            small=small,
            balance=balance,
            class_names=class_names,
            images=gathered,
            alike=alike,
            num_kept=num_images,
            num_bad=len(bad) - num_stray,
            num_stray=num_stray,
            num_duplicates=len(duplicates),
        ),
        **_class_rows(counts, class_names),
        small=small,
        few_images=FEW_IMAGES,
        named=_NAMED,
        balance=balance,
        label_sets=label_sets.section(splits, class_names),
        tail=numbers.area(next(iter(counts.values()))) if len(class_names) > _PLOTTED_FROM else "",
        images=gathered,
        sizes=_sizes(gathered),
        alike=alike,
        near=NEAR,
        leaks=[
            (leak, [(content[i] == content[like], picture(i), picture(like)) for i, like in leak.pairs])
            for leak in alike.leaks
        ],
        kept_out=sum(1 for entry in duplicates if _LEAKED.fullmatch(entry["reason"])),
        groups={
            where: [(group, [picture(i) for i in group.members[:_GROUP_PICTURES]]) for group in shown]
            for where, shown in groups.items()
        },
        flat=[picture(i) for i in alike.flat[:_FLAT]],
        samples=[(class_names[label], [found[record] for record in chosen]) for label, chosen in samples],
        most_samples=max((len(chosen) for _, chosen in samples), default=1),
        duplicates=duplicates,
        duplicates_shown=duplicates[:_DUPLICATES],
        bad=bad,
        bad_shown=[(entry, _source_picture(entry, sources)) for entry in bad[:_QUARANTINED]],
        kinds=kinds,
        num_kinds=num_kinds,
    )
    write_whole(path, page.encode("utf-8"))


def _split_row(name: str, entry: Mapping[str, Any], quarantine: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    return {
        "name": name,
        "images": entry["num_images"],
        "classes": sum(1 for count in entry["counts"] if count),
        "size": sum(shard["bytes"] for shard in entry["shards"]),
        "shards": len(entry["shards"]),
        "left_out": sum(1 for line in quarantine if line["split"] == name),
    }


def _class_rows(counts: Mapping[str, np.ndarray], class_names: Sequence[str]) -> dict[str, Any]:
    """Returns the rows of the class tables.

    Returns:
      `classes`: (name, one bar per split), the largest of the first split first; all classes, or the largest ones.
      `smallest_classes`: the last rows in the same order; empty if `classes` has all.
      `all_classes`: (name, one count per split) in the order of the labels; empty if `classes` has all.
    """
    columns = [numbers.bars(class_names, images.tolist()) for images in counts.values()]
    order = sorted(range(len(class_names)), key=lambda label: ([-column[label].count for column in columns], label))
    rows = [(class_names[label], [column[label] for column in columns]) for label in order]
    if len(rows) <= _ALL_WITH_BARS:
        return {"classes": rows, "smallest_classes": [], "all_classes": []}
    return {
        "classes": rows[:_EXTREMES],
        "smallest_classes": rows[-_EXTREMES:],
        "all_classes": list(zip(class_names, np.stack(list(counts.values()), axis=1).tolist(), strict=True)),
    }


def _sizes(images: Images) -> dict[str, Any] | None:
    if not len(images.label):
        return None
    frequent, different = numbers.frequent_sizes(images.width, images.height, _SIZES)
    return {
        "sides": numbers.shorter_sides(images.width, images.height),
        "aspects": numbers.aspect_ratios(images.width, images.height),
        "frequent": frequent,
        "different": different,
        "smaller": numbers.smaller_than_usual(images.width, images.height),
        "median_bytes": int(np.median(images.source_bytes)),
        "source_bytes": int(images.source_bytes.sum()),
        "changed": int(images.changed.sum()),
    }


def _samples(splits: Mapping[str, Split], num_classes: int) -> list[tuple[int, list[tuple[str, int]]]]:
    """Chooses the records of the first split to show: the first ones of each class, as (label, [(split, record)]).

    If there are more classes than room, every n-th class is shown.
    """
    if not splits:
        return []
    name, split = next(iter(splits.items()))
    label, image = split.label, np.arange(split.num_images)
    if split.label_sets:
        label, image = split.label_sets.label, split.label_sets.image
    order = np.argsort(label, kind="stable")
    starts = np.searchsorted(label[order], np.arange(num_classes + 1))
    order = image[order]
    labels = np.flatnonzero(np.diff(starts))
    if len(labels) > _SAMPLES:
        labels = labels[np.arange(_SAMPLES) * len(labels) // _SAMPLES]
    each = min(_SAMPLES_PER_CLASS, max(1, _SAMPLES // max(1, len(labels))))
    return [
        (int(label), [(name, int(i)) for i in order[starts[label] : min(starts[label + 1], starts[label] + each)]])
        for label in labels
    ]


def _record(images: Images, i: int) -> tuple[str, int]:
    return images.splits[images.split[i]], int(images.position[i])


def _pictured(alike: Alike, groups: Mapping[str, Sequence[Group]]) -> list[int]:
    shown_pairs = [i for leak in alike.leaks for pair in leak.pairs for i in pair]
    members = [i for shown in groups.values() for group in shown for i in group.members[:_GROUP_PICTURES]]
    return [*shown_pairs, *members, *alike.flat[:_FLAT].tolist()]


def _source_picture(entry: Mapping[str, str], sources: Mapping[str, Path]) -> str:
    folder = sources.get(entry["split"])
    return pictures.of_file(folder / entry["path"]) if folder is not None and entry["path"] else ""
