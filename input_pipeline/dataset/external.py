"""TFRecord directories written by other tools: TFDS datasets, or plain shards without metadata.

    layout = find_layout(directory, RecordFormat())   # None if it is neither
    indexes = open_indexes(directory, layout)         # by split; built from the shards when first opened

`tfds_layout` and `folder_layout` have the details of the two kinds.

The index is stored in the subdirectory `.convoy`, or in the user's cache directory if that is not writable. It is
used as long as names, sizes and modification times of the shards are unchanged. Several processes may open and write
it at once.
"""

import contextlib
import hashlib
import json
import logging
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convoy.core.errors import DataError
from convoy.core.files import written_whole
from convoy.core.npz import opened, read_array
from convoy.core.text import counted, megabytes
from convoy.input_pipeline.dataset import index
from convoy.input_pipeline.dataset.folder_layout import folder_layout
from convoy.input_pipeline.dataset.index import INDEX_TYPES
from convoy.input_pipeline.dataset.layout import DATASET_INFO, Layout, RecordFormat
from convoy.input_pipeline.dataset.tfds_layout import tfds_layout

_OWN_FOLDER = ".convoy"

_logger = logging.getLogger("convoy")
_FORMAT = 1  # of a stored index


def find_layout(directory: Path, record_format: RecordFormat, default_split: str = "") -> Layout | None:
    """Returns the layout of a directory, or None if it has no TFRecords.

    Args:
      directory: the directory.
      record_format: what the user says about its records.
      default_split: the split of all shards if their names contain none.

    Raises:
      DataError: it is a TFDS directory or has TFRecords, but cannot be used.
    """
    if os.path.isfile(directory / DATASET_INFO):
        return tfds_layout(directory, record_format)
    try:
        return folder_layout(directory, record_format, default_split)
    except OSError:
        return None


def open_indexes(directory: Path, layout: Layout, *, keep: bool = True) -> dict[str, index.Scan]:
    """Returns the index of each split: the stored one, or a new one built from the shards.

    Args:
      directory: the dataset directory.
      layout: its layout.
      keep: whether to store a new one.

    Raises:
      DataError: a shard is missing or damaged, or its number of records differs from TFDS's metadata.
    """
    descriptions = {split: _description(directory, layout, split) for split in layout.splits}
    kept = {split: _load_kept(directory, split, descriptions[split]) for split in layout.splits}
    missing = [split for split, found in kept.items() if found is None]
    if missing:
        size = sum(file[1] for split in missing for file in descriptions[split]["files"])
        _logger.info(
            "%s: index missing or outdated: reading record headers (%s; %s of shards).",
            directory,
            ", ".join(missing),
            megabytes(size),
        )
    indexes = {}
    for split in layout.splits:
        found = kept[split] or _scan(layout, split)
        _check_counts(layout, split, found.arrays["shard"])
        if keep and kept[split] is None:
            _keep(directory, split, found, descriptions[split])
        indexes[split] = found
    return indexes


def rebuild_index(directory: Path, layout: Layout, split: str) -> None:
    """Rebuilds and stores the index of a split.

    Raises:
      DataError: as `open_indexes`; or the index cannot be written.
    """
    description = _description(directory, layout, split)
    found = _scan(layout, split)
    _check_counts(layout, split, found.arrays["shard"])
    _keep(directory, split, found, description)
    kept = _load_kept(directory, split, description)
    if not kept or any(not np.array_equal(kept.arrays[name], found.arrays[name]) for name in INDEX_TYPES):
        raise DataError(f"{_kept_paths(directory, split)[0]} cannot be written; free disk space or fix the permissions")


def kept_index(directory: Path, layout: Layout, split: str) -> index.Scan | None:
    """Returns the stored index of a split, or None if there is none for these shards.

    Raises:
      DataError: a shard is missing.
    """
    return _load_kept(directory, split, _description(directory, layout, split))


def names_of_labels(scans: Iterable[index.Scan]) -> tuple[str, ...]:
    """Returns the class names of plain records, for labels from 0 to the largest: the class text, or the number.

    A text is used only if it is the label's only one. Texts shared by several labels get the label appended.
    """
    texts: dict[int, set[bytes]] = {}
    classes = 0
    for scan in scans:
        classes = max(classes, int(scan.arrays["label"].max(initial=-1)) + 1)
        for label, found in scan.texts.items():
            texts.setdefault(label, set()).update(found)
    names = [
        " ".join(next(iter(texts[label])).decode("utf-8", "replace").split()) if len(texts.get(label, ())) == 1 else ""
        for label in range(classes)
    ]
    named = [name or str(label) for label, name in enumerate(names)]
    counts = Counter(named)
    return tuple(f"{name} ({label})" if counts[name] > 1 else name for label, name in enumerate(named))


def resolve_labels(
    directory: Path, layout: Layout, indexes: Mapping[str, index.Scan], record_format: RecordFormat
) -> tuple[tuple[str, ...], RecordFormat]:
    """Returns the class names, and the format with keys, names and first label resolved.

    The first label is 1 if no record has label 0 and some have 1, as in ImageNet's records, unless that leaves
    class names without a label.

    Raises:
      DataError: no record has a label, or there are fewer class names than labels.
    """
    found = [scan.arrays["label"] for scan in indexes.values()]
    least = min((int(label.min(initial=index.LARGEST_LABEL, where=label >= 0)) for label in found), default=0)
    most = max((int(label.max(initial=-1)) for label in found), default=-1)
    names, first, is_named = record_format.class_names, record_format.first_label, True
    if names and first is None:
        first = int(least > 0 and most == len(names))
    elif layout.class_names:
        names, first = layout.class_names, 0
        is_named = False
    if first is None:
        first = int(least == 1 < most)
    if not names:
        from_texts = names_of_labels(indexes.values())
        names = from_texts[first:]
        is_named = names == tuple(str(label) for label in range(first, first + len(names)))
    if not names or most < 0:
        raise DataError(f"{directory}: no record has a label")
    if record_format.class_names and is_named and most - first >= len(names):
        raise DataError(
            f"{directory} has labels from {least} to {most}, too many for {len(names)} class names (--class_names_file)"
        )
    return names, RecordFormat(*layout.keys, names if is_named else (), first)


def label_error(directory: Path, split: str, label: np.ndarray, num_classes: int, first: int = 0) -> str:
    """Returns the error message for a split with a label that is not one of the classes, which begin at `first`."""
    record = int(np.argmax((label < first) | (label >= first + num_classes)))
    return (
        f"split {split!r} of {directory} cannot be used for training or evaluation: record {record} has label "
        f"{label[record]}; labels must be from {first} to {first + num_classes - 1}"
    )


def _scan(layout: Layout, split: str) -> index.Scan:
    return index.scan(layout.splits[split], layout.keys, layout.text_key or None, layout.fix)


def _check_counts(layout: Layout, split: str, shard: np.ndarray) -> None:
    paths, expected = layout.splits[split], layout.records_of_shard.get(split)
    if not expected:
        return
    counts = index.label_counts(shard, len(paths))
    assert counts is not None, "shard numbers of a valid index are in range"
    for path, found, stated in zip(paths, counts.tolist(), expected, strict=True):
        if found != stated:
            raise DataError(
                f"shard {path} has {counted(found, 'record')}, {DATASET_INFO} states {stated:,}; {layout.fix}"
            )


def _description(directory: Path, layout: Layout, split: str) -> dict[str, Any]:
    """Returns the JSON data that must be unchanged for a stored index to be used."""
    files = []
    for path in layout.splits[split]:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"shard {path} is missing ({error.strerror}); {layout.fix}") from None
        files.append([str(path.relative_to(directory)), status.st_size, status.st_mtime_ns])
    return {"format": _FORMAT, "keys": [*layout.keys, layout.text_key], "files": files}


def _kept_paths(directory: Path, split: str) -> list[Path]:
    """Returns where an index may be stored, in order of preference."""
    folders = [directory / _OWN_FOLDER]
    with contextlib.suppress(RuntimeError, OSError):  # no home directory
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folders.append(cache / "convoy" / hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:24])
    return [index.index_path(folder, split) for folder in folders]


def _load_kept(directory: Path, split: str, description: Mapping[str, Any]) -> index.Scan | None:
    sizes = [size for _, size, _ in description["files"]]
    for path in _kept_paths(directory, split):
        with contextlib.suppress(Exception):  # damaged bytes make zipfile, numpy and json raise anything
            with opened(path) as archive:
                stored = json.loads(read_array(archive, "description", np.uint8, dimensions=1).tobytes())
                if {key: stored[key] for key in description} != description:
                    continue
                arrays = {name: read_array(archive, name, dtype, dimensions=1) for name, dtype in INDEX_TYPES.items()}
            texts = {int(label): {text.encode("latin-1") for text in found} for label, found in stored["texts"]}
            if not index.find_mismatch(arrays, sizes):
                return index.Scan(index.read_only(arrays), texts)
    return None


def _keep(directory: Path, split: str, found: index.Scan, description: Mapping[str, Any]) -> None:
    """Stores an index at the first writable location; several processes may do so at once."""
    texts = [[label, sorted(text.decode("latin-1") for text in texts)] for label, texts in sorted(found.texts.items())]
    stored = np.frombuffer(json.dumps({**description, "texts": texts}).encode("ascii"), np.uint8)
    for path in _kept_paths(directory, split):
        if path.parent.is_symlink():  # of somebody else, perhaps, to anywhere
            continue
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            own = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
            with written_whole(own) as file:
                # numpy's stub checks the arrays against the type of allow_pickle.
                np.savez(file, description=stored, **found.arrays)  # type: ignore[arg-type]
            os.replace(own, path)
            return
