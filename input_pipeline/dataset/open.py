"""A dataset directory, opened: what `convoy convert` wrote, or a directory of TFRecords of others, as plain arrays.

    dataset = open_dataset("data")
    train = dataset.split("train")
    train.num_images, train.label[:5], train.shard_paths[train.shard[0]]

Opening reads the manifest and the indexes, and looks at the shards' sizes; it reads no image and does not import
TensorFlow, so that a wrong path answers at once. Where an index is missing or is not that of the shards, the records'
headers and labels are read instead. Nothing is ever written into a directory of ours here: several processes may open
it at once.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convoy.core.errors import DataError, did_you_mean
from convoy.input_pipeline.dataset import external as foreign
from convoy.input_pipeline.dataset import index
from convoy.input_pipeline.dataset.index import INDEX_TYPES, RecordKeys, index_path
from convoy.input_pipeline.dataset.storage import RemotePath, dataset_path

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
QUARANTINE = "quarantine.jsonl"

_FILE_WORD = re.compile(r"\w[\w.-]*")  # a file's name, or part of one


@dataclass(frozen=True)
class Split:
    """The records of one split, in the order of the shards. Image `i` of the split is entry `i` of every array."""

    name: str
    shard_paths: tuple[Path | RemotePath, ...]
    shard: np.ndarray  # [num_images] int32: which of shard_paths
    offset: np.ndarray  # [num_images] int64: start of the record's frame, bytes
    length: np.ndarray  # [num_images] int64: payload bytes
    label: np.ndarray  # [num_images] int32, from 0
    crc: np.ndarray  # [num_images] uint32: masked crc32c of the payload, as in the file
    keys: RecordKeys = RecordKeys()  # where the records hold image and label
    states_true_sizes: bool = True  # whether each image is as high and wide as its record says

    @property
    def num_images(self) -> int:
        """How many images the split holds."""
        return len(self.shard)


@dataclass(frozen=True)
class Dataset:
    """A dataset directory. `manifest` is its manifest.json, as it stands; empty where `convoy convert` wrote none."""

    directory: Path | RemotePath
    name: str
    class_names: tuple[str, ...]
    splits: tuple[str, ...]
    manifest: Mapping[str, Any]
    _opened: Mapping[str, Split | DataError] = field(repr=False, compare=False)

    @property
    def num_classes(self) -> int:
        """How many classes the labels tell apart."""
        return len(self.class_names)

    def split(self, name: str) -> Split:
        """Returns a split's index.

        Raises:
          DataError: there is no such split (names the nearest and all there are), or it cannot be used.
        """
        if name not in self._opened:
            fix = f"`convoy convert --images=... --output={self.directory} --split={name}` adds it."
            if not self.manifest:
                fix = "Splits are told by the names of its files."
            raise DataError(
                f"{self.directory} has no split {name!r}{did_you_mean(name, self.splits)}. "
                f"It has: {', '.join(self.splits)}. {fix}"
            )
        split = self._opened[name]
        if isinstance(split, DataError):
            raise split
        return split

    def digest(self, split_name: str) -> str:
        """Returns a hex SHA-256 that identifies the split's content: its class names and every byte of its shards.

        Where no manifest has the shards' own, the index stands for them: every record's length, label and checksum.

        Raises:
          DataError: there is no such split, or it cannot be used.
        """
        split = self.split(split_name)
        if self.manifest:
            identity = [shard["sha256"] for shard in self.manifest["splits"][split_name]["shards"]]
        else:
            arrays = hashlib.sha256()
            for name in INDEX_TYPES:
                arrays.update(np.ascontiguousarray(getattr(split, name)))
            identity = [arrays.hexdigest()]
        content = json.dumps([list(self.class_names), identity], ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(content.encode("ascii")).hexdigest()


def open_dataset(directory: str | os.PathLike) -> Dataset:
    """Opens a dataset directory.

    Args:
      directory: what `convoy convert` wrote: a folder, or `SCHEME://...` of a file system that TensorFlow knows. Or a
        folder that TFDS prepared, or one of TFRecord shards (`foreign`).

    Returns:
      The dataset, its splits in the order of their names.

    Raises:
      DataError: the folder is missing, is no dataset or one of another format version; a shard is missing or not of
        the size the manifest says; an index is not that of the shards, and cannot be had from them.
    """
    directory = dataset_path(directory)
    if isinstance(directory, Path) and not has_manifest(directory) and (layout := foreign.find_layout(directory)):
        return _open_foreign(directory, layout)
    manifest = read_manifest(directory)
    class_names = tuple(manifest["class_names"])
    opened = {
        split: _open_split(directory, split, entry, len(class_names))
        for split, entry in sorted(manifest["splits"].items())
    }
    return Dataset(directory, manifest["name"], class_names, tuple(opened), manifest, opened)


def _open_foreign(directory: Path, layout: foreign.Layout) -> Dataset:
    indexes = foreign.open_indexes(directory, layout)
    class_names = layout.class_names or foreign.names_of_labels(indexes.values())
    if not class_names:
        raise DataError(f"{directory}: its shards hold no record with a label")
    opened: dict[str, Split | DataError] = {}
    for name, found in sorted(indexes.items()):
        label = found.arrays["label"]
        if not len(label):
            opened[name] = DataError(f"split {name!r} of {directory} holds no record")
        elif index.label_counts(label, len(class_names)) is None:
            opened[name] = DataError(foreign.unlabelled(directory, name, label, len(class_names)))
        else:
            opened[name] = Split(
                name=name,
                shard_paths=layout.splits[name],
                keys=layout.keys,
                states_true_sizes=False,  # nobody checked them
                **found.arrays,
            )
    return Dataset(directory, layout.name, class_names, tuple(opened), {}, opened)


def has_manifest(directory: Path) -> bool:
    """Says whether a directory is one that `convoy convert` wrote."""
    try:
        return (directory / MANIFEST).is_file()
    except OSError:  # reading it will say why
        return True


def read_manifest(directory: Path) -> dict[str, Any]:
    """Returns a dataset directory's manifest.json, its format version and the types of its values checked.

    Raises:
      DataError: the folder or the manifest is missing, unreadable, damaged or of another format version.
    """
    path = directory / MANIFEST
    try:
        if not directory.is_dir():
            raise DataError(
                f"dataset folder {directory} does not exist{_nearest_folder(directory)}. "
                f"`convoy convert --images=... --output={directory}` makes one."
            )
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format_version"]
    except FileNotFoundError:
        raise DataError(
            f"{directory} is not a dataset: it has no {MANIFEST}. "
            f"`convoy convert --images={directory} --output=...` makes a dataset of a folder of images."
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}); convert again") from None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{directory} has dataset format version {version!r}, and this Convoy reads version {FORMAT_VERSION}; "
            "convert the images again"
        )
    try:
        _check_types(manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); convert again") from None
    return manifest


def _check_types(manifest: Mapping[str, Any]) -> None:
    """Raises a KeyError, TypeError, ValueError or AttributeError where the manifest is not what `convert` writes."""
    names = manifest["class_names"]
    _check(isinstance(manifest["name"], str), "name")
    _check(isinstance(names, list) and names and all(isinstance(name, str) for name in names), "class_names")
    for split, entry in manifest["splits"].items():
        _check(_FILE_WORD.fullmatch(split), "name of a split")
        counts, images = entry["counts"], entry["num_images"]
        _check(all(isinstance(count, int) and count >= 0 for count in counts), f"counts of {split}")
        _check(len(counts) == len(names) and sum(counts) == images > 0, f"counts of {split}")
        for shard in entry["shards"]:
            _check(_FILE_WORD.fullmatch(shard["file"]), f"file of a shard of {split}")
            _check(isinstance(shard["bytes"], int) and 0 <= shard["bytes"] < 2**63, f"bytes of a shard of {split}")
            _check(isinstance(shard["images"], int), f"images of a shard of {split}")
            _check(isinstance(shard["sha256"], str), f"sha256 of a shard of {split}")
        _check(sum(shard["images"] for shard in entry["shards"]) == images, f"images of the shards of {split}")


def _check(holds: object, name: str) -> None:
    if not holds:
        raise ValueError(name)


def _open_split(directory: Path, name: str, entry: Mapping[str, Any], num_classes: int) -> Split:
    shard_paths = tuple(directory / shard["file"] for shard in entry["shards"])
    sizes = np.array([shard["bytes"] for shard in entry["shards"]], np.int64)
    for path, size in zip(shard_paths, sizes.tolist(), strict=True):
        _check_size(path, size)
    arrays, problem = _usable_index(index_path(directory, name), sizes.tolist(), entry, num_classes)
    if problem and not isinstance(directory, Path):
        raise DataError(
            f"{index_path(directory, name)} {problem}. Copy it there again from where it is whole; in a folder "
            "`convoy verify --repair_index` mends it"
        )
    if problem:
        # On the spot, because it may take minutes.
        print(
            f"convoy: {index_path(directory, name)} {problem}: reading the headers of the records instead "
            f"({sizes.sum() / 1e6:,.1f} MB of shards). `convoy verify --data={directory} --repair_index` mends that.",
            file=sys.stderr,
            flush=True,
        )
        arrays = index.scan(shard_paths, RecordKeys()).arrays
        if wrong := _contradiction(arrays, entry, num_classes):
            raise DataError(
                f"the shards of split {name!r} in {directory} are not those of {MANIFEST}: {wrong}; copy the dataset "
                "again, or convert again"
            )
    return Split(name=name, shard_paths=shard_paths, **arrays)


def _usable_index(
    path: Path, sizes: list[int], entry: Mapping[str, Any], num_classes: int
) -> tuple[dict[str, np.ndarray], str]:
    """Returns an index, and what keeps it from being that of the shards or nothing.

    Args:
      path: of the index.
      sizes: of the shards, bytes.
      entry: the split's in the manifest.
      num_classes: of the dataset.
    """
    try:
        arrays = index.load(path)
    except index.IndexUnusableError as error:
        return {}, str(error)
    wrong = index.misfit(arrays, sizes) or _contradiction(arrays, entry, num_classes)
    return arrays, f"does not match the shards ({wrong})" if wrong else ""


def _contradiction(arrays: Mapping[str, np.ndarray], entry: Mapping[str, Any], num_classes: int) -> str:
    """Says where an index and a split's entry in the manifest differ, or nothing."""
    if len(arrays["label"]) != entry["num_images"]:
        return f"{len(arrays['label']):,} records for {entry['num_images']:,} images"
    counts = index.label_counts(arrays["label"], num_classes)
    if counts is None:
        return f"it holds label {arrays['label'].max()} of {num_classes} classes"
    if counts.tolist() != list(entry["counts"]):
        return "its labels differ from the manifest's counts a class"
    return ""


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError:
        raise DataError(f"shard {path} is missing; copy the dataset again, or convert again") from None
    if found != size:
        raise DataError(
            f"shard {path} has {found:,} bytes and the manifest says {size:,}: it was cut short or changed; "
            "copy the dataset again, or convert again"
        )


def _nearest_folder(directory: Path) -> str:
    parent = directory.parent
    siblings = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    return did_you_mean(directory.name, siblings)
