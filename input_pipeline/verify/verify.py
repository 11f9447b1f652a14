"""Everything a dataset directory says about itself, checked against every byte of it.

    report = verify(Path("data"))
    report.faults                                        # () where it is whole
    verify(Path("data"), repair_index=True).mended       # indexes written anew from shards that are whole

Works on what `convoy convert` wrote and on directories of others (`external`), of which nobody wrote down a checksum.
Worker processes check a shard at a time (`shard`). Shards and manifest are never written to.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convoy.core.errors import DataError
from convoy.core.files import write_whole
from convoy.input_pipeline.convert.metadata import LABEL_FILES, write_index
from convoy.input_pipeline.dataset import external, index
from convoy.input_pipeline.dataset.index import INDEX_TYPES, RecordKeys
from convoy.input_pipeline.dataset.open import has_manifest, read_manifest
from convoy.input_pipeline.images import worker_pool
from convoy.input_pipeline.verify.faults import DESCRIPTION, INDEX, SHARD, Fault, ShardReport, ShardTask
from convoy.input_pipeline.verify.shard import REPAIR, check_shard, idx_lines

_RESTORE = "Copy the file again, or convert again"
_PREPARE = "Copy the file again, or prepare the dataset again"


@dataclass(frozen=True)
class SplitReport:
    """What was found of a split: records that can be followed, classes among them, shards, bytes and faults."""

    name: str
    records: int
    classes: int
    shards: int
    size: int
    faults: int


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
      splits: in the order of their names.
      faults: that are there now.
      mended: those that were, and that the rebuilt indexes mended.
      rebuilt: splits whose indexes were written.
      not_rebuilt: splits whose indexes were asked to be rebuilt and were not: their shards, or what describes them,
        are damaged.
    """

    splits: tuple[SplitReport, ...]
    faults: tuple[Fault, ...]
    mended: tuple[Fault, ...] = ()
    rebuilt: tuple[str, ...] = ()
    not_rebuilt: tuple[str, ...] = ()


@dataclass
class _Split:
    """A split under check: its shards' tasks, and the faults that were seen before any record."""

    name: str
    tasks: list[ShardTask]
    entry: Mapping[str, Any] | None = None  # in the manifest
    faults: list[Fault] = field(default_factory=list)


def verify(
    directory: Path,
    *,
    workers: int = 0,
    repair_index: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Checks a dataset directory.

    Args:
      directory: of the dataset.
      workers: processes; 0 is one a core.
      repair_index: whether to write the indexes of splits anew whose shards are whole.
      progress: is called with the bytes that were checked, and all.

    Raises:
      DataError: it is no dataset, its manifest cannot be read, an index cannot be written, or a worker died.
    """
    layout = None if has_manifest(directory) else external.find_layout(directory)
    if layout:
        splits, faults = _external_splits(directory, layout), []
    else:
        manifest = read_manifest(directory)
        splits = [
            _own_split(directory, name, entry, manifest["class_names"])
            for name, entry in sorted(manifest["splits"].items())
        ]
        faults = list(_description_faults(directory, manifest))
    reports = _work([task for split in splits for task in split.tasks], workers, progress)
    table, mended, rebuilt, not_rebuilt, rest = [], [], [], [], iter(reports)
    for split in splits:
        of_shards = [next(rest) for _ in split.tasks]
        of_split = split.faults + [fault for report in of_shards for fault in report.faults]
        if split.entry and not any(fault.kind == SHARD for fault in of_split):
            of_split += _manifest_faults(directory, split, of_shards)
        if repair_index and any(fault.kind != INDEX for fault in of_split):
            not_rebuilt.append(split.name)
        elif repair_index:
            if layout:
                external.rebuild_index(directory, layout, split.name)
            elif of_split:
                _write_indexes(directory, split, of_shards)
            if layout or of_split:
                rebuilt.append(split.name)
            mended, of_split = mended + of_split, []
        faults += of_split
        table.append(_row(split, of_shards, of_split))
    return Report(tuple(table), tuple(faults), tuple(mended), tuple(rebuilt), tuple(not_rebuilt))


def _own_split(directory: Path, name: str, entry: Mapping[str, Any], class_names: Sequence[str]) -> _Split:
    sizes = [shard["bytes"] for shard in entry["shards"]]
    try:
        arrays = index.load(index.index_path(directory, name))
        problem = index.find_mismatch(arrays, sizes)
    except index.IndexUnusableError as error:
        arrays, problem = {}, str(error)
    else:
        problem = problem and f"does not match the shards ({problem})"
    firsts = np.cumsum([0, *(shard["images"] for shard in entry["shards"])]).tolist()
    split = _Split(name, [], entry)
    if problem:
        split.faults.append(Fault(INDEX, name, index.index_path(directory, name).name, problem, REPAIR))
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
                index=None if problem else _of_shard(arrays, number),
            )
        )
    return split


def _external_splits(directory: Path, layout: external.Layout) -> list[_Split]:
    splits = []
    for name, paths in sorted(layout.splits.items()):
        split = _Split(name, [])
        try:
            kept = external.kept_index(directory, layout, name)
        except DataError:  # a shard is missing, which its check will say
            kept = None
        records = layout.records_of_shard.get(name)
        firsts = np.cumsum([0, *records]).tolist() if records else [None] * len(paths)
        for number, path in enumerate(paths):
            arrays = _of_shard(kept.arrays, number) if kept else None
            if kept and not records:
                firsts[number] = int(np.searchsorted(kept.arrays["shard"], number))
            split.tasks.append(
                ShardTask(
                    split=name,
                    path=str(path),
                    name=str(path.relative_to(directory)),
                    first_record=firsts[number],
                    keys=layout.keys,
                    fix=_PREPARE,
                    records=records[number] if records else None,
                    num_classes=len(layout.class_names) if layout.class_names else None,
                    index=arrays,
                )
            )
        splits.append(split)
    return splits


def _of_shard(arrays: Mapping[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    start, stop = np.searchsorted(arrays["shard"], [number, number + 1])
    return {name: arrays[name][start:stop] for name in INDEX_TYPES if name != "shard"}


def _work(tasks: Sequence[ShardTask], workers: int, progress: Callable[[int, int], None]) -> list[ShardReport]:
    """Has the shards checked by worker processes and returns their reports, in order."""
    worker_pool.warm_up("convoy.input_pipeline.verify.shard")
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
        return Path(path).stat().st_size
    except OSError:
        return 0


def _manifest_faults(directory: Path, split: _Split, reports: Sequence[ShardReport]) -> list[Fault]:
    """Compares whole shards with the manifest's counts, and the file about their source images with both."""
    faults, entry = [], split.entry
    labels = np.concatenate([report.records["label"] for report in reports])
    counts = np.bincount(labels, minlength=len(entry["counts"])).tolist()
    wrong = [label for label, (found, said) in enumerate(zip(counts, entry["counts"], strict=True)) if found != said]
    if wrong:
        label = wrong[0]
        problem = (
            f"says {entry['counts'][label]} images of class {label} in {split.name}, and there are {counts[label]}"
        )
        faults.append(Fault(DESCRIPTION, split.name, "manifest.json", problem, _RESTORE))
    sidecar = directory / f"images-{split.name}.npz"
    if os.path.exists(sidecar):
        try:
            with np.load(sidecar, allow_pickle=False) as columns:
                lengths = {name: len(columns[name]) for name in columns.files}
        except Exception as error:  # damaged bytes make zipfile and numpy raise anything
            faults.append(Fault(DESCRIPTION, split.name, sidecar.name, f"cannot be read ({error})", _RESTORE))
        else:
            problem = ", ".join(f"{name} {found}" for name, found in lengths.items() if found != len(labels))
            if problem:
                problem = f"has entries for other than {len(labels)} images: {problem}"
                faults.append(Fault(DESCRIPTION, split.name, sidecar.name, problem, _RESTORE))
    return faults


def _description_faults(directory: Path, manifest: Mapping[str, Any]) -> Iterable[Fault]:
    """Compares what is there for other readers with the manifest."""
    wanted = "".join(f"{name}\n" for name in manifest["class_names"]).encode("utf-8")
    for name in LABEL_FILES:
        try:
            same = (directory / name).read_bytes() == wanted
        except OSError as error:
            yield Fault(DESCRIPTION, "", name, f"cannot be read ({error.strerror})", _RESTORE)
            continue
        if not same:
            yield Fault(DESCRIPTION, "", name, "does not hold the manifest's class names", _RESTORE)
    said = {name: [shard["images"] for shard in entry["shards"]] for name, entry in sorted(manifest["splits"].items())}
    try:
        info = json.loads((directory / external.DATASET_INFO).read_text(encoding="utf-8"))
        found = {split["name"]: list(map(int, split["shardLengths"])) for split in info["splits"]}
        json.loads((directory / external.FEATURES).read_text(encoding="utf-8"))
    except OSError as error:
        yield Fault(DESCRIPTION, "", Path(error.filename).name, f"cannot be read ({error.strerror})", _RESTORE)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        name = f"{external.DATASET_INFO} or {external.FEATURES}"
        yield Fault(DESCRIPTION, "", name, f"is damaged ({error!r})", _RESTORE)
    else:
        if found != said:
            problem = "its splits and shards are not those of the manifest"
            yield Fault(DESCRIPTION, "", external.DATASET_INFO, problem, _RESTORE)


def _write_indexes(directory: Path, split: _Split, reports: Sequence[ShardReport]) -> None:
    try:
        for task, report in zip(split.tasks, reports, strict=True):
            lines = idx_lines(report.records["offset"], report.records["length"])
            write_whole(Path(task.path + ".idx"), lines)
        arrays = {name: [report.records[name] for report in reports] for name in INDEX_TYPES if name != "shard"}
        numbers = [len(report.records["offset"]) for report in reports]
        shard = np.repeat(np.arange(len(reports), dtype=np.int32), numbers)
        concatenated = {name: np.concatenate(column) for name, column in arrays.items()}
        write_index(directory, split.name, {"shard": shard, **concatenated})
    except OSError as error:
        raise DataError(
            f"{directory}: an index cannot be written ({error.strerror}); make room, or mend that"
        ) from None


def _row(split: _Split, reports: Sequence[ShardReport], faults: Sequence[Fault]) -> SplitReport:
    labels = np.concatenate([report.records["label"] for report in reports])
    return SplitReport(
        name=split.name,
        records=len(labels),
        classes=len(np.unique(labels[labels >= 0])),
        shards=len(reports),
        size=sum(report.size for report in reports),
        faults=len(faults),
    )
