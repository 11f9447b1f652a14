"""TFRecord directories written by other tools: TFDS datasets, or plain shards without metadata.

    layout = find_layout(directory)                   # None if it is neither
    indexes = open_indexes(directory, layout)         # by split; built from the shards when first opened

A TFDS directory is described by dataset_info.json and features.json. A plain directory has shards whose file names,
or whose directory names, contain the split (`train-00000-of-01024`, `flowers-test.tfrecord`,
`validation/01.tfrecord`), and records with the keys `image/encoded` and `image/class/label`, like the
ImageNet records of Model Garden, or `image` and `label`.

The index is stored in the subdirectory `.convoy`, or in the user's cache directory if that is not writable. It is
used as long as names, sizes and modification times of the shards are unchanged. Several processes may open and write
it at once.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
import uuid
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convoy.core.errors import DataError
from convoy.core.files import written_whole
from convoy.input_pipeline.dataset import index
from convoy.input_pipeline.dataset.examples import feature_names, from_file
from convoy.input_pipeline.dataset.index import INDEX_TYPES, LARGEST_LABEL, RecordKeys
from convoy.input_pipeline.dataset.records import HEADER_BYTES, walk

DATASET_INFO = "dataset_info.json"
FEATURES = "features.json"
TEXT_KEY = "image/class/text"

_OWN_FOLDER = ".convoy"
_FORMAT = 1  # of a stored index
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_MOST_SHARDS = 10**6
# Words in file names that identify the split.
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "eval", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NUMBERED = re.compile(
    r"(?P<stem>.+?)(?P<suffix>\.tfrecords?)?-(?P<number>\d{1,6})-of-(?P<total>\d{1,6})(\.tfrecords?)?"
)
_NAMED = re.compile(r"(?P<stem>.+)\.tfrecords?")


@dataclass(frozen=True)
class Layout:
    """The description of an external dataset directory.

    Attributes:
      name: dataset name.
      splits: shards of each split, in order.
      keys: feature names of the records.
      class_names: None if they come from the records.
      records_of_shard: expected number of records of each shard by split; empty if unknown.
      text_key: feature name of the class text; "" if there is none.
    """

    name: str
    splits: Mapping[str, tuple[Path, ...]]
    keys: RecordKeys
    class_names: tuple[str, ...] | None
    records_of_shard: Mapping[str, tuple[int, ...]]
    text_key: str = ""


def find_layout(directory: Path) -> Layout | None:
    """Returns the layout of a directory, or None if it has no TFRecords.

    Raises:
      DataError: it is a TFDS directory or has TFRecords, but cannot be used.
    """
    if os.path.isfile(directory / DATASET_INFO):
        return _tfds_layout(directory)
    try:
        return _folder_layout(directory)
    except OSError:
        return None


def open_indexes(directory: Path, layout: Layout) -> dict[str, index.Scan]:
    """Returns the index of each split: the stored one, or a new one built from the shards.

    Args:
      directory: the dataset directory.
      layout: its layout.

    Raises:
      DataError: a shard is missing or damaged, or its number of records differs from TFDS's metadata.
    """
    descriptions = {split: _description(paths, directory, layout) for split, paths in layout.splits.items()}
    kept = {split: _load_kept(directory, split, descriptions[split]) for split in layout.splits}
    missing = [split for split, found in kept.items() if found is None]
    if missing:
        size = sum(file[1] for split in missing for file in descriptions[split]["files"])
        print(
            f"convoy: {directory}: index missing or outdated: reading record headers "
            f"({', '.join(missing)}; {size / 1e6:,.1f} MB of shards).",
            file=sys.stderr,
            flush=True,
        )
    indexes = {}
    for split in layout.splits:
        found = kept[split] or _scan(layout, split)
        _check_counts(layout, split, found.arrays["shard"])
        if kept[split] is None:
            _keep(directory, split, found, descriptions[split])
        indexes[split] = found
    return indexes


def rebuild_index(directory: Path, layout: Layout, split: str) -> None:
    """Rebuilds and stores the index of a split.

    Raises:
      DataError: as `open_indexes`; or the index cannot be written.
    """
    description = _description(layout.splits[split], directory, layout)
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
    return _load_kept(directory, split, _description(layout.splits[split], directory, layout))


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
    ambiguous = {name for name in named if named.count(name) > 1} if len(set(named)) < len(named) else set()
    return tuple(f"{name} ({label})" if name in ambiguous else name for label, name in enumerate(named))


def label_error(directory: Path, split: str, label: np.ndarray, num_classes: int) -> str:
    """Returns the error message for a split with a label that is not one of the classes."""
    record = int(np.argmax((label < 0) | (label >= num_classes)))
    return (
        f"split {split!r} of {directory} cannot be used for training or evaluation: record {record} has label "
        f"{label[record]}; labels must be from 0 to {num_classes - 1}"
    )


def _scan(layout: Layout, split: str) -> index.Scan:
    return index.scan(layout.splits[split], layout.keys, layout.text_key or None)


def _check_counts(layout: Layout, split: str, shard: np.ndarray) -> None:
    paths, expected = layout.splits[split], layout.records_of_shard.get(split)
    if not expected:
        return
    counts = index.label_counts(shard, len(paths))
    assert counts is not None, "shard numbers of a valid index are in range"
    for path, found, stated in zip(paths, counts.tolist(), expected, strict=True):
        if found != stated:
            raise DataError(
                f"shard {path} has {found:,} records, {DATASET_INFO} states {stated:,}; prepare or copy it again"
            )


def _description(paths: Sequence[Path], directory: Path, layout: Layout) -> dict[str, Any]:
    """Returns the JSON data that must be unchanged for a stored index to be used."""
    files = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"shard {path} is missing ({error.strerror}); prepare or copy it again") from None
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
            with zipfile.ZipFile(path) as archive:
                stored = json.loads(index.read_array(archive, "description", np.uint8).tobytes())
                if {key: stored[key] for key in description} != description:
                    continue
                arrays = {name: index.read_array(archive, name, dtype) for name, dtype in INDEX_TYPES.items()}
            texts = {int(label): {text.encode("latin-1") for text in found} for label, found in stored["texts"]}
            if not index.find_mismatch(arrays, sizes):
                return index.Scan(index.read_only(arrays), texts)
    return None


def _keep(directory: Path, split: str, found: index.Scan, description: Mapping[str, Any]) -> None:
    """Stores an index at the first writable location; several processes may do so at once."""
    texts = [[label, sorted(text.decode("latin-1") for text in texts)] for label, texts in sorted(found.texts.items())]
    stored = np.frombuffer(json.dumps({**description, "texts": texts}).encode("ascii"), np.uint8)
    for path in _kept_paths(directory, split):
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            own = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
            with written_whole(own) as file:
                # numpy's stub checks the arrays against the type of allow_pickle.
                np.savez(file, description=stored, **found.arrays)  # type: ignore[arg-type]
            os.replace(own, path)
            return


def _tfds_layout(directory: Path) -> Layout:
    info, features = (_json(directory / name) for name in (DATASET_INFO, FEATURES))
    try:
        file_format = str(info.get("fileFormat") or "tfrecord")
        if file_format.lower() != "tfrecord":
            raise DataError(
                f"{directory} is a TFDS dataset with file format {file_format!r}. Prepare it with "
                "file_format='tfrecord'"
            )
        name = _file_word(info["name"])
        splits, records = {}, {}
        for entry in info["splits"]:
            split = _file_word(entry["name"])
            lengths = tuple(int(length) for length in entry["shardLengths"])
            if not lengths or len(lengths) > _MOST_SHARDS or min(lengths) < 0:
                raise ValueError(f"split {split} has {len(lengths)} shards")
            template = str(entry.get("filepathTemplate") or _TEMPLATE)
            files = [_shard_file(template, name, split, i, len(lengths)) for i in range(len(lengths))]
            splits[split], records[split] = tuple(directory / file for file in files), lengths
        if not splits:
            raise ValueError("it has no splits")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(f"{directory / DATASET_INFO} cannot be used ({error!r}); prepare the dataset again") from None
    try:
        flat = dict(_flat_features(features, ()))
        image = _find_key(directory, flat, "Image", "image")
        label = _find_key(directory, flat, "ClassLabel", "label")
        dtype = flat[image].get("image", {}).get("dtype") or "uint8"
        if dtype != "uint8":
            raise DataError(f"{directory}: the images in {image!r} are {dtype}; Convoy reads only uint8 images")
        number = int(flat[label].get("classLabel", {}).get("numClasses") or 0)
        if not 0 <= number <= LARGEST_LABEL:
            raise ValueError(f"{number} classes")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{directory / FEATURES} cannot be used ({error!r}); prepare the dataset again") from None
    return Layout(name, splits, RecordKeys(image, label), _tfds_class_names(directory, label, number), records)


def _json(path: Path) -> Any:  # noqa: ANN401 (any JSON value)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing; prepare the TFDS dataset again, with a version that writes it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}); prepare the dataset again") from None


def _file_word(name: object) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
        raise ValueError(f"{name!r} cannot be part of a file name")
    return name


def _shard_file(template: str, name: str, split: str, number: int, total: int) -> str:
    values = {
        "DATASET": name,
        "SPLIT": split,
        "FILEFORMAT": "tfrecord",
        "SHARD_INDEX": f"{number:05d}",
        "NUM_SHARDS": f"{total:05d}",
        "SHARD_X_OF_Y": f"{number:05d}-of-{total:05d}",
    }
    return _file_word(re.sub(r"\{(\w+)\}", lambda match: values[match[1]], template))


def _flat_features(features: Mapping[str, Any], path: tuple[str, ...]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Yields features by record key; the keys of nested features are joined by slashes."""
    nested = features.get("featuresDict")
    if nested is None:
        yield "/".join(path), features
        return
    for name, inner in nested["features"].items():
        yield from _flat_features(inner, (*path, name))


def _find_key(directory: Path, flat: Mapping[str, Mapping[str, Any]], kind: str, default: str) -> str:
    """Returns the key of the only feature of a kind, or among several the one named `default`."""
    keys = [key for key, feature in flat.items() if feature["pythonClassName"].split(".")[-1] == kind]
    if len(keys) == 1:
        return keys[0]
    if default in keys:
        return default
    found = f"{len(keys)} {kind} features ({', '.join(keys)})" if keys else f"no {kind} feature"
    raise DataError(
        f"{directory} has {found}; its features are {', '.join(sorted(flat)[:20])}. Convoy needs one Image and one "
        "ClassLabel feature, or among several those named 'image' and 'label'"
    )


def _tfds_class_names(directory: Path, label: str, number: int) -> tuple[str, ...] | None:
    path = directory / f"{label.replace('/', '.')}.labels.txt"
    try:
        names = tuple(path.read_text(encoding="utf-8").split("\n"))
    except FileNotFoundError:
        return tuple(map(str, range(number))) if number else None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); prepare the dataset again") from None
    names = names[:-1] if names[-1] == "" else names
    if number and len(names) != number:
        raise DataError(f"{path} has {len(names)} lines, {FEATURES} states {number} classes; prepare it again")
    return names


def _folder_layout(directory: Path) -> Layout | None:
    files = sorted(_files(directory))
    inner = next((path.parent for path in files if path.name == DATASET_INFO and path.parent != directory), None)
    if inner:
        raise DataError(f"{directory} is not a dataset; did you mean its subdirectory? Pass --data={inner}")
    found: dict[str, list[Path]] = {}
    numbered: dict[tuple[Path, str], list[tuple[int, int]]] = {}  # total and number of each, by folder and stem
    for path in files:
        parsed = _NUMBERED.fullmatch(path.name) or _NAMED.fullmatch(path.name)
        if not parsed:
            continue
        parts = parsed.groupdict()
        split = _split_of(parts["stem"])
        if "number" in parts:
            if not split and parts["suffix"] and "-" in parts["stem"]:
                split = parts["stem"].rpartition("-")[2]
            if not split and "tfrecord" not in path.name:
                continue  # for example the shards of a checkpoint
            shard = (int(parts["total"]), int(parts["number"]))
            numbered.setdefault((path.parent, parts["stem"]), []).append(shard)
        if not split and path.parent != directory:
            split = _split_of(path.parent.name)
        if not split:
            raise DataError(
                f"{path}: unknown split. Put 'train', 'validation' or 'test' in its name, for example "
                "train-00000-of-00008, or in the name of its directory"
            )
        found.setdefault(split, []).append(path)
    for (folder, stem), shards in numbered.items():
        _check_complete(folder, stem, shards)
    if not found:
        compressed = next((path for path in files if ".tfrecord" in path.name and path.suffix == ".gz"), None)
        if compressed:
            raise DataError(f"{compressed} is compressed: single records cannot be read; decompress it (gunzip)")
        return None
    first = next((path for paths in found.values() for path in paths if path.stat().st_size), None)
    keys, text_key = _keys_in(first) if first else (RecordKeys(), "")
    splits = {split: tuple(paths) for split, paths in sorted(found.items())}
    return Layout(directory.absolute().name, splits, keys, None, {}, text_key)


def _check_complete(folder: Path, stem: str, shards: Sequence[tuple[int, int]]) -> None:
    """Checks that a set of shards, given as (total, number), is complete and without duplicates."""
    totals, numbers = sorted({total for total, _ in shards}), {number for _, number in shards}
    if len(totals) > 1:
        raise DataError(
            f"{folder} has shards {stem!r} of a set of {totals[0]} and of a set of {totals[1]}, so images may be "
            "duplicated: move the outdated set elsewhere"
        )
    (total,) = totals
    if len(numbers) != total or max(numbers) >= total:
        missing = min(set(range(total)) - numbers, default=total)
        raise DataError(f"{folder}: shard {missing} of the {total} shards {stem!r} is missing; copy them again")
    if len(shards) != total:
        twice = next(number for _, number in shards if shards.count((total, number)) > 1)
        raise DataError(
            f"{folder} has shard {twice} of the {total} shards {stem!r} twice, with different suffixes: move the "
            "outdated set elsewhere"
        )


def _files(directory: Path) -> Iterable[Path]:
    """Yields the files of a directory and of its subdirectories, except hidden entries."""
    for entry in os.scandir(directory):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from (Path(inner.path) for inner in os.scandir(entry.path) if inner.is_file())
        elif entry.is_file():
            yield Path(entry.path)


def _split_of(name: str) -> str:
    """Returns the split identified by the last matching word of a name, or ""."""
    known = [_SPLIT_WORDS[word] for word in re.findall("[a-z]+", name.lower()) if word in _SPLIT_WORDS]
    return known[-1] if known else ""


def _keys_in(shard: Path) -> tuple[RecordKeys, str]:
    """Returns the keys of image and label in the first record of a shard, and the key of the class text or ""."""
    offset, length, _ = next(walk(shard))
    try:
        with open(shard, "rb") as file:
            names = feature_names(from_file(file.fileno(), offset + HEADER_BYTES, length), length)
    except (OSError, ValueError) as error:
        raise DataError(f"{shard}: the record at offset {offset} is not a tf.train.Example ({error})") from None
    for keys, text_key in ((RecordKeys(), TEXT_KEY), (RecordKeys("image", "label"), "")):
        if set(keys) <= set(names):
            return keys, text_key if text_key in names else ""
    raise DataError(
        f"{shard}: the records have {', '.join(names[:20]) or 'no features'}. Convoy needs "
        f"{' and '.join(RecordKeys())}, or image and label"
    )
