"""Opens dataset directories, written by `convoy convert` or by other tools (`external`), as plain arrays.

    dataset = open_dataset("data")
    train = dataset.split("train")
    train.num_images, train.label[:5], train.shard_paths[train.shard[0]]

Objects of users take the place of a directory (`source`).

Opening reads the manifest and the indexes and checks the shards' sizes. It reads no images and does not import
TensorFlow, so a wrong path fails immediately. If an index is missing or does not match the shards, record headers and
labels are read instead. Nothing is written to a directory of `convoy convert`, so several processes may open it at
once.
"""

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convoy.core.errors import DataError, UsageError, did_you_mean
from convoy.core.reading import parsed_json
from convoy.core.remote import RemotePath, is_remote
from convoy.core.text import counted, megabytes
from convoy.input_pipeline.dataset import external, index
from convoy.input_pipeline.dataset.external_images import check_first_images
from convoy.input_pipeline.dataset.index import INDEX_TYPES, RecordKeys, index_path
from convoy.input_pipeline.dataset.layout import Layout, RecordFormat, read_class_names
from convoy.input_pipeline.dataset.source import Source, SourceName, open_sources, source_name
from convoy.input_pipeline.dataset.split import Split
from convoy.input_pipeline.dataset.storage import content_of, dataset_path, similar_folder

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
QUARANTINE = "quarantine.jsonl"
# Starts of a `reason` in quarantine.jsonl.
DUPLICATE = "same bytes as "
NOT_NAMED, NO_IMAGE = "not named by ", "not an image by its name"

_logger = logging.getLogger("convoy")
_FILE_WORD = re.compile(r"\w[\w.-]*")  # a file name, or part of one


class StoredImages(NamedTuple):
    """The images of a split among all that are stored together: a part of a dataset has the numbers of the whole.

    Attributes:
      digest: a hex SHA-256 that identifies the content of all of them.
      numbers: [num_images] int64, number of each image of the split among all; None for its index.
      total: number of all.
    """

    digest: str
    numbers: np.ndarray | None
    total: int


@dataclass(frozen=True)
class Dataset:
    """A dataset directory, or the sources of a user.

    `manifest` is the parsed manifest.json, empty for external datasets, whose records have `record_format`.
    """

    directory: Path | RemotePath | SourceName
    name: str
    class_names: tuple[str, ...]
    splits: tuple[str, ...]
    manifest: Mapping[str, Any]
    _opened: Mapping[str, Split | DataError] = field(repr=False, compare=False)
    record_format: RecordFormat = RecordFormat()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def multi_label(self) -> bool:
        """Whether an image has any number of labels instead of one."""
        return self.manifest.get("multi_label", False)

    @property
    def label_delimiter(self) -> str:
        """What separates the labels of an image in one text."""
        return self.manifest.get("label_delimiter", "")

    def label_text(self, split: str, image: int) -> str:
        """Returns the class of an image; the classes of an image of several labels are separated."""
        return self.label_delimiter.join(self.class_names[label] for label in self.split(split).labels_of(image))

    def split(self, name: str) -> Split:
        """Returns a split's index.

        Raises:
          DataError: there is no such split, or it cannot be used.
        """
        if name not in self._opened:
            fix = f"Add it with `convoy convert --images=... --output={self.directory} --split={name}`."
            if not self.manifest:
                fix = "The names of the shard files determine the splits."
            if isinstance(self.directory, SourceName):
                fix = f"Provide a source for {name!r}."
            raise DataError(
                f"{self.directory} has no split {name!r}{did_you_mean(name, self.splits)}. "
                f"It has: {', '.join(self.splits)}. {fix}"
            )
        split = self._opened[name]
        if isinstance(split, DataError):
            raise split
        return split

    def as_stored(self) -> "Dataset":
        """Returns the dataset with images decoded as they are stored, as runs of Convoy 0.1 did."""
        opened = {
            name: split if isinstance(split, DataError) else replace(split, as_viewed=False)
            for name, split in self._opened.items()
        }
        return replace(self, _opened=opened)

    def digest(self, split_name: str) -> str:
        """Returns a hex SHA-256 that identifies the split's content: its class names and every byte of its shards.

        Without a manifest, the digest is of the index: every record's length, label and checksum. That of a source
        covers all labels and a sample of the images (`OpenedSource.digest`).

        Raises:
          DataError: there is no such split, or it cannot be used.
        """
        split = self.split(split_name)
        if self.manifest:
            identity = [shard["sha256"] for shard in self.manifest["splits"][split_name]["shards"]]
        elif split.source:
            identity = [split.source.digest]
        else:
            arrays = hashlib.sha256()
            for name in INDEX_TYPES:
                arrays.update(np.ascontiguousarray(getattr(split, name)).data)
            identity = [arrays.hexdigest()]
        content = json.dumps([list(self.class_names), identity], ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(content.encode("ascii")).hexdigest()

    def stored_images(self, split_name: str) -> "StoredImages":
        """Returns which images a split has, for what is kept of each of them.

        Raises:
          DataError: there is no such split, or it cannot be used.
        """
        return StoredImages(self.digest(split_name), None, self.split(split_name).num_images)


Data = str | os.PathLike[str] | RemotePath | Source | Mapping[str, Source] | Dataset  # what `open_dataset` opens


def open_dataset(
    directory: Data,
    record_format: RecordFormat | None = None,
    *,
    default_split: str = "",
    keep_index: bool = True,
) -> Dataset:
    """Opens a dataset directory, or the sources of a user.

    Args:
      directory: output of `convoy convert`, local or in an object store (`s3://bucket/data`); or a local directory
        prepared by TFDS or with TFRecord shards (`external`); or a source, sources by split, or where to find them:
        `FILE.py:NAME`, `package.module:NAME` or a registered name; or a dataset that is open, which is returned.
      record_format: what is known about the records of other tools.
      default_split: the split of other tools' shards if their names contain none.
      keep_index: whether to store the index of other tools' records for the next time.

    Returns:
      The dataset, with splits sorted by name.

    Raises:
      DataError: the directory is missing, is not a dataset, or has another format version; a shard is missing or its
        size differs from the manifest; an index does not match the shards and cannot be rebuilt; a source fails.
      UsageError: there is no source of this name.
    """
    if isinstance(directory, Dataset):
        return directory
    if sources := source_name(directory):
        return _open_sources(sources)
    if not isinstance(directory, (str, os.PathLike, RemotePath)):
        return _open_sources(directory)
    path = dataset_path(directory)
    if isinstance(path, Path) and not has_manifest(path):
        record_format = record_format or RecordFormat()
        if layout := external.find_layout(path, record_format, default_split):
            return _open_external(path, layout, record_format, keep_index)
    manifest = read_manifest(path)
    class_names = tuple(manifest["class_names"])
    opened: dict[str, Split | DataError] = {
        split: _open_split(path, split, entry, len(class_names), multi_label=manifest.get("multi_label", False))
        for split, entry in sorted(manifest["splits"].items())
    }
    return Dataset(path, manifest["name"], class_names, tuple(opened), manifest, opened)


def _open_sources(data: SourceName | Source | Mapping[str, Source]) -> Dataset:
    sources = open_sources(data)
    opened: dict[str, Split | DataError] = {
        split: Split.from_source(split, source) for split, source in sources.splits.items()
    }
    name = sources.name.text.rpartition(":")[2].rpartition(" ")[2]
    return Dataset(sources.name, name, sources.class_names, tuple(opened), {}, opened)


def stated_format(
    data: str | None,
    image_key: str = "",
    label_key: str = "",
    class_names_file: str = "",
    class_names: Sequence[str] = (),
) -> RecordFormat:
    """Returns what the user says about the records of other tools in `data`, of which nothing needs to be given.

    Args:
      data: directory of the records; None if there is none yet.
      image_key: feature name of the encoded image.
      label_key: feature name of the label.
      class_names_file: text file with the class of each label, one per line.
      class_names: these classes, instead of the file.

    Raises:
      UsageError: `data` is from `convoy convert`, which states all of it; or a name in `class_names` is repeated.
      DataError: the file of class names cannot be used.
    """
    given = {"image_key": image_key, "label_key": label_key, "class_names_file": class_names_file}
    stated = [f"--{name}={value}" for name, value in {**given, "class_names": ",".join(class_names)}.items() if value]
    if stated and data and (is_remote(data) or (Path(data) / MANIFEST).is_file()):
        raise UsageError(
            f"{stated[0]}: is for TFRecords of other tools, and {data} has a {MANIFEST} of `convoy convert`. Omit it"
        )
    if stated and source_name(data):
        raise UsageError(f"{stated[0]}: is for TFRecords, and {data} is a source. Omit it")
    names = read_class_names(Path(class_names_file)) if class_names_file else tuple(class_names)
    if repeated := [name for name, number in Counter(names).items() if number > 1]:
        raise UsageError(f"class_names has {repeated[0]!r} more than once. Give each class its own name")
    return RecordFormat(image_key, label_key, names)


def _open_external(directory: Path, layout: Layout, given: RecordFormat, keep_index: bool) -> Dataset:
    indexes = external.open_indexes(directory, layout, keep=keep_index)
    class_names, record_format = external.resolve_labels(directory, layout, indexes, given)
    first = record_format.first_label or 0
    opened: dict[str, Split | DataError] = {}
    for name, found in sorted(indexes.items()):
        label = found.arrays["label"] - np.int32(first) if first else found.arrays["label"]
        if not len(label):
            opened[name] = DataError(f"split {name!r} of {directory} has no records")
        elif index.label_counts(label, len(class_names)) is None:
            text = external.label_error(directory, name, found.arrays["label"], len(class_names), first)
            opened[name] = DataError(text)
        else:
            check_first_images(layout, name, found)
            opened[name] = Split.from_index(
                name,
                layout.splits[name],
                {**found.arrays, "label": label},
                keys=layout.keys,
                states_true_sizes=False,  # the stated ones are not verified
                as_viewed=True,
                fix=layout.fix,
            )
    return Dataset(directory, layout.name, class_names, tuple(opened), {}, opened, record_format)


def has_manifest(directory: Path | RemotePath) -> bool:
    """Returns whether a directory was written by `convoy convert`."""
    if isinstance(directory, RemotePath):
        return (directory / MANIFEST).is_file()
    try:
        os.lstat(directory / MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # reading the manifest reports the error
        pass
    return True


def read_manifest(directory: Path | RemotePath) -> dict[str, Any]:
    """Returns a dataset directory's manifest.json after checking its format version and value types.

    Raises:
      DataError: the directory or the manifest is missing, unreadable, damaged or of another format version.
    """
    path = directory / MANIFEST
    try:
        if not directory.is_dir():
            raise DataError(
                f"dataset directory {directory} does not exist{similar_folder(directory)}. "
                f"Create it with `convoy convert --images=... --output={directory}`."
            )
        manifest = parsed_json(content_of(path))
        version = manifest["format_version"]
    except FileNotFoundError:
        raise DataError(
            f"{directory} is not a dataset: it has no {MANIFEST}. "
            f"To convert a directory of images, run `convoy convert --images={directory} --output=...`."
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}); convert again") from None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{directory} has dataset format version {version!r}; this Convoy reads version {FORMAT_VERSION}. "
            "Convert the images again"
        )
    try:
        _check_types(manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); convert again") from None
    return manifest


def _check_types(manifest: Mapping[str, Any]) -> None:
    """Raises KeyError, TypeError, ValueError or AttributeError if the manifest is malformed."""
    names = manifest["class_names"]
    _check(isinstance(manifest["name"], str), "name")
    _check(isinstance(names, list) and names and all(isinstance(name, str) for name in names), "class_names")
    multi_label = manifest.get("multi_label", False)
    _check(isinstance(multi_label, bool), "multi_label")
    _check(not multi_label or isinstance(manifest["label_delimiter"], str), "label_delimiter")
    for split, entry in manifest["splits"].items():
        _check(_FILE_WORD.fullmatch(split), "name of a split")
        counts, images = entry["counts"], entry["num_images"]
        _check(all(isinstance(count, int) and count >= 0 for count in counts), f"counts of {split}")
        _check(len(counts) == len(names) and images > 0, f"counts of {split}")
        are_possible = max(counts) <= images if multi_label else sum(counts) == images
        _check(are_possible, f"counts of {split}")
        for shard in entry["shards"]:
            _check(_FILE_WORD.fullmatch(shard["file"]), f"file of a shard of {split}")
            _check(isinstance(shard["bytes"], int) and 0 <= shard["bytes"] < 2**63, f"bytes of a shard of {split}")
            _check(isinstance(shard["images"], int), f"images of a shard of {split}")
            _check(isinstance(shard["sha256"], str), f"sha256 of a shard of {split}")
        _check(sum(shard["images"] for shard in entry["shards"]) == images, f"images of the shards of {split}")


def _check(condition: object, name: str) -> None:
    if not condition:
        raise ValueError(name)


def _open_split(
    directory: Path | RemotePath, name: str, entry: Mapping[str, Any], num_classes: int, *, multi_label: bool
) -> Split:
    shard_paths = tuple(directory / shard["file"] for shard in entry["shards"])
    sizes = [shard["bytes"] for shard in entry["shards"]]
    listed = directory.files() if isinstance(directory, RemotePath) else None  # one request instead of one per shard
    for shard_path, size in zip(shard_paths, sizes, strict=True):
        _check_size(shard_path, size, listed)
    path = index_path(directory, name)
    try:
        arrays = index.load(path, sizes, multi_label=multi_label)
        if wrong := _contradiction(arrays, entry, num_classes):
            raise index.IndexUnusableError(f"does not match the shards ({wrong})")
    except index.IndexUnusableError as error:
        if not isinstance(directory, Path):
            raise DataError(
                f"{path} {error}. Copy the index again from an intact copy of the dataset; in a local directory, "
                "`convoy verify --repair_index` rebuilds it"
            ) from None
        # Before scanning, which may take minutes.
        _logger.warning(
            "%s %s: reading record headers instead (%s of shards). To rebuild the index, run `convoy verify --data=%s "
            "--repair_index`.",
            path,
            error,
            megabytes(sum(sizes)),
            directory,
        )
        paths = [Path(str(path)) for path in shard_paths]
        arrays = index.scan(paths, RecordKeys(), multi_label=multi_label).arrays
        if wrong := _contradiction(arrays, entry, num_classes):
            raise DataError(
                f"the shards of split {name!r} in {directory} do not match {MANIFEST}: {wrong}; copy the dataset "
                "again, or convert again"
            ) from None
    return Split.from_index(name, shard_paths, arrays, num_classes=num_classes)


def _contradiction(arrays: Mapping[str, np.ndarray], entry: Mapping[str, Any], num_classes: int) -> str:
    """Returns how an index contradicts the split's entry in the manifest, or ""."""
    if len(arrays["offset"]) != entry["num_images"]:
        return f"{counted(len(arrays['offset']), 'record')} for {counted(entry['num_images'], 'image')}"
    counts = index.label_counts(arrays["label"], num_classes)
    if counts is None:
        return f"it has label {arrays['label'].max()}, but there are {num_classes} classes"
    if counts.tolist() != list(entry["counts"]):
        return "its labels differ from the manifest's class counts"
    return ""


def _check_size(path: Path | RemotePath, size: int, listed: Mapping[str, int] | None) -> None:
    """Compares the size of a shard; `listed` has the sizes of all files of a remote directory by name."""
    try:
        found = path.stat().st_size if listed is None else listed[path.name]
    except (OSError, KeyError):
        raise DataError(f"shard {path} is missing; copy the dataset again, or convert again") from None
    if found != size:
        raise DataError(
            f"shard {path} has {found:,} bytes, the manifest states {size:,}: it was truncated or changed; "
            "copy the dataset again, or convert again"
        )
