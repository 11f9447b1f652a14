"""A dataset directory, opened: what `convoy convert` wrote, checked against its manifest, as plain arrays.

    dataset = open_dataset("data")
    train = dataset.split("train")
    train.num_images, train.label[:5], train.shard_paths[train.shard[0]]

Opening reads the manifest and the indexes, and looks at the shards' sizes; it neither reads a record nor imports
TensorFlow, so that a wrong path answers at once.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.errors import DataError, did_you_mean
from input_pipeline.records import FRAME_OVERHEAD

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
QUARANTINE = "quarantine.jsonl"
# The index's arrays and their types, in the order they are written.
INDEX_TYPES = {"shard": np.int32, "offset": np.int64, "length": np.int64, "label": np.int32, "crc": np.uint32}


@dataclass(frozen=True)
class Split:
    """The records of one split, in the order of the shards. Image `i` of the split is entry `i` of every array."""

    name: str
    shard_paths: tuple[Path, ...]
    shard: np.ndarray  # [num_images] int32: which of shard_paths
    offset: np.ndarray  # [num_images] int64: start of the record's frame, bytes
    length: np.ndarray  # [num_images] int64: payload bytes
    label: np.ndarray  # [num_images] int32, from 0
    crc: np.ndarray  # [num_images] uint32: masked crc32c of the payload, as in the file

    @property
    def num_images(self) -> int:
        """How many images the split holds."""
        return len(self.shard)


@dataclass(frozen=True)
class Dataset:
    """A dataset directory. `manifest` is its manifest.json, as it stands."""

    directory: Path
    name: str
    class_names: tuple[str, ...]
    splits: tuple[str, ...]
    manifest: Mapping[str, Any]
    _opened: Mapping[str, Split] = field(repr=False, compare=False)

    @property
    def num_classes(self) -> int:
        """How many classes the labels tell apart."""
        return len(self.class_names)

    def split(self, name: str) -> Split:
        """Returns a split's index.

        Raises:
          DataError: there is no such split; names the nearest and all there are.
        """
        self._check(name)
        return self._opened[name]

    def digest(self, split_name: str) -> str:
        """Returns a hex SHA-256 that identifies the split's content: its class names and every byte of its shards.

        Raises:
          DataError: there is no such split.
        """
        self._check(split_name)
        shards = [shard["sha256"] for shard in self.manifest["splits"][split_name]["shards"]]
        content = json.dumps([list(self.class_names), shards], ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(content.encode("ascii")).hexdigest()

    def _check(self, name: str) -> None:
        if name not in self._opened:
            raise DataError(
                f"{self.directory} has no split {name!r}{did_you_mean(name, self.splits)}. "
                f"It has: {', '.join(self.splits)}. "
                f"`convoy convert --images=... --output={self.directory} --split={name}` adds it."
            )


def open_dataset(directory: str | os.PathLike) -> Dataset:
    """Opens a dataset directory.

    Args:
      directory: what `convoy convert` wrote.

    Returns:
      The dataset, its splits in the order of their names.

    Raises:
      DataError: the folder is missing, is no dataset or one of another format version; a shard is missing or not of
        the size the manifest says; an index does not match the shards.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    try:
        name = str(manifest["name"])
        class_names = tuple(map(str, manifest["class_names"]))
        opened = {
            split: _open_split(directory, split, entry, len(class_names))
            for split, entry in sorted(manifest["splits"].items())
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{directory / MANIFEST} is damaged ({error!r}); convert again") from None
    return Dataset(directory, name, class_names, tuple(opened), manifest, opened)


def read_manifest(directory: Path) -> dict[str, Any]:
    """Returns a dataset directory's manifest.json, its format version checked.

    Raises:
      DataError: the folder or the manifest is missing, unreadable or of another format version.
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
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}); convert again") from None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{directory} has dataset format version {version!r}, and this Convoy reads version {FORMAT_VERSION}; "
            "convert the images again"
        )
    return manifest


def index_path(directory: Path, split: str) -> Path:
    """Returns where a split's index lies."""
    return directory / f"index-{split}.npz"


def _open_split(directory: Path, name: str, entry: Mapping[str, Any], num_classes: int) -> Split:
    shard_paths = tuple(directory / shard["file"] for shard in entry["shards"])
    sizes = np.array([shard["bytes"] for shard in entry["shards"]], np.int64)
    for path, size in zip(shard_paths, sizes.tolist(), strict=True):
        _check_size(path, size)
    path = index_path(directory, name)
    arrays = _load_index(path)
    problem = _index_problem(arrays, sizes, entry["num_images"], entry["counts"], num_classes)
    if problem:
        raise DataError(
            f"{path} does not match the shards of split {name!r}: {problem}. Convert again into another folder."
        )
    return Split(name=name, shard_paths=shard_paths, **arrays)


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


def _load_index(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as index:
            arrays = {name: np.asarray(index[name], dtype) for name, dtype in INDEX_TYPES.items()}
    except FileNotFoundError:
        raise DataError(f"index {path} is missing; restore it, or convert again into another folder") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"index {path} cannot be read ({error}); restore it, or convert again into another folder"
        ) from None
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def _index_problem(
    arrays: Mapping[str, np.ndarray], sizes: np.ndarray, num_images: int, counts: list[int], num_classes: int
) -> str:
    """Says what keeps the index from being that of shards of these `sizes`, or nothing."""
    entries = {name: len(array) for name, array in arrays.items() if array.shape != (num_images,)}
    if entries:
        return f"{entries} entries for {num_images} images"
    shard, offset, length, label = (arrays[name] for name in ("shard", "offset", "length", "label"))
    if num_images and not (shard.min() >= 0 and shard.max() < len(sizes)):
        return f"it names shard {shard.max()} of {len(sizes)}"
    if num_images and not (label.min() >= 0 and label.max() < num_classes):
        return f"it holds label {label.max()} of {num_classes} classes"
    if np.bincount(label, minlength=num_classes).tolist() != list(counts):
        return "its labels differ from the manifest's counts a class"
    # Records must tile their shard: each starts where the last ended, and the last ends with the file.
    order = np.lexsort((offset, shard))
    starts = offset[order]
    ends = starts + length[order] + FRAME_OVERHEAD
    first_of_shard = np.diff(shard[order], prepend=-1) != 0
    expected = np.where(first_of_shard, 0, np.concatenate([[0], ends[:-1]])[:num_images])
    if not np.array_equal(starts, expected):
        wrong = order[int(np.argmax(starts != expected))]
        return f"record {wrong} starts at byte {offset[wrong]} of shard {shard[wrong]}, which is no record's start"
    totals = np.bincount(shard, weights=length + FRAME_OVERHEAD, minlength=len(sizes)).astype(np.int64)
    if not np.array_equal(totals, sizes):
        wrong = int(np.argmax(totals != sizes))
        return f"its records fill {totals[wrong]:,} of the {sizes[wrong]:,} bytes of shard {wrong}"
    return ""


def _nearest_folder(directory: Path) -> str:
    parent = directory.parent
    siblings = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    return did_you_mean(directory.name, siblings)
