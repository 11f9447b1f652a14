"""Conversion of images to a dataset directory: plan, write the shards, publish all or nothing.

    summary = convert(Options(images=Path("photos/train"), output=Path("data")))

The plan (`plan`) assigns each image to a split and a shard, and can keep groups of images together (`groups`). Worker
processes (`shards`, `worker`) write the shards into a working folder (`publish`). When all shards are written, the
files are renamed into place, the manifest last. An interrupted conversion leaves the dataset unchanged, and the next
one reuses its finished shards (`marks`). A dry run does all of this except for writing.
"""

import contextlib
import copy
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from convoy.core.errors import DataError, UsageError, did_you_mean
from convoy.core.remote import RemotePath
from convoy.core.text import counted
from convoy.input_pipeline.convert import groups, metadata, plan, publish, quarantine
from convoy.input_pipeline.convert.marks import Shard
from convoy.input_pipeline.convert.options import Options, check, with_split_folders
from convoy.input_pipeline.convert.publish import WorkingDirectory
from convoy.input_pipeline.convert.shards import shard_tasks, write_shards
from convoy.input_pipeline.convert.sources import Source, Sources, category_text, list_sources, one_spelling
from convoy.input_pipeline.convert.split_folders import find_unlabeled
from convoy.input_pipeline.convert.summary import (
    GroupSummary,
    SplitSummary,
    Summary,
    find_conflicts,
    planned_split,
    summarize_classes,
    summarize_split,
)
from convoy.input_pipeline.convert.tfds_sources import list_prepared
from convoy.input_pipeline.convert.worker import ShardTask
from convoy.input_pipeline.dataset.image_facts import IMAGE_TYPES, images_path, read_images
from convoy.input_pipeline.dataset.index import NUM_LABELS, concatenated
from convoy.input_pipeline.dataset.label_sets import unused_delimiter
from convoy.input_pipeline.dataset.open import Split, has_manifest, open_dataset, read_manifest
from convoy.input_pipeline.images import worker_pool


def convert(
    options: Options,
    progress: Callable[[int, int], None] = lambda done, total: None,
    log: Callable[[str], None] = lambda line: None,
    preview: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Converts images to a new dataset directory, or to further splits of one.

    Args:
      options: what to convert, and how.
      progress: called ten times per second with the number of images done and the total.
      log: called with one line for each note, such as on reused shards.
      preview: called by a dry run with what it knows before it decodes the images: their sizes are 0.

    Returns:
      Counts by split and class.

    Raises:
      UsageError: the options are invalid, on their own or for the dataset in `output`.
      DataError: unusable images or manifest, too many bad images, a worker process that died, or a full disk. The
        dataset is unchanged after any exception, and finished shards are kept in the working folder.
    """
    options = with_split_folders(options)
    manifest = check(options)
    worker_pool.warm_up("convoy.input_pipeline.convert.worker")
    with (options.listing or functools.partial(_listed, options))() as found:
        return _convert(options, manifest, found, progress, log, preview)


@contextlib.contextmanager
def _listed(options: Options) -> Iterator[Sources]:
    """Yields the files or records in `options.images`."""
    if options.prepared:
        splits = tuple(options.split_folders or options.shares)
        yield list_prepared(open_dataset(options.images, options.record_format, default_split=splits[0]), splits)
    else:
        yield list_sources(options.images, options.table, options.split_folders)


def _convert(
    options: Options,
    manifest: dict[str, Any] | None,
    found: Sources,
    progress: Callable[[int, int], None],
    log: Callable[[str], None],
    preview: Callable[[Summary], None],
) -> Summary:
    """Converts the images that were found; `manifest` is that of the dataset, None for a new one."""
    before, earlier_left_out = copy.deepcopy(manifest), quarantine.read(options.output, manifest)
    if options.listing and options.split_folders:  # some may have no usable image, such as test images without labels
        usable = {image.split for image in found.images}
        own = {split: folder for split, folder in options.split_folders.items() if split in usable}
        options = replace(options, split_folders=own)
    for note in _notes_on_splits(options):
        log(note)
    if found.without_suffix and options.table:
        log(
            f"{options.table.path}: {counted(found.without_suffix, 'name has', 'names have')} no suffix, and an image "
            "with one is taken for each."
        )
    for note in found.notes:
        log(note)
    if manifest is None:
        settings = {"image_size": options.image_size or 0, "encoding": options.encoding or "keep"}
        name = options.name or metadata.dataset_name(options.output.absolute().name)
        delimiter = ""
        if options.table and options.table.multi_label:
            delimiter = options.table.label_delimiter or unused_delimiter(found.class_names)
        manifest = metadata.new_manifest(name, found.class_names, settings, label_delimiter=delimiter)
    else:
        found = one_spelling(found, manifest["class_names"])
        _check_classes(found, manifest["class_names"], options)
    duplicates = plan.find_duplicates(found.images)
    leaked = plan.find_known(duplicates.kept, _known_images(options.output, manifest, log))
    images = tuple(image for image in duplicates.kept if image.name not in leaked)
    if not images:
        raise DataError(f"all images of {options.images} are already in another split of {options.output}")
    class_names = manifest["class_names"]

    def summary(
        splits: Iterable[SplitSummary],
        counts: Mapping[str, Sequence[int]],
        shards: Mapping[str, Sequence[Shard]],
        grouped: GroupSummary | None,
    ) -> Summary:
        return Summary(
            splits=tuple(splits),
            classes=tuple(summarize_classes(class_names, counts, shards, duplicates, leaked)),
            duplicates=len(duplicates.dropped),
            leaked=len(leaked),
            conflicts=find_conflicts(duplicates, leaked, _earlier_classes(options.output)),
            ignored=found.ignored,
            missing=len(found.missing),
            quarantined=len(found.bad) + sum(len(shard.bad) for of_split in shards.values() for shard in of_split),
            grouped=grouped,
            left_out=tuple(quarantine.collect(found, options.table, duplicates, leaked, shards)),
        )

    try:
        with _workspace(options) as work:
            _check_unchanged(options.output, before)
            splits, grouped = _divide(options, manifest, images, duplicates.conflicting, work, progress, log)
            tasks = shard_tasks(splits, manifest, options, work)
            if options.dry_run:
                planned = {split: _class_counts(members, class_names) for split, members in splits.items()}
                sizes = (planned_split(split, splits[split], len(tasks[split])) for split in splits)
                preview(summary(sizes, planned, dict.fromkeys(splits, ()), grouped))
            shards = write_shards(tasks, work, options, found.bad, progress=progress, log=log)
            columns = {
                split: concatenated([shard.columns for shard in split_shards]) for split, split_shards in shards.items()
            }
            entries = {
                split: _split_entry(options, split_shards, columns[split], split, len(class_names))
                for split, split_shards in shards.items()
            }
            if grouped:
                for split in entries.keys() & options.drawn.keys():
                    entries[split]["grouped"] = metadata.grouping(options.grouping, grouped)
            manifest["splits"] |= entries
            result = summary(
                (summarize_split(split, entry) for split, entry in entries.items()),
                {split: entry["counts"] for split, entry in entries.items()},
                shards,
                grouped,
            )
            if not options.dry_run:
                if isinstance(options.output, RemotePath):  # not locked: another machine may have written it meanwhile
                    _check_unchanged(options.output, before)
                _publish(work, options, manifest, [*earlier_left_out, *result.left_out], tasks, shards, columns)
            return result
    except OSError as error:
        raise DataError(
            f"--output={options.output} cannot be written: {error.strerror or error}. The dataset is unchanged"
        ) from None


def _check_unchanged(output: Path | RemotePath, manifest: dict[str, Any] | None) -> None:
    """Raises a UsageError if `output` has another manifest than this, or one although this is None."""
    if (read_manifest(output) if has_manifest(output) else None) != manifest:
        raise UsageError(f"--output={output} was changed by another command. Run this one again")


def _workspace(options: Options) -> contextlib.AbstractContextManager[WorkingDirectory]:
    if options.dry_run:
        return publish.unpublished_directory()
    return publish.working_directory(options.output, next(iter(options.shares)))


def _class_counts(images: Sequence[Source], class_names: Sequence[str]) -> list[int]:
    counts = Counter(name for image in images for name in image.classes)
    return [counts[name] for name in class_names]


def _notes_on_splits(options: Options) -> Iterator[str]:
    """Yields what the folders of splits were taken for, and which others have no labels."""
    if not options.split_folders or options.prepared:
        return
    taken = ", ".join(f"{folder} ({split})" for split, folder in options.split_folders.items())
    yield f"{options.images} is a folder of splits: {taken}. --folders=classes takes its folders as classes."
    for folder in find_unlabeled(options.images, options.split_folders):
        yield f"{folder} has images, but no class folders: left out. `convoy predict --images={folder}` labels them."


def _check_classes(found: Sources, class_names: Sequence[str], options: Options) -> None:
    known = set(class_names)
    first_of = {name: image.name for image in reversed(found.images) for name in image.classes}
    new = [name for name in found.class_names if name in first_of and name not in known]
    if new:
        more = f" and {len(new) - 1} more" if len(new) > 1 else ""
        raise DataError(
            f"class {new[0]!r}{more} (first image {first_of[new[0]]}) is not one of the "
            f"{counted(len(class_names), 'class', 'classes')} of {options.output}{did_you_mean(new[0], class_names)}. "
            "All splits share the classes of the first one. Remove the class, or convert all splits again with it"
        )


def _known_images(
    output: Path | RemotePath, manifest: Mapping[str, Any], log: Callable[[str], None]
) -> dict[tuple[int, int], tuple[str, int]]:
    """Returns the images of the existing splits, (split, number of the image) by (bytes, content hash)."""
    known: dict[tuple[int, int], tuple[str, int]] = {}
    for split, entry in manifest["splits"].items():
        facts = read_images(output, split)
        if facts and len(facts["content"]) == entry["num_images"]:
            contents = zip(facts["source_bytes"].tolist(), facts["content"].tolist(), strict=True)
            known |= {content: (split, i) for i, content in enumerate(contents)}
        else:
            path = images_path(output, split)
            log(f"{path}: missing or damaged. Images that split {split!r} also has are not detected.")
    return known


def _earlier_classes(output: Path | RemotePath) -> Callable[[str, int], str]:
    """Returns a function from split and number of an image in a dataset to its category (`Source.category`)."""
    opened = functools.cache(open_dataset)

    def category_of(split: str, number: int) -> str:
        dataset = opened(output)
        return category_text([dataset.class_names[label] for label in dataset.split(split).labels_of(number)])

    return category_of


def _divide(
    options: Options,
    manifest: Mapping[str, Any],
    images: Sequence[Source],
    conflicting: frozenset[str],
    work: WorkingDirectory,
    progress: Callable[[int, int], None],
    log: Callable[[str], None],
) -> tuple[dict[str, tuple[Source, ...]], GroupSummary | None]:
    """Returns the images of each split, and what became of groups of images."""
    own: dict[str, tuple[Source, ...]] = {}
    if options.prepared or options.split_folders:
        names = options.split_folders or options.shares
        own = {split: tuple(image for image in images if image.split == split) for split in names}
    pool = next(iter(own.values()), tuple(images))
    grouped = None
    if options.grouping:
        splits, grouped = groups.divide_grouped(
            pool, options, work, manifest["settings"], together=conflicting, progress=progress, log=log
        )
    else:
        splits = plan.divide(pool, options.drawn, options.seed, together=conflicting)
    splits |= {split: members for split, members in own.items() if split not in splits}
    for split in [split for split, members in splits.items() if own and not members]:
        log(f"Split {split!r}: left out, because other splits have all of its images.")
        del splits[split]
    for split, members in splits.items():
        if not members:
            too_few = f"{counted(len(images), 'image is', 'images are')} too few"
            if grouped and grouped.groups:
                too_few = f"with {options.grouping}, the groups of {grouped.largest} and fewer images are too large"
            fix = "Name fewer splits with --splits" if options.splits else "Pass --validation_fraction=0"
            raise DataError(f"{options.images}: {too_few} for a split {split!r}. {fix}")
    return splits, grouped


def _groups(tasks: Sequence[ShardTask], shards: Sequence[Shard]) -> list[str]:
    """Returns the group of each record, "" for none."""
    bad = {image.name for shard in shards for image, _ in shard.bad}
    return [image.group for task in tasks for image in task.images if image.name not in bad]


def _split_entry(
    options: Options, shards: Sequence[Shard], columns: Mapping[str, np.ndarray], split: str, num_classes: int
) -> dict[str, Any]:
    """Returns the manifest's entry of a split."""
    num_images = len(columns["offset"])
    if not num_images:
        image, why = shards[0].bad[0]
        raise DataError(f"split {split!r} has no usable image ({image.name}: {why}). Fix its images")
    counts = np.bincount(columns["label"], minlength=num_classes).tolist()
    multi_label = NUM_LABELS in columns
    weights = metadata.positive_weights(counts, num_images) if multi_label else metadata.class_weights(counts)
    return {
        "seed": options.seed,
        "num_images": num_images,
        "counts": counts,
        **({"labels_per_image": np.bincount(columns[NUM_LABELS]).tolist()} if multi_label else {}),
        "class_weights": weights,
        "shards": [
            {"file": shard.path.name, "images": shard.num_records, "bytes": shard.size, "sha256": shard.sha256}
            for shard in shards
        ],
    }


def _publish(
    work: WorkingDirectory,
    options: Options,
    manifest: Mapping[str, Any],
    left_out: Sequence[quarantine.LeftOut],
    tasks: Mapping[str, Sequence[ShardTask]],
    shards: Mapping[str, Sequence[Shard]],
    columns: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Writes what belongs to the shards, and makes all of it the dataset, or further splits of it."""
    for split, of_split in columns.items():
        metadata.write_index(work.dataset, split, of_split)
        metadata.write_images(work.dataset, split, of_split, _groups(tasks[split], shards[split]))
    quarantine.write(work.dataset, left_out)
    _write_report(work, options, manifest, left_out, shards, columns)
    metadata.write_descriptions(work.dataset, manifest)
    publish.publish(work, options.output)


def _write_report(
    work: WorkingDirectory,
    options: Options,
    manifest: Mapping[str, Any],
    left_out: Sequence[quarantine.LeftOut],
    shards: Mapping[str, Sequence[Shard]],
    columns: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Writes the report on all splits, including the earlier ones."""
    from convoy.input_pipeline.report.page import REPORT, write_report  # imports the template engine

    splits: dict[str, Split] = {}
    images: dict[str, Mapping[str, np.ndarray]] = {}
    if len(manifest["splits"]) > len(shards):
        earlier = open_dataset(options.output)
        splits = {name: earlier.split(name) for name in earlier.splits}
        images = {name: read_images(options.output, name) for name in earlier.splits}
    for split, split_shards in shards.items():
        splits[split] = Split.from_index(
            split, [shard.path for shard in split_shards], columns[split], num_classes=len(manifest["class_names"])
        )
        images[split] = {name: columns[split][name] for name in IMAGE_TYPES}
    write_report(
        work.dataset / REPORT,
        manifest=manifest,
        splits=splits,
        quarantine=[vars(entry) for entry in left_out],
        images=images,
        sources={} if options.listing else dict.fromkeys(shards, options.images),
    )
