"""Conversion of images to a dataset directory: plan, write the shards, publish all or nothing.

    summary = convert(Options(images=Path("photos/train"), output=Path("data")))

The plan (`plan`) assigns each image to a split and a shard, and can keep groups of images together (`groups`). Worker
processes (`worker`) write the shards into a working folder (`publish`). When all shards are written, the files are
renamed into place, the manifest last. An interrupted conversion leaves the dataset unchanged, and the next one reuses
its finished shards (`marks`).
"""

import copy
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convoy.core.errors import DataError, UsageError, did_you_mean
from convoy.core.text import counted
from convoy.input_pipeline.convert import groups, marks, metadata, plan, publish, quarantine
from convoy.input_pipeline.convert.marks import Shard
from convoy.input_pipeline.convert.options import Options, check, with_split_folders
from convoy.input_pipeline.convert.publish import WorkingDirectory
from convoy.input_pipeline.convert.sources import Source, Sources, list_sources, one_spelling
from convoy.input_pipeline.convert.split_folders import find_unlabeled
from convoy.input_pipeline.convert.stream import Images, spooled
from convoy.input_pipeline.convert.summary import (
    GroupSummary,
    Summary,
    find_conflicts,
    summarize_classes,
    summarize_split,
)
from convoy.input_pipeline.convert.tfds_sources import list_prepared
from convoy.input_pipeline.convert.worker import ShardTask, write_shard
from convoy.input_pipeline.dataset.image_facts import IMAGE_TYPES, images_path, read_images
from convoy.input_pipeline.dataset.index import NUM_LABELS, concatenated
from convoy.input_pipeline.dataset.label_sets import unused_delimiter
from convoy.input_pipeline.dataset.open import Split, has_manifest, open_dataset, read_manifest
from convoy.input_pipeline.images import worker_pool
from convoy.input_pipeline.images.pixels import Limits, Pixels

_LISTED = 3  # bad images that an error lists


def convert(
    options: Options,
    progress: Callable[[int, int], None] = lambda done, total: None,
    log: Callable[[str], None] = lambda line: None,
    stream: Images | None = None,
) -> Summary:
    """Converts images to a new dataset directory, or to further splits of one.

    Args:
      options: what to convert, and how.
      progress: called ten times per second with the number of images done and the total.
      log: called with one line for each note, such as on reused shards.
      stream: (bytes, category) of each image, read once (`stream`), in place of those in `options.images`, which then
        only names them in messages.

    Returns:
      Counts by split and class.

    Raises:
      UsageError: the options are invalid, on their own or for the dataset in `output`.
      DataError: unusable images or manifest, too many bad images, a worker process that died, or a full disk. The
        dataset is unchanged after any exception, and finished shards are kept in the working folder.
    """
    options = with_split_folders(options) if stream is None else options
    manifest = check(options)
    if stream is not None:
        log(f"{options.images}: copying the images to a temporary file next to {options.output}.")
        with spooled(stream, name=str(options.images), output=options.output) as found:
            return _convert(options, manifest, found, progress, log)
    found = (
        list_prepared(options.images, tuple(options.split_folders or options.shares), options.record_format)
        if options.prepared
        else list_sources(options.images, options.table, options.split_folders)
    )
    return _convert(options, manifest, found, progress, log)


def _convert(
    options: Options,
    manifest: dict[str, Any] | None,
    found: Sources,
    progress: Callable[[int, int], None],
    log: Callable[[str], None],
) -> Summary:
    """Converts the images that were found; `manifest` is that of the dataset, None for a new one."""
    before, earlier_left_out = copy.deepcopy(manifest), quarantine.read(options.output, manifest)
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
    worker_pool.warm_up("convoy.input_pipeline.convert.worker")
    duplicates = plan.find_duplicates(found.images)
    leaked = plan.find_known(duplicates.kept, _known_images(options.output, manifest, log))
    images = tuple(image for image in duplicates.kept if image.name not in leaked)
    if not images:
        raise DataError(f"all images of {options.images} are already in another split of {options.output}")
    try:
        with publish.working_directory(options.output, next(iter(options.shares))) as work:
            if (read_manifest(options.output) if has_manifest(options.output) else None) != before:
                raise UsageError(f"--output={options.output} was changed by another command. Run this one again")
            splits, grouped = _divide(options, manifest, images, duplicates.conflicting, work, progress, log)
            tasks = _tasks(work, _shards(options, manifest, splits), manifest, options.limits)
            shards = _write_shards(tasks, work, options, progress=progress, log=log)
            columns = {
                split: concatenated([shard.columns for shard in split_shards]) for split, split_shards in shards.items()
            }
            for split, split_shards in shards.items():
                manifest["splits"][split] = _split_entry(
                    options, split_shards, columns[split], split, len(manifest["class_names"])
                )
                if grouped and split in options.drawn:
                    manifest["splits"][split]["grouped"] = metadata.grouping(options.grouping, grouped)
                metadata.write_index(work.dataset, split, columns[split])
                metadata.write_images(work.dataset, split, columns[split])
            left_out = [*earlier_left_out, *quarantine.collect(found, options.table, duplicates, leaked, shards)]
            quarantine.write(work.dataset, left_out)
            _write_report(work, options, manifest, left_out, shards, columns)
            metadata.write_descriptions(work.dataset, manifest)
            publish.publish(work, options.output)
    except OSError as error:
        raise DataError(
            f"--output={options.output} cannot be written: {error.strerror or error}. The dataset is unchanged"
        ) from None
    return Summary(
        splits=tuple(summarize_split(split, manifest["splits"][split]) for split in shards),
        classes=tuple(summarize_classes(manifest, shards, duplicates, leaked)),
        duplicates=len(duplicates.dropped),
        leaked=len(leaked),
        conflicts=find_conflicts(duplicates, leaked, _earlier_classes(options.output)),
        ignored=found.ignored,
        missing=len(found.missing),
        quarantined=sum(len(shard.bad) for split_shards in shards.values() for shard in split_shards),
        grouped=grouped,
    )


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
    output: Path, manifest: Mapping[str, Any], log: Callable[[str], None]
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


def _earlier_classes(output: Path) -> Callable[[str, int], str]:
    """Returns a function from split and number of an image in a dataset to its category (`Source.category`)."""
    opened = functools.cache(open_dataset)

    def category_of(split: str, number: int) -> str:
        dataset = opened(output)
        return " + ".join(dataset.class_names[label] for label in dataset.split(split).labels_of(number))

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


def _shards(
    options: Options, manifest: Mapping[str, Any], splits: Mapping[str, Sequence[Source]]
) -> dict[str, tuple[tuple[Source, ...], ...]]:
    """Returns the images of each shard of each split."""
    return {
        split: plan.assign_shards(
            split_images,
            split=split,
            seed=options.seed,
            total_bytes=_estimated_bytes(split_images, manifest["settings"]),
            shards=options.shards,
        )
        for split, split_images in splits.items()
    }


def _estimated_bytes(images: Sequence[Source], settings: Mapping[str, Any]) -> int:
    pixels = 3 * settings["image_size"] ** 2
    if settings["encoding"] == "raw":
        # A JPEG of a photograph has about a tenth of the bytes of its pixels.
        return len(images) * pixels if pixels else 10 * sum(image.size for image in images)
    return sum(min(image.size, pixels) if pixels else image.size for image in images)


def _tasks(
    work: WorkingDirectory,
    splits: Mapping[str, Sequence[tuple[Source, ...]]],
    manifest: Mapping[str, Any],
    limits: Limits,
) -> dict[str, list[ShardTask]]:
    label_of = {name: label for label, name in enumerate(manifest["class_names"])}
    pixels = Pixels(manifest["settings"]["image_size"], manifest["settings"]["encoding"], limits)
    settings = manifest["settings"] if limits == Limits() else {**manifest["settings"], **vars(limits)}
    tasks: dict[str, list[ShardTask]] = {}
    for split, shards in splits.items():
        tasks[split] = []
        for i, images in enumerate(shards):
            name = metadata.shard_name(manifest["name"], split, i, len(shards))
            labels = tuple(_label(image, label_of) for image in images)
            tasks[split].append(
                ShardTask(
                    path=work.dataset / name,
                    mark=work.marks / name,
                    fingerprint=marks.fingerprint(images, labels, settings),
                    images=images,
                    labels=labels,
                    pixels=pixels,
                )
            )
    return tasks


def _label(image: Source, label_of: Mapping[str, int]) -> marks.Label:
    if image.labels is None:
        return label_of[image.category]
    return tuple(label_of[name] for name in image.labels)


def _write_shards(
    tasks: Mapping[str, Sequence[ShardTask]],
    work: WorkingDirectory,
    options: Options,
    *,
    progress: Callable[[int, int], None],
    log: Callable[[str], None],
) -> dict[str, list[Shard]]:
    """Writes the shards that no earlier conversion has finished; returns all shards by split, in order."""
    all_tasks = [task for split_tasks in tasks.values() for task in split_tasks]
    total = sum(len(task.images) for task in all_tasks)
    # Splits drawn from one folder share its quality; splits of a TFDS dataset are judged separately.
    totals = Counter(image.split for task in all_tasks for image in task.images)
    marked = work.finished()
    reused = {task.path: marks.read(task.mark, task.path, task.images, task.fingerprint) for task in all_tasks}
    done = {path: shard for path, shard in reused.items() if shard}
    work.keep_only({path.name for path in done})
    if marked:
        outdated = len(marked) - len(done)
        changed = f" ({outdated} outdated: images or settings have changed)" if outdated else ""
        log(f"Earlier conversion: reusing {len(done)} of its {counted(len(marked), 'finished shard')}{changed}.")

    def check_bad(shards: Sequence[Shard]) -> None:
        bad: dict[str, list[tuple[Source, str]]] = {}
        for shard in (*done.values(), *shards):
            for image, why in shard.bad:
                bad.setdefault(image.split, []).append((image, why))
        for split, split_bad in bad.items():
            if len(split_bad) > options.max_bad_fraction * totals[split]:
                raise DataError(_too_many_bad(split_bad, totals[split], options.max_bad_fraction))

    check_bad([])
    remaining = [task for task in all_tasks if task.path not in done]
    before = sum(len(task.images) for task in all_tasks if task.path in done)
    if remaining:
        progress(before, total)
        written = worker_pool.run(
            write_shard,
            remaining,
            workers=options.workers,
            progress=lambda images: progress(before + images, total),
            place=lambda task, images: task.images[min(images, len(task.images) - 1)].name,
            check=check_bad,
            rerun_note=", and resumes from the finished shards",
        )
        done |= {task.path: shard for task, shard in zip(remaining, written, strict=True)}
    return {split: [done[task.path] for task in split_tasks] for split, split_tasks in tasks.items()}


def _too_many_bad(bad: Sequence[tuple[Source, str]], total: int, max_bad_fraction: float) -> str:
    listed = "; ".join(f"{image.name}: {why}" for image, why in sorted(bad, key=lambda pair: pair[0].name)[:_LISTED])
    return (
        f"at least {len(bad)} of {counted(total, 'image')} cannot be used, more than "
        f"--max_bad_fraction={max_bad_fraction:g} allows ({listed}). Fix or remove them, or raise --max_bad_fraction"
    )


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
        sources=dict.fromkeys(shards, options.images),
    )
