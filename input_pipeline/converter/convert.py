"""Images to a dataset directory: plan, then work, then all or nothing.

    summary = convert(Options(images=Path("photos/train"), output=Path("data")))

The plan (`plan`) settles which image goes into which shard. Worker processes (`worker`) write the shards
into a folder beside the dataset, or in it when a split is added; only when all is there do the files take their names,
the manifest last. Whoever interrupts a conversion finds what was there before it.
"""

import contextlib
import json
import multiprocessing
import multiprocessing.forkserver
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.converter import metadata, publish, worker
from input_pipeline.converter.plan import Duplicates, assign_shards, find_duplicates, split_off
from input_pipeline.converter.worker import Shard, ShardTask
from input_pipeline.dataset import INDEX_TYPES, MANIFEST, QUARANTINE, open_dataset
from input_pipeline.errors import DataError, UsageError, did_you_mean
from input_pipeline.pixels import Pixels
from input_pipeline.processes import interrupts_deferred, interrupts_ignored, usable_cores
from input_pipeline.sources import Source, Sources, list_sources

ENCODINGS = ("keep", "jpeg", "png", "raw")
VALIDATION = "validation"
_POLL_SECONDS = 0.1
_NAMED = 3


@dataclass(frozen=True)
class Options:
    """What to convert, and how.

    Attributes:
      images: the folder of images.
      output: the dataset directory, new or to be given another split.
      manifest: a CSV that says which image is what; without it each folder in `images` is a class.
      split: the split to write.
      validation_fraction: share of the images, in [0, 1), that goes into the split `validation`. None is 0.1 for the
        split `train` and 0 for others.
      image_size: side of the square images are resized to, aspect ratio not kept; 0 leaves them their size. None is
        what the dataset has, or 0.
      encoding: one of `ENCODINGS`. None is what the dataset has, or "keep".
      workers: processes; 0 is one a core. The result does not depend on it.
      seed: of the validation split and of the order within the shards.
      max_bad_fraction: the share of the images listed that may turn out not to be decodable.
      name: of the dataset, as in the shards' file names; None is what the dataset has, or the folder's own.
      shards: of each split; 0 chooses.
      filename_column: of the manifest.
      category_column: of the manifest.
    """

    images: Path
    output: Path
    manifest: Path | None = None
    split: str = "train"
    validation_fraction: float | None = None
    image_size: int | None = None
    encoding: str | None = None
    workers: int = 0
    seed: int = 0
    max_bad_fraction: float = 0.01
    name: str | None = None
    shards: int = 0
    filename_column: str = "filename"
    category_column: str = "category"


@dataclass(frozen=True)
class SplitSummary:
    """What was written of one split; `size` in bytes."""

    name: str
    images: int
    classes: int
    shards: int
    size: int


@dataclass(frozen=True)
class Summary:
    """What a conversion did: images left out as `duplicates` and `quarantined`, files left aside as `ignored`.

    `conflicting` counts images that were kept although another has the same bytes under another category.
    """

    splits: tuple[SplitSummary, ...]
    class_names: tuple[str, ...]
    duplicates: int
    conflicting: int
    ignored: int
    quarantined: int


def convert(options: Options, progress: Callable[[int, int], None] = lambda done, total: None) -> Summary:
    """Converts images to a new dataset directory, or to another split of one.

    Args:
      options: what and how.
      progress: called ten times a second with the number of images done and of all to do.

    Returns:
      What was done.

    Raises:
      UsageError: options that cannot work, on their own or with what `output` holds.
      DataError: images or a manifest that cannot be used, too many bad images, a worker process that died, or a full
        disk. Whatever is raised, `output` is as it was before.
    """
    manifest = _checked(options)
    found = list_sources(
        options.images,
        options.manifest,
        filename_column=options.filename_column,
        category_column=options.category_column,
    )
    if manifest is None:
        settings = {"image_size": options.image_size or 0, "encoding": options.encoding or "keep"}
        name = options.name or metadata.dataset_name(options.output.absolute().name)
        manifest = metadata.new_manifest(name, found.class_names, settings)
    else:
        _check_classes(found, manifest["class_names"], options.output)
    # The server that workers are forked from imports TensorFlow while the plan is made.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["input_pipeline.converter.decoder", "input_pipeline.converter.worker"])
    with interrupts_ignored():  # by the server, from its first moment on
        multiprocessing.forkserver.ensure_running()
    duplicates = find_duplicates(found.images)
    splits = _plan(options, manifest, duplicates)
    try:
        with publish.partial_directory(options.output) as partial:
            shards = _work(
                context, _tasks(partial, splits, manifest), options, total=len(duplicates.kept), progress=progress
            )
            for split, of_split in shards.items():
                manifest["splits"][split] = _split_entry(partial, options, split, of_split, manifest["class_names"])
            _write_quarantine(partial, options, found, duplicates, shards)
            metadata.write_descriptions(partial, manifest)
            publish.publish(partial, options.output)
    except OSError as error:
        raise DataError(
            f"--output={options.output} cannot be written: {error.strerror or error}; it is as it was before"
        ) from None
    return Summary(
        splits=tuple(_summary(split, manifest["splits"][split]) for split in shards),
        class_names=tuple(manifest["class_names"]),
        duplicates=len(duplicates.dropped),
        conflicting=len(duplicates.conflicting),
        ignored=found.ignored,
        quarantined=sum(len(shard.bad) for of_split in shards.values() for shard in of_split),
    )


def _checked(options: Options) -> dict[str, Any] | None:
    """Checks the options and returns the manifest of the dataset that `output` holds, or None for a new one."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", options.split) or options.split == "all":
        raise UsageError(f"--split={options.split}: a split's name is letters, digits and underscores, and not 'all'")
    if options.encoding is not None and options.encoding not in ENCODINGS:
        raise UsageError(
            f"--encoding={options.encoding}{did_you_mean(options.encoding, ENCODINGS)}: one of {', '.join(ENCODINGS)}"
        )
    if not 0 <= _validation_fraction(options) < 1:
        raise UsageError(f"--validation_fraction={options.validation_fraction}: at least 0 and below 1")
    if not 0 <= options.max_bad_fraction <= 1:
        raise UsageError(f"--max_bad_fraction={options.max_bad_fraction}: from 0 to 1")
    for flag in ("image_size", "workers", "shards"):
        if (getattr(options, flag) or 0) < 0:
            raise UsageError(f"--{flag}={getattr(options, flag)}: 0 or more")
    if options.name is not None and metadata.dataset_name(options.name) != options.name:
        raise UsageError(
            f"--name={options.name}: lower case letters, digits and underscores, a letter first, "
            f"such as --name={metadata.dataset_name(options.name)}"
        )
    if options.split == VALIDATION and _validation_fraction(options):
        raise UsageError(f"--split={VALIDATION} with --validation_fraction: the share would go into the same split")
    output = options.output
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if not (output / MANIFEST).is_file():
        raise UsageError(
            f"--output={output} exists and is not a dataset (it has no {MANIFEST}): name a new folder, or an empty one"
        )
    manifest = dict(open_dataset(output).manifest)
    _check_fits(options, manifest)
    return manifest


def _check_fits(options: Options, manifest: dict[str, Any]) -> None:
    existing = sorted(manifest["splits"])
    if options.split in existing:
        raise UsageError(
            f"--split={options.split}: {options.output} has that split already (it has {', '.join(existing)}). "
            "Name another split, or another --output"
        )
    if _validation_fraction(options) and VALIDATION in existing:
        raise UsageError(
            f"{options.output} has a split {VALIDATION!r} already: add --validation_fraction=0 to leave it as it is"
        )
    shared = {"name": manifest["name"], **manifest["settings"]}
    for flag, value in shared.items():
        given = getattr(options, flag)
        if given is not None and given != value:
            raise UsageError(
                f"--{flag}={given}: the splits of {options.output} have --{flag}={value}, and all splits of a dataset "
                f"are alike. Leave --{flag} out, or name another --output"
            )


def _check_classes(found: Sources, class_names: Sequence[str], output: Path) -> None:
    known = set(class_names)
    new = [name for name in found.class_names if name not in known]
    if new:
        first = next(image.name for image in found.images if image.category == new[0])
        raise DataError(
            f"class {new[0]!r}{f' and {len(new) - 1} more' if len(new) > 1 else ''} (first image {first}) is not "
            f"one of the {len(class_names)} classes of {output}{did_you_mean(new[0], class_names)}. "
            "A split has the classes of the first one, or some of them; convert all anew with the new class"
        )


def _plan(
    options: Options, manifest: dict[str, Any], duplicates: Duplicates
) -> dict[str, tuple[tuple[Source, ...], ...]]:
    fraction = _validation_fraction(options)
    rest, held_out = split_off(duplicates.kept, fraction, options.seed, together=duplicates.conflicting)
    splits = {options.split: rest}
    if fraction:
        if not held_out:
            raise DataError(
                f"{options.images} has too few images ({len(rest)}) to split any off for validation; "
                "add --validation_fraction=0"
            )
        splits[VALIDATION] = held_out
    return {
        split: assign_shards(
            images,
            split=split,
            seed=options.seed,
            total_bytes=_estimated_bytes(images, manifest["settings"]),
            shards=options.shards,
        )
        for split, images in splits.items()
    }


def _estimated_bytes(images: Sequence[Source], settings: dict[str, Any]) -> int:
    pixels = 3 * settings["image_size"] ** 2
    if settings["encoding"] == "raw":
        # A photograph's JPEG is about a tenth of its pixels.
        return len(images) * pixels if pixels else 10 * sum(image.size for image in images)
    return sum(min(image.size, pixels) if pixels else image.size for image in images)


def _tasks(
    partial: Path, splits: dict[str, tuple[tuple[Source, ...], ...]], manifest: dict[str, Any]
) -> dict[str, list[ShardTask]]:
    label_of = {name: label for label, name in enumerate(manifest["class_names"])}
    pixels = Pixels(manifest["settings"]["image_size"], manifest["settings"]["encoding"])
    tasks: dict[str, list[ShardTask]] = {}
    number = 0
    for split, shards in splits.items():
        tasks[split] = []
        for i, images in enumerate(shards):
            path = partial / metadata.shard_name(manifest["name"], split, i, len(shards))
            tasks[split].append(ShardTask(number, path, images, tuple(label_of[i.category] for i in images), pixels))
            number += 1
    return tasks


def _work(
    context: multiprocessing.context.BaseContext,
    tasks: dict[str, list[ShardTask]],
    options: Options,
    *,
    total: int,
    progress: Callable[[int, int], None],
) -> dict[str, list[Shard]]:
    """Has the tasks done by worker processes and returns the shards by split, in order."""
    flat = [task for of_split in tasks.values() for task in of_split]
    workers = max(1, min(options.workers or usable_cores(), len(flat)))
    board = RawArray("q", 1 + len(flat))
    pool = ProcessPoolExecutor(workers, context, initializer=worker.start, initargs=(board,))
    bad: list[tuple[Source, str]] = []
    try:
        with interrupts_deferred():  # a worker that is left half-started would complain on the screen
            futures = [pool.submit(worker.write_shard, task) for task in flat]
        pending: set[Future] = set(futures)
        while pending:
            done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                bad.extend(future.result().bad)
            if len(bad) > options.max_bad_fraction * total:
                raise DataError(_too_many_bad(bad, total, options.max_bad_fraction))
            progress(sum(board[1:]), total)
        shards = iter([future.result() for future in futures])
    except BrokenProcessPool:
        raise DataError(
            "a worker process died (killed, or out of memory) and the conversion was given up; nothing was written. "
            f"Fewer processes need less memory: --workers={max(1, workers // 2)}"
        ) from None
    finally:
        board[0] = 1
        pool.shutdown(wait=True, cancel_futures=True)
    return {split: [next(shards) for _ in of_split] for split, of_split in tasks.items()}


def _too_many_bad(bad: Sequence[tuple[Source, str]], total: int, max_bad_fraction: float) -> str:
    named = "; ".join(f"{image.name}: {why}" for image, why in sorted(bad, key=lambda pair: pair[0].name)[:_NAMED])
    return (
        f"at least {len(bad)} of {total} images cannot be used, more than --max_bad_fraction={max_bad_fraction:g} "
        f"allows ({named}). Mend or remove them, or allow more"
    )


def _split_entry(
    partial: Path, options: Options, split: str, shards: Sequence[Shard], class_names: Sequence[str]
) -> dict[str, Any]:
    """Writes a split's index and returns its entry in the manifest."""
    arrays = {
        name: np.concatenate([getattr(shard, name) for shard in shards]) for name in INDEX_TYPES if name != "shard"
    }
    arrays["shard"] = np.repeat(np.arange(len(shards)), [len(shard.offset) for shard in shards])
    if not len(arrays["label"]):
        raise DataError(f"no image of split {split!r} can be used; the first: {shards[0].bad[0][1]}")
    metadata.write_index(partial, split, arrays)
    counts = np.bincount(arrays["label"], minlength=len(class_names)).tolist()
    return {
        "seed": options.seed,
        "num_images": len(arrays["label"]),
        "counts": counts,
        "class_weights": metadata.class_weights(counts),
        "shards": [
            {"file": shard.path.name, "images": len(shard.offset), "bytes": shard.size, "sha256": shard.sha256}
            for shard in shards
        ],
    }


def _summary(split: str, entry: dict[str, Any]) -> SplitSummary:
    return SplitSummary(
        name=split,
        images=entry["num_images"],
        classes=sum(1 for count in entry["counts"] if count),
        shards=len(entry["shards"]),
        size=sum(shard["bytes"] for shard in entry["shards"]),
    )


def _write_quarantine(
    partial: Path, options: Options, found: Sources, duplicates: Duplicates, shards: dict[str, list[Shard]]
) -> None:
    """Writes what the dataset's quarantine held before, and a line for every image that this conversion left out."""
    left_out = [(options.split, name, "", "not an image by its name") for name in found.stray]
    left_out += [(options.split, i.name, i.category, f"same bytes as {kept.name}") for i, kept in duplicates.dropped]
    left_out += [
        (split, image.name, image.category, why)
        for split, of_split in shards.items()
        for shard in of_split
        for image, why in shard.bad
    ]
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(options.output / QUARANTINE, partial / QUARANTINE)
    with open(partial / QUARANTINE, "a", encoding="ascii") as file:
        for split, path, category, why in left_out:
            file.write(json.dumps({"split": split, "path": path, "category": category, "reason": why}) + "\n")


def _validation_fraction(options: Options) -> float:
    if options.validation_fraction is not None:
        return options.validation_fraction
    return 0.1 if options.split == "train" else 0.0
