"""Images to a dataset directory: plan, then work, then all or nothing.

    summary = convert(Options(images=Path("photos/train"), output=Path("data")))

The plan (`plan`) settles which image goes into which shard. Worker processes (`worker`) write the shards into a folder
beside the dataset, or in it when splits are added (`publish`); only when all is there do the files take their names,
the manifest last. Whoever stops a conversion finds what was there before it, and the next one goes on from the shards
that are whole (`marks`).
"""

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convoy.core.errors import DataError, UsageError, did_you_mean
from convoy.core.files import write_whole
from convoy.input_pipeline.convert import marks, metadata, plan, publish
from convoy.input_pipeline.convert.marks import Shard
from convoy.input_pipeline.convert.options import Options, check
from convoy.input_pipeline.convert.publish import WorkingDirectory
from convoy.input_pipeline.convert.sources import Source, Sources, list_sources
from convoy.input_pipeline.convert.tfds_sources import list_prepared
from convoy.input_pipeline.convert.worker import ShardTask, write_shard
from convoy.input_pipeline.dataset.open import INDEX_TYPES, QUARANTINE, Split, has_manifest, open_dataset, read_manifest
from convoy.input_pipeline.images import worker_pool
from convoy.input_pipeline.images.pixels import Pixels

_NAMED = 3


@dataclass(frozen=True)
class SplitSummary:
    """What was written of one split; `size` in bytes."""

    name: str
    images: int
    classes: int
    shards: int
    size: int


@dataclass(frozen=True)
class ClassSummary:
    """What became of a class's images: how many are in each split, of which some were encoded anew, or left out."""

    name: str
    kept: Mapping[str, int]
    changed: int
    duplicates: int
    quarantined: int


@dataclass(frozen=True)
class Summary:
    """What a conversion did.

    Attributes:
      splits: that were written.
      classes: of the dataset.
      duplicates: images left out because one with the same bytes and category is there.
      leaked: images left out because a split that was there before has one with the same bytes.
      conflicting: images that were kept although another has the same bytes under another category.
      ignored: files left aside: not named by the CSV, or no image by their name.
      missing: files that the CSV names and that are not there.
      quarantined: images that cannot be used.
    """

    splits: tuple[SplitSummary, ...]
    classes: tuple[ClassSummary, ...]
    duplicates: int
    leaked: int
    conflicting: int
    ignored: int
    missing: int
    quarantined: int


@dataclass(frozen=True)
class _LeftOut:
    """An image that does not come into the dataset, as a line of quarantine.jsonl."""

    split: str
    path: str
    category: str
    reason: str


def convert(
    options: Options,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Converts images to a new dataset directory, or to further splits of one.

    Args:
      options: what and how.
      progress: called ten times a second with the number of images done and of all to do.
      say: called with a line on what an earlier conversion has left.

    Returns:
      What was done.

    Raises:
      UsageError: options that cannot work, on their own or with what `output` holds.
      DataError: images or a manifest that cannot be used, too many bad images, a worker process that died, or a full
        disk. Whatever is raised, `output` is as it was before, and shards that are whole are kept beside it.
    """
    manifest = check(options)
    before, quarantine = copy.deepcopy(manifest), _quarantine(options, manifest)
    found = (
        list_prepared(options.images, tuple(options.shares))
        if options.prepared
        else list_sources(options.images, options.table)
    )
    if manifest is None:
        settings = {"image_size": options.image_size or 0, "encoding": options.encoding or "keep"}
        name = options.name or metadata.dataset_name(options.output.absolute().name)
        manifest = metadata.new_manifest(name, found.class_names, settings)
    else:
        _check_classes(found, manifest["class_names"], options)
    worker_pool.warm_up("convoy.input_pipeline.convert.worker")
    duplicates = plan.find_duplicates(found.images)
    leaked = plan.find_known(duplicates.kept, _known_images(options, manifest, say))
    images = tuple(image for image in duplicates.kept if image.name not in leaked)
    splits = _plan(options, manifest, images, duplicates.conflicting, say)
    try:
        with publish.working_directory(options.output, next(iter(options.shares))) as work:
            if (read_manifest(options.output) if has_manifest(options.output) else None) != before:
                raise UsageError(f"--output={options.output} has changed meanwhile: start the same command again")
            tasks = _tasks(work, splits, manifest)
            shards = _work(tasks, work, options, progress=progress, say=say)
            columns = {split: _columns(of_split) for split, of_split in shards.items()}
            for split, of_split in shards.items():
                manifest["splits"][split] = _split_entry(
                    options, of_split, columns[split], split, len(manifest["class_names"])
                )
                metadata.write_index(work.dataset, split, columns[split])
                metadata.write_images(work.dataset, split, columns[split])
            left_out = quarantine + list(_left_out(options, found, duplicates, leaked, shards))
            lines = "".join(json.dumps(vars(one)) + "\n" for one in left_out)
            write_whole(work.dataset / QUARANTINE, lines.encode("ascii"))
            _write_report(work, options, manifest, left_out, shards, columns)
            metadata.write_descriptions(work.dataset, manifest)
            publish.publish(work, options.output)
    except OSError as error:
        raise DataError(
            f"--output={options.output} cannot be written: {error.strerror or error}; it is as it was before"
        ) from None
    return Summary(
        splits=tuple(_summary(split, manifest["splits"][split]) for split in shards),
        classes=tuple(_class_summaries(manifest, shards, duplicates, leaked)),
        duplicates=len(duplicates.dropped),
        leaked=len(leaked),
        conflicting=len(duplicates.conflicting - leaked.keys()),
        ignored=found.ignored,
        missing=len(found.missing),
        quarantined=sum(len(shard.bad) for of_split in shards.values() for shard in of_split),
    )


def _check_classes(found: Sources, class_names: Sequence[str], options: Options) -> None:
    known = set(class_names)
    of_class = {image.category: image.name for image in reversed(found.images)}
    new = [name for name in found.class_names if name in of_class and name not in known]
    if new:
        first = of_class[new[0]]
        raise DataError(
            f"class {new[0]!r}{f' and {len(new) - 1} more' if len(new) > 1 else ''} (first image {first}) is not "
            f"one of the {len(class_names)} classes of {options.output}{did_you_mean(new[0], class_names)}. "
            "A split has the classes of the first one, or some of them; convert all anew with the new class"
        )


def _known_images(
    options: Options, manifest: Mapping[str, Any], say: Callable[[str], None]
) -> dict[tuple[int, int], tuple[str, int]]:
    """Returns the images of the splits that are there, (split, number) by (bytes, hash) of their files."""
    known = {}
    for split, entry in manifest["splits"].items():
        facts = metadata.read_images(options.output, split)
        if facts and len(facts["content"]) == entry["num_images"]:
            contents = zip(facts["source_bytes"].tolist(), facts["content"].tolist(), strict=True)
            known |= {content: (split, i) for i, content in enumerate(contents)}
        else:
            path = metadata.images_path(options.output, split)
            say(f"{path} is missing or damaged: images that split {split!r} has too are not found.")
    return known


def _plan(
    options: Options,
    manifest: Mapping[str, Any],
    images: Sequence[Source],
    conflicting: frozenset[str],
    say: Callable[[str], None],
) -> dict[str, tuple[tuple[Source, ...], ...]]:
    """Returns the images of each shard of each split."""
    if not images:
        raise DataError(f"all images of {options.images} are in {options.output} already, in another split")
    if options.prepared:
        splits = {split: tuple(image for image in images if image.split == split) for split in options.shares}
        for split in [split for split, of_split in splits.items() if not of_split]:
            say(f"Split {split!r} is left out: other splits have all of its images.")
            del splits[split]
    else:
        splits = plan.divide(images, options.shares, options.seed, together=conflicting)
    for split, of_split in splits.items():
        if not of_split:
            fix = "name fewer with --splits" if options.splits else "add --validation_fraction=0"
            raise DataError(f"{options.images} has too few images ({len(images)}) to split any off for {split}; {fix}")
    return {
        split: plan.assign_shards(
            of_split,
            split=split,
            seed=options.seed,
            total_bytes=_estimated_bytes(of_split, manifest["settings"]),
            shards=options.shards,
        )
        for split, of_split in splits.items()
    }


def _estimated_bytes(images: Sequence[Source], settings: Mapping[str, Any]) -> int:
    pixels = 3 * settings["image_size"] ** 2
    if settings["encoding"] == "raw":
        # A photograph's JPEG is about a tenth of its pixels.
        return len(images) * pixels if pixels else 10 * sum(image.size for image in images)
    return sum(min(image.size, pixels) if pixels else image.size for image in images)


def _tasks(
    work: WorkingDirectory, splits: Mapping[str, Sequence[tuple[Source, ...]]], manifest: Mapping[str, Any]
) -> dict[str, list[ShardTask]]:
    label_of = {name: label for label, name in enumerate(manifest["class_names"])}
    pixels = Pixels(manifest["settings"]["image_size"], manifest["settings"]["encoding"])
    tasks: dict[str, list[ShardTask]] = {}
    for split, shards in splits.items():
        tasks[split] = []
        for i, images in enumerate(shards):
            name = metadata.shard_name(manifest["name"], split, i, len(shards))
            labels = tuple(label_of[image.category] for image in images)
            tasks[split].append(
                ShardTask(
                    path=work.dataset / name,
                    mark=work.marks / name,
                    fingerprint=marks.fingerprint(images, labels, manifest["settings"]),
                    images=images,
                    labels=labels,
                    pixels=pixels,
                )
            )
    return tasks


def _work(
    tasks: Mapping[str, Sequence[ShardTask]],
    work: WorkingDirectory,
    options: Options,
    *,
    progress: Callable[[int, int], None],
    say: Callable[[str], None],
) -> dict[str, list[Shard]]:
    """Has the tasks done that no earlier conversion has done, and returns the shards by split, in order."""
    flat = [task for of_split in tasks.values() for task in of_split]
    total = sum(len(task.images) for task in flat)
    # Splits drawn from one folder are as good as it is; those that come as splits are judged one by one.
    totals = Counter(image.split for task in flat for image in task.images)
    marked = work.finished()
    kept = {task.path: marks.read(task.mark, task.path, task.images, task.fingerprint) for task in flat}
    done = {path: shard for path, shard in kept.items() if shard}
    work.keep_only({path.name for path in done})
    if marked:
        changed = "" if len(done) == len(marked) else f", and {len(marked) - len(done)} not: something has changed"
        say(f"An earlier conversion was stopped: {len(done)} of its {len(marked)} whole shards are used{changed}.")

    def check_bad(shards: Sequence[Shard]) -> None:
        bad: dict[str, list[tuple[Source, str]]] = {}
        for image, why in (one for shard in (*done.values(), *shards) for one in shard.bad):
            bad.setdefault(image.split, []).append((image, why))
        for split, of_split in bad.items():
            if len(of_split) > options.max_bad_fraction * totals[split]:
                raise DataError(_too_many_bad(of_split, totals[split], options.max_bad_fraction))

    check_bad([])
    left = [task for task in flat if task.path not in done]
    before = sum(len(task.images) for task in flat if task.path in done)
    if left:
        progress(before, total)
        written = worker_pool.run(
            write_shard,
            left,
            workers=options.workers,
            progress=lambda images: progress(before + images, total),
            place=lambda task, images: task.images[min(images, len(task.images) - 1)].name,
            check=check_bad,
            besides=", and goes on from the shards that are done",
        )
        done |= {task.path: shard for task, shard in zip(left, written, strict=True)}
    return {split: [done[task.path] for task in of_split] for split, of_split in tasks.items()}


def _too_many_bad(bad: Sequence[tuple[Source, str]], total: int, max_bad_fraction: float) -> str:
    named = "; ".join(f"{image.name}: {why}" for image, why in sorted(bad, key=lambda pair: pair[0].name)[:_NAMED])
    return (
        f"at least {len(bad)} of {total} images cannot be used, more than --max_bad_fraction={max_bad_fraction:g} "
        f"allows ({named}). Mend or remove them, or allow more"
    )


def _columns(shards: Sequence[Shard]) -> dict[str, np.ndarray]:
    """Returns a split's arrays, as `INDEX_TYPES` and `IMAGE_TYPES`."""
    columns = {
        name: np.concatenate([shard.columns[name] for shard in shards])
        for name in (INDEX_TYPES | metadata.IMAGE_TYPES)
        if name != "shard"
    }
    columns["shard"] = np.repeat(np.arange(len(shards)), [shard.num_records for shard in shards])
    return columns


def _split_entry(
    options: Options, shards: Sequence[Shard], columns: Mapping[str, np.ndarray], split: str, num_classes: int
) -> dict[str, Any]:
    """Returns a split's entry in the manifest."""
    if not len(columns["label"]):
        raise DataError(f"no image of split {split!r} can be used; the first: {shards[0].bad[0][1]}")
    counts = np.bincount(columns["label"], minlength=num_classes).tolist()
    return {
        "seed": options.seed,
        "num_images": len(columns["label"]),
        "counts": counts,
        "class_weights": metadata.class_weights(counts),
        "shards": [
            {"file": shard.path.name, "images": shard.num_records, "bytes": shard.size, "sha256": shard.sha256}
            for shard in shards
        ],
    }


def _summary(split: str, entry: Mapping[str, Any]) -> SplitSummary:
    return SplitSummary(
        name=split,
        images=entry["num_images"],
        classes=sum(1 for count in entry["counts"] if count),
        shards=len(entry["shards"]),
        size=sum(shard["bytes"] for shard in entry["shards"]),
    )


def _class_summaries(
    manifest: Mapping[str, Any],
    shards: Mapping[str, Sequence[Shard]],
    duplicates: plan.Duplicates,
    leaked: Mapping[str, tuple[str, int]],
) -> Iterator[ClassSummary]:
    changed: Counter[int] = Counter()
    quarantined: Counter[str] = Counter()
    for shard in (shard for of_split in shards.values() for shard in of_split):
        changed.update(shard.columns["label"][shard.columns["changed"]].tolist())
        quarantined.update(image.category for image, _ in shard.bad)
    left_out = Counter(image.category for image, _ in duplicates.dropped)
    left_out.update(image.category for image in duplicates.kept if image.name in leaked)
    for label, name in enumerate(manifest["class_names"]):
        kept = {split: manifest["splits"][split]["counts"][label] for split in shards}
        yield ClassSummary(name, kept, changed[label], left_out[name], quarantined[name])


def _left_out(
    options: Options,
    found: Sources,
    duplicates: plan.Duplicates,
    leaked: Mapping[str, tuple[str, int]],
    shards: Mapping[str, Sequence[Shard]],
) -> Iterator[_LeftOut]:
    first = next(iter(shards))
    for name in found.stray:
        reason = f"not named by {options.table.path.name}" if options.table else "not an image by its name"
        yield _LeftOut(first, name, "", reason)
    for name, category in found.missing:
        yield _LeftOut(first, name, category, f"named by {options.table.path.name}, and not there")
    for image, kept in duplicates.dropped:
        yield _LeftOut(image.split or first, image.name, image.category, f"same bytes as {kept.name}")
    for image in duplicates.kept:
        if image.name in leaked:
            split, number = leaked[image.name]
            reason = f"same bytes as image {number} of split {split}"
            yield _LeftOut(image.split or first, image.name, image.category, reason)
    for split, of_split in shards.items():
        for shard in of_split:
            for image, reason in shard.bad:
                yield _LeftOut(split, image.name, image.category, reason)


def _quarantine(options: Options, manifest: Mapping[str, Any] | None) -> list[_LeftOut]:
    """Returns what the dataset's quarantine holds of the splits that are there."""
    path = options.output / QUARANTINE
    if manifest is None or not path.exists():
        return []
    try:
        left_out = [_LeftOut(**json.loads(line)) for line in path.read_text(encoding="ascii").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}); mend it, or move it away and lose what it lists") from None
    # A conversion that was killed while it published may have left lines of its split.
    return [one for one in left_out if one.split in manifest["splits"]]


def _write_report(
    work: WorkingDirectory,
    options: Options,
    manifest: Mapping[str, Any],
    left_out: Sequence[_LeftOut],
    shards: Mapping[str, Sequence[Shard]],
    columns: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Writes the report on all splits, those that were there before among them."""
    from convoy.input_pipeline.report.page import REPORT, write_report  # its template engine takes a moment to import

    splits, images = {}, {}
    if len(manifest["splits"]) > len(shards):
        before = open_dataset(options.output)
        splits = {name: before.split(name) for name in before.splits}
        images = {name: metadata.read_images(options.output, name) for name in before.splits}
    for split, of_split in shards.items():
        index = {name: columns[split][name].astype(dtype) for name, dtype in INDEX_TYPES.items()}
        splits[split] = Split(split, tuple(shard.path for shard in of_split), **index)
        images[split] = {name: columns[split][name] for name in metadata.IMAGE_TYPES}
    write_report(
        work.dataset / REPORT,
        manifest=manifest,
        splits=splits,
        quarantine=[vars(one) for one in left_out],
        images=images,
        sources=dict.fromkeys(shards, options.images),
    )
