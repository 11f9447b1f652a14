"""The index of a split: location, label and checksum of every record. Loaded, validated, or rebuilt from the shards.

    arrays = load(index_path(directory, "train"), shard_sizes)      # IndexUnusableError: missing, or of other shards
    arrays = scan(shard_paths, RecordKeys()).arrays                 # from record headers and labels

An index file has five arrays with one entry per record, in shard order: 28 bytes per record. Loading and validating
need little more memory than the arrays; 100 million records take 2.8 GB. The index of a multi-label split has a sixth,
`num_labels`, and its `label` has the labels of one record after another (`label_sets`).
"""

import array
import itertools
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from convoy.core.errors import ConvoyError, DataError
from convoy.core.npz import opened, read_array
from convoy.core.reading import open_file
from convoy.core.remote import RemotePath
from convoy.input_pipeline.dataset.examples import feature_names, from_file, read_features
from convoy.input_pipeline.dataset.label_sets import starts
from convoy.input_pipeline.dataset.records import CONVERT, FRAME_OVERHEAD, HEADER_BYTES, walk
from convoy.input_pipeline.dataset.storage import local_copy

AnyPath = TypeVar("AnyPath", bound=Path | RemotePath)

# The arrays of an index and their dtypes, in file order.
INDEX_TYPES = {"shard": np.int32, "offset": np.int64, "length": np.int64, "label": np.int32, "crc": np.uint32}
NUM_LABELS = "num_labels"  # with several labels per image, in which case `label` has as many entries as it adds up to
MULTI_LABEL_TYPES = {**INDEX_TYPES, NUM_LABELS: np.int32}
LARGEST_LABEL = 10**6

_CHUNK = 2**18  # records
_SCANNING_THREADS = 16  # they mostly wait for disks


class RecordKeys(NamedTuple):
    """The feature names of the encoded image and of its label."""

    image: str = "image/encoded"
    label: str = "image/class/label"


class IndexUnusableError(ConvoyError):
    """An index that is missing, cannot be read, or does not match its shards. It can be rebuilt from them."""


@dataclass(frozen=True)
class Scan:
    """The result of scanning shards.

    Attributes:
      arrays: the index, as `INDEX_TYPES`.
      texts: the class texts found for each label, if requested; at most two, which is enough to see that they differ.
    """

    arrays: dict[str, np.ndarray]
    texts: dict[int, set[bytes]]


def index_path(directory: AnyPath, split: str) -> AnyPath:
    """Returns the path of a split's index."""
    return cast(AnyPath, directory / f"index-{split}.npz")


def index_types(*, multi_label: bool) -> dict[str, Any]:
    """Returns the arrays of an index and their dtypes, in file order."""
    return dict(MULTI_LABEL_TYPES if multi_label else INDEX_TYPES)


def load(path: Path | RemotePath, sizes: Sequence[int], *, multi_label: bool = False) -> dict[str, np.ndarray]:
    """Returns the arrays of an index of shards of these sizes, bytes, read-only.

    They are read, not memory-mapped: if the file server fails, that must raise an error, not kill the process.

    Raises:
      IndexUnusableError: the index is missing or damaged, or does not match the shards.
      ConvoyError: the object store fails.
    """
    try:
        with local_copy(path) as local, opened(local) as archive:
            types = index_types(multi_label=multi_label)
            arrays = {name: read_array(archive, name, dtype, dimensions=1) for name, dtype in types.items()}
    except FileNotFoundError:
        raise IndexUnusableError("is missing") from None
    except (MemoryError, ConvoyError):
        raise
    except Exception as error:  # damaged bytes make zipfile and numpy raise anything
        raise IndexUnusableError(f"cannot be read ({error})") from None
    if mismatch := find_mismatch(arrays, sizes):
        raise IndexUnusableError(f"does not match the shards ({mismatch})")
    return read_only(arrays)


def read_only(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Makes the arrays read-only and returns them."""
    for values in arrays.values():
        values.flags.writeable = False
    return arrays


def find_mismatch(arrays: Mapping[str, np.ndarray], sizes: Sequence[int]) -> str:
    """Returns why an index does not match shards of these sizes, or "".

    Records tile their shard: each starts where the previous one ends, and the last one ends with the file.

    Args:
      arrays: as `INDEX_TYPES` or `MULTI_LABEL_TYPES`.
      sizes: shard sizes, bytes.
    """
    shard, offset, length = (arrays[name] for name in ("shard", "offset", "length"))
    entries = {name: len(values) for name, values in arrays.items()}
    if NUM_LABELS in arrays:
        numbers = arrays[NUM_LABELS]
        if len(numbers) and numbers.min() < 0:
            return f"it has a record with {numbers.min()} labels"
        if numbers.sum(dtype=np.int64) != entries.pop("label"):
            return f"it has {len(arrays['label'])} labels, and its records {numbers.sum(dtype=np.int64)}"
    if len(set(entries.values())) > 1:
        return f"its arrays differ in length: {entries}"
    largest = max(sizes, default=0)
    filled = np.zeros(len(sizes), np.int64)  # bytes of each shard that have records
    last_shard, end = -1, 0  # of the previous record
    for start in range(0, len(shard), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        shards = np.concatenate([[last_shard], shard[chunk].astype(np.int64)])
        if not (shards[1:].min() >= 0 and shards.max() < len(sizes)):
            return f"it names shard {shard[chunk].max()} of {len(sizes)}"
        if not (length[chunk].min() >= 0 and length[chunk].max() <= largest):
            return f"it has a record of {length[chunk].max():,} bytes, more than the largest shard"
        ends = np.concatenate([[end], offset[chunk] + (length[chunk] + FRAME_OVERHEAD)])
        first_of_shard = np.diff(shards) != 0
        expected = np.where(first_of_shard, 0, ends[:-1])
        if (np.diff(shards) < 0).any() or not np.array_equal(offset[chunk], expected):
            wrong = start + int(np.argmax((offset[chunk] != expected) | (np.diff(shards) < 0)))
            return f"record {wrong}: byte {offset[wrong]} of shard {shard[wrong]} is not the start of a record"
        complete = np.flatnonzero(first_of_shard & (shards[:-1] >= 0))
        filled[shards[complete]] = ends[complete]
        last_shard, end = int(shards[-1]), int(ends[-1])
    if last_shard >= 0:
        filled[last_shard] = end
    unfilled = np.flatnonzero(filled != np.asarray(sizes, np.int64))
    if not len(unfilled):
        return ""
    number = int(unfilled[0])
    return f"its records fill {filled[number]:,} of the {sizes[number]:,} bytes of shard {number}"


def label_counts(label: np.ndarray, num_classes: int) -> np.ndarray | None:
    """Returns the number of records per class, [num_classes] int64; None if a label is out of range."""
    counts = np.zeros(num_classes, np.int64)
    for start in range(0, len(label), _CHUNK):
        chunk = label[start : start + _CHUNK]
        if not (chunk.min() >= 0 and chunk.max() < num_classes):
            return None
        counts += np.bincount(chunk, minlength=num_classes)
    return counts


def scan(
    paths: Sequence[Path],
    keys: RecordKeys,
    text_key: str | None = None,
    fix: str = CONVERT,
    *,
    multi_label: bool = False,
) -> Scan:
    """Builds the index from the shards: frame headers, stored checksums and labels, without reading images.

    Payload checksums are not verified here but when a record is read.

    Args:
      paths: the shards.
      keys: of the records.
      text_key: feature name of the class text to collect, if any.
      fix: what to do about a damaged shard.
      multi_label: whether a record has any number of labels.

    Raises:
      DataError: a shard cannot be read, a record header is damaged, or a record has no label; names shard and offset.
    """
    stopped = threading.Event()
    with ThreadPoolExecutor(_SCANNING_THREADS) as threads:
        try:
            scan_shard = partial(_scan_shard, keys=keys, text_key=text_key, fix=fix, multi=multi_label, stopped=stopped)
            parts = list(threads.map(scan_shard, paths))
        except BaseException:  # Ctrl-C too: do not finish scanning the other shards
            stopped.set()
            threads.shutdown(cancel_futures=True)
            raise
    texts: dict[int, set[bytes]] = {}
    for _, shard_texts in parts:
        for label, found in shard_texts.items():
            texts.setdefault(label, set()).update(found)
    return Scan(read_only(concatenated([arrays for arrays, _ in parts])), texts)


def concatenated(shards: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the arrays of a split from those of its shards, one or more, with the array `shard` added."""
    numbers = [len(arrays["offset"]) for arrays in shards]
    return {
        "shard": np.repeat(np.arange(len(shards), dtype=np.int32), numbers),
        **{name: np.concatenate([arrays[name] for arrays in shards]) for name in shards[0]},
    }


def idx_lines(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns the content of a shard's .idx file: one line "offset size" per record, with the sizes of the frames."""
    pairs = zip(arrays["offset"].tolist(), arrays["length"].tolist(), strict=True)
    return "".join(f"{offset} {length + FRAME_OVERHEAD}\n" for offset, length in pairs).encode("ascii")


def records_between(arrays: Mapping[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
    """Returns the arrays of the records in [start, stop), without `shard`."""
    found = {name: values[start:stop] for name, values in arrays.items() if name != "shard"}
    if NUM_LABELS in arrays:
        first, end = starts(arrays[NUM_LABELS])[[start, stop]]
        found["label"] = arrays["label"][first:end]
    return found


def _scan_shard(
    path: Path, *, keys: RecordKeys, text_key: str | None, fix: str, multi: bool, stopped: threading.Event
) -> tuple[dict[str, np.ndarray], dict[int, set[bytes]]]:
    """Scans one shard as `scan` does, without the array `shard`, until `stopped` is set."""
    wanted = {keys.label} | ({text_key} if text_key else set())
    types = index_types(multi_label=multi)
    columns = {name: array.array("q") for name in types if name != "shard"}
    texts: dict[int, set[bytes]] = {}
    try:
        with open_file(path, buffering=0) as file:
            descriptor = file.fileno()
            for offset, length, crc in walk(path, fix):
                if stopped.is_set():
                    break
                try:
                    source = from_file(descriptor, offset + HEADER_BYTES, length)
                    features = read_features(source, length, wanted)
                    labels = labels_of(features, keys.label) if multi else [label_of(features, keys.label)]
                except ValueError as error:
                    present = _names_in(descriptor, offset, length)
                    other = "" if fix == CONVERT else ". Name another feature with --label_key"
                    raise DataError(
                        f"{path}: the record at offset {offset} has no usable label: {error}{present}{other}"
                    ) from None
                for name, value in (("offset", offset), ("length", length), ("crc", crc)):
                    columns[name].append(value)
                columns["label"].extend(labels)
                if multi:
                    columns[NUM_LABELS].append(len(labels))
                if text_key and (found := features.get(text_key)) and isinstance(found[0], bytes) and found[0]:
                    known = texts.setdefault(labels[0], set())
                    if len(known) < 2:
                        known.add(found[0])
    except OSError as error:
        raise DataError(f"shard {path} cannot be read ({error.strerror}); check the file, or copy it again") from None
    return {name: np.asarray(column, types[name]) for name, column in columns.items()}, texts


def label_of(features: Mapping[str, list], key: str) -> int:
    """Returns the label among an Example's features; -1 marks an unlabeled record.

    Raises:
      ValueError: the feature is missing, or is not a valid label.
    """
    values = features.get(key)
    if values is None:
        raise ValueError(f"it has no {key!r}")
    if len(values) != 1 or not isinstance(values[0], int):
        raise ValueError(f"{key!r} is {_described(values)}, not an integer")
    if not -1 <= values[0] < LARGEST_LABEL:
        raise ValueError(f"{key!r} is {values[0]}; labels must be from 0 to {LARGEST_LABEL - 1:,}")
    return values[0]


def labels_of(features: Mapping[str, list], key: str) -> list[int]:
    """Returns the labels among the features of a multi-label Example, ascending; there may be none.

    Raises:
      ValueError: the feature is missing, or is not a list of labels in rising order.
    """
    values = features.get(key)
    if values is None:
        raise ValueError(f"it has no {key!r}")
    if not all(isinstance(value, int) and 0 <= value < LARGEST_LABEL for value in values):
        raise ValueError(f"{key!r} is {_described(values)}, not a list of labels")
    if any(value >= following for value, following in itertools.pairwise(values)):
        raise ValueError(f"{key!r} repeats a label, or its labels are not in rising order")
    return values


def _described(values: list) -> str:
    if not values:
        return "an empty list"
    kind = {bytes: "text", float: "float", int: "integer"}[type(values[0])]
    if len(values) == 1 and isinstance(values[0], bytes):
        text = values[0].decode("utf-8", "replace")
        return f"the text {text[:40]!r}" if text.isprintable() else f"{len(values[0]):,} bytes of data"
    if len(values) == 1:
        return f"the {kind} {values[0]!r}"
    return f"a list of {len(values):,} {kind}s" + " (one-hot?)" * (sum(value == 1 for value in values) == 1)


def _names_in(descriptor: int, offset: int, length: int) -> str:
    try:
        names = feature_names(from_file(descriptor, offset + HEADER_BYTES, length), length)
    except (OSError, ValueError):
        return ""
    return f" (it has {', '.join(names[:20])})" if names else ""
