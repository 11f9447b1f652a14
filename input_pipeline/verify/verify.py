"""Verification of a dataset directory against every byte of it.

    report = verify(Path("data"))
    report.faults                                         # () if the dataset is intact
    verify(Path("data"), repair_index=True).repaired      # faults fixed by rebuilding the indexes from intact shards

Works on the output of `convoy convert` and on external datasets (`dataset.external`), which have no checksums. Worker
processes check one shard at a time (`verify.shard`). Shards and manifest are never written to.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from convoy.core.errors import ConvoyError, DataError, UsageError
from convoy.core.files import write_whole
from convoy.core.finding import Severity
from convoy.core.npz import opened, read_array
from convoy.core.reading import parsed_json
from convoy.core.remote import RemotePath
from convoy.core.text import counted
from convoy.input_pipeline.convert.metadata import LABEL_FILES, write_index
from convoy.input_pipeline.dataset import external, index
from convoy.input_pipeline.dataset.image_facts import images_path
from convoy.input_pipeline.dataset.index import RecordKeys
from convoy.input_pipeline.dataset.layout import DATASET_INFO, FEATURES, Layout, RecordFormat
from convoy.input_pipeline.dataset.open import MANIFEST, has_manifest, read_manifest
from convoy.input_pipeline.dataset.storage import content_of, dataset_path, local_copy
from convoy.input_pipeline.images import worker_pool
from convoy.input_pipeline.verify.faults import DESCRIPTION, INDEX, SHARD, Fault, ShardReport, ShardTask
from convoy.input_pipeline.verify.shard import REPAIR, UNSUITABLE, check_shard

_RESTORE = "Copy the file again, or convert again"


@dataclass(frozen=True)
class SplitReport:
    """Counts of a split: readable records, classes among them, shards, bytes, faults, turned or transparent images."""

    name: str
    records: int
    classes: int
    shards: int
    size: int
    faults: int
    viewed: int


@dataclass(frozen=True)
class Report:
    """Result of a verification.

    Attributes:
      splits: sorted by name.
      faults: faults that remain.
      repaired: faults that were fixed by rebuilding the indexes.
      rebuilt: splits whose indexes were rebuilt.
      not_rebuilt: splits whose indexes were to be rebuilt and were not, because their shards or the files that describe
        them are damaged.
      first_label: label of the first class, 0 or 1.
    """

    splits: tuple[SplitReport, ...]
    faults: tuple[Fault, ...]
    repaired: tuple[Fault, ...] = ()
    rebuilt: tuple[str, ...] = ()
    not_rebuilt: tuple[str, ...] = ()
    first_label: int = 0


@dataclass
class _Split:
    """A split to check: one task per shard, and the faults found before reading any record."""

    name: str
    tasks: list[ShardTask]
    entry: Mapping[str, Any] | None = None  # of the manifest; None for an external dataset
    faults: list[Fault] = field(default_factory=list)


def verify(
    directory: Path | RemotePath,
    *,
    workers: int = 0,
    repair_index: bool = False,
    record_format: RecordFormat | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Checks a dataset directory.

    Args:
      directory: the dataset directory. Shards in an object store are copied to temporary files, one per worker.
      workers: number of processes; 0 is one per core.
      repair_index: whether to rebuild the indexes of the splits whose shards are intact.
      record_format: what is known about the records of other tools.
      progress: called with the number of bytes checked and the total.

    Raises:
      DataError: it is not a dataset, its manifest cannot be read, an index cannot be written, or a worker died.
      UsageError: indexes are to be rebuilt in an object store.
    """
    if repair_index and isinstance(directory, RemotePath):
        raise UsageError(
            f"--repair_index: {directory} is in an object store. Copy it to a local directory, repair it there, and "
            "copy the index files back"
        )
    faults: list[Fault] = []
    repaired: list[Fault] = []
    table: list[SplitReport] = []
    rebuilt: list[str] = []
    not_rebuilt: list[str] = []
    record_format = record_format or RecordFormat()
    layout = None
    if isinstance(directory, Path) and not has_manifest(directory):
        layout = external.find_layout(directory, record_format)
    if layout and isinstance(directory, Path):
        splits = _external_splits(directory, layout)
        faults = list(_unnamed_shards(directory, layout))
    else:
        manifest = read_manifest(directory)
        splits = [
            _convoy_split(
                directory, name, entry, manifest["class_names"], multi_label=manifest.get("multi_label", False)
            )
            for name, entry in sorted(manifest["splits"].items())
        ]
        faults = list(_description_faults(directory, manifest))
    reports = _work([task for split in splits for task in split.tasks], workers, progress)
    rest = iter(reports)
    for split in splits:
        shards = [next(rest) for _ in split.tasks]
        records = sum(len(shard.records["offset"]) for shard in shards)
        split_faults = split.faults + _of_all_records([fault for shard in shards for fault in shard.faults], records)
        if split.entry and not any(fault.section == SHARD for fault in split_faults):
            split_faults += _manifest_faults(directory, split.name, split.entry, shards)
        if repair_index and any(fault.section != INDEX for fault in split_faults):
            not_rebuilt.append(split.name)
        elif repair_index and isinstance(directory, Path):
            if layout:
                external.rebuild_index(directory, layout, split.name)
            elif split_faults:
                _write_indexes(directory, split, shards)
            if layout or split_faults:
                rebuilt.append(split.name)
            repaired, split_faults = repaired + split_faults, []
        faults += split_faults
        table.append(_split_report(split, shards, split_faults))
    first_label = 0
    if layout and isinstance(directory, Path) and any((report.records["label"] >= 0).any() for report in reports):
        labels = {str(number): index.Scan(report.records, {}) for number, report in enumerate(reports)}
        try:
            first_label = external.resolve_labels(directory, layout, labels, record_format)[1].first_label or 0
        except DataError as error:
            fix = "Name the class of each label with --class_names_file"
            faults.append(Fault(Severity.ERROR, "class-names", str(error), fix, DESCRIPTION, file=directory.name))
    return Report(tuple(table), tuple(faults), tuple(repaired), tuple(rebuilt), tuple(not_rebuilt), first_label)


def _of_all_records(faults: Sequence[Fault], records: int) -> list[Fault]:
    """Returns the faults of a split, with one in place of what all of its records have."""
    codes = Counter(fault.code for fault in faults if fault.code in UNSUITABLE)
    if list(codes.values()) != [records] or records < 2:
        return list(faults)
    first = next(fault for fault in faults if fault.code in codes)
    all_records = replace(first, text=f"all {records:,} records: {first.text}", offset=None, record=None)
    return [all_records, *(fault for fault in faults if fault.code not in codes)]


def _convoy_split(
    directory: Path | RemotePath, name: str, entry: Mapping[str, Any], class_names: Sequence[str], *, multi_label: bool
) -> _Split:
    sizes = [shard["bytes"] for shard in entry["shards"]]
    arrays, problem = {}, ""
    try:
        arrays = index.load(index.index_path(directory, name), sizes, multi_label=multi_label)
    except index.IndexUnusableError as error:
        problem = str(error)
    firsts = np.cumsum([0, *(shard["images"] for shard in entry["shards"])]).tolist()
    split = _Split(name, [], entry)
    if problem:
        file = index.index_path(directory, name).name
        split.faults.append(Fault(Severity.ERROR, "index-unusable", problem, REPAIR, INDEX, name, file))
    for number, shard in enumerate(entry["shards"]):
        split.tasks.append(
            ShardTask(
                split=name,
                path=str(directory / shard["file"]),
                name=shard["file"],
                first_record=firsts[number],
                keys=RecordKeys(),
                fix=_RESTORE,
                size=shard["bytes"],
                sha256=shard["sha256"],
                records=shard["images"],
                num_classes=len(class_names),
                class_names=tuple(class_names),
                is_ours=True,
                multi_label=multi_label,
                index=None if problem else _shard_arrays(arrays, number),
            )
        )
    return split


def _external_splits(directory: Path, layout: Layout) -> list[_Split]:
    splits = []
    for name, paths in sorted(layout.splits.items()):
        split = _Split(name, [])
        try:
            kept = external.kept_index(directory, layout, name)
        except DataError:  # a missing shard: reported by its check
            kept = None
        records = layout.records_of_shard.get(name)
        firsts = np.cumsum([0, *records]).tolist() if records else [None] * len(paths)
        for number, path in enumerate(paths):
            arrays = _shard_arrays(kept.arrays, number) if kept else None
            if kept and not records:
                firsts[number] = int(np.searchsorted(kept.arrays["shard"], number))
            split.tasks.append(
                ShardTask(
                    split=name,
                    path=str(path),
                    name=str(path.relative_to(directory)),
                    first_record=firsts[number],
                    keys=layout.keys,
                    fix=layout.fix[0].upper() + layout.fix[1:],
                    records=records[number] if records else None,
                    num_classes=len(layout.class_names) if layout.class_names else None,
                    index=arrays,
                )
            )
        splits.append(split)
    return splits


def _unnamed_shards(directory: Path, layout: Layout) -> Iterator[Fault]:
    """Finds the shards of a TFDS directory that its description does not name, as one of another dataset would not."""
    named = {path for paths in layout.splits.values() for path in paths}
    shards = directory.glob("*.tfrecord-*[0-9]-of-*[0-9]")  # not their .idx files
    unnamed = sorted(path.name for path in shards if path not in named)
    if unnamed and (directory / DATASET_INFO).is_file():
        text = f"does not name {counted(len(unnamed), 'shard')} in the folder, such as {unnamed[0]}"
        fix = "Prepare the dataset again, or remove the files that are not part of it"
        yield Fault(Severity.ERROR, "shards-not-named", text, fix, DESCRIPTION, file=DATASET_INFO)


def _shard_arrays(arrays: Mapping[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    start, stop = np.searchsorted(arrays["shard"], [number, number + 1])
    return index.records_between(arrays, start, stop)


def _work(tasks: Sequence[ShardTask], workers: int, progress: Callable[[int, int], None]) -> list[ShardReport]:
    """Checks the shards in worker processes and returns their reports, in order."""
    worker_pool.warm_up("convoy.input_pipeline.verify.image", "convoy.input_pipeline.verify.shard")
    total = sum(_size(task.path) for task in tasks)
    return worker_pool.run(
        check_shard,
        tasks,
        workers=workers,
        progress=lambda size: progress(size, total),
        place=lambda task, offset: f"{task.name} offset {offset}",
    )


def _size(path: str) -> int:
    try:
        return int(dataset_path(path).stat().st_size)
    except OSError:
        return 0


def _manifest_faults(
    directory: Path | RemotePath, split: str, entry: Mapping[str, Any], reports: Sequence[ShardReport]
) -> Iterator[Fault]:
    """Compares intact shards with the manifest's class counts and with the length of images-SPLIT.npz."""
    labels = np.concatenate([report.records["label"] for report in reports])
    num_images = sum(len(report.records["offset"]) for report in reports)
    counts = np.bincount(labels, minlength=len(entry["counts"])).tolist()
    for label, (found, stated) in enumerate(zip(counts, entry["counts"], strict=True)):
        if found != stated:
            text = f"states {counted(stated, 'image')} of class {label} in {split}; the shards have {found}"
            yield _description_fault("class-counts", MANIFEST, text, split)
            break
    sidecar = images_path(directory, split)
    # Unlike Path.exists, also for a name that is too long.
    if isinstance(sidecar, Path) and not os.path.exists(sidecar):
        return
    try:
        with local_copy(sidecar) as local, opened(local) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            lengths = {name: len(read_array(archive, name)) for name in names}
    except FileNotFoundError:
        return
    except ConvoyError:
        raise
    except Exception as error:  # damaged bytes make zipfile and numpy raise anything
        yield _description_fault("sidecar-unreadable", sidecar.name, f"cannot be read ({error})", split)
        return
    wrong = ", ".join(f"{name} {found}" for name, found in lengths.items() if found != num_images)
    if wrong:
        text = f"has arrays of another length than {counted(num_images, 'image')}: {wrong}"
        yield _description_fault("sidecar-length", sidecar.name, text, split)


def _description_faults(directory: Path | RemotePath, manifest: Mapping[str, Any]) -> Iterator[Fault]:
    """Compares the files that other readers use with the manifest."""
    expected_labels = "".join(f"{name}\n" for name in manifest["class_names"]).encode("utf-8")
    for name in LABEL_FILES:
        try:
            if content_of(directory / name) != expected_labels:
                yield _description_fault("label-file-mismatch", name, "its class names differ from the manifest's")
        except OSError as error:
            yield _description_fault("label-file-unreadable", name, f"cannot be read ({error.strerror})")
    stated = {name: [shard["images"] for shard in entry["shards"]] for name, entry in manifest["splits"].items()}
    try:
        info = parsed_json(content_of(directory / DATASET_INFO))
        found = {split["name"]: list(map(int, split["shardLengths"])) for split in info["splits"]}
        parsed_json(content_of(directory / FEATURES))
    except OSError as error:
        name = Path(error.filename).name
        yield _description_fault("dataset-info-unreadable", name, f"cannot be read ({error.strerror})")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        name = f"{DATASET_INFO} or {FEATURES}"
        yield _description_fault("dataset-info-damaged", name, f"is damaged ({error!r})")
    else:
        if found != stated:
            text = "its splits and shards differ from the manifest's"
            yield _description_fault("dataset-info-mismatch", DATASET_INFO, text)


def _description_fault(code: str, file: str, text: str, split: str = "") -> Fault:
    return Fault(Severity.ERROR, code, text, _RESTORE, DESCRIPTION, split, file)


def _write_indexes(directory: Path, split: _Split, reports: Sequence[ShardReport]) -> None:
    try:
        for task, report in zip(split.tasks, reports, strict=True):
            write_whole(Path(task.path + ".idx"), index.idx_lines(report.records))
        write_index(directory, split.name, index.concatenated([report.records for report in reports]))
    except OSError as error:
        raise DataError(
            f"{directory}: an index cannot be written ({error.strerror}). Free disk space or fix the permissions"
        ) from None


def _split_report(split: _Split, reports: Sequence[ShardReport], faults: Sequence[Fault]) -> SplitReport:
    labels = np.concatenate([report.records["label"] for report in reports])
    return SplitReport(
        name=split.name,
        records=sum(len(report.records["offset"]) for report in reports),
        classes=len(np.unique(labels[labels >= 0])),
        shards=len(reports),
        size=sum(report.size for report in reports),
        faults=len(faults),
        viewed=sum(report.viewed for report in reports),
    )
