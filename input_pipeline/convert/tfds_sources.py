"""The images of a dataset that TFDS prepared, or of TFRecords of other tools, as sources to convert.

    dataset = open_dataset(find_prepared("food101", default_folder()))
    found = list_prepared(dataset, ["train", "validation"])

Images are read in place from TFDS's shards. Neither TFDS nor TensorFlow is imported.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from convoy.core.errors import DataError, UsageError, did_you_mean
from convoy.core.registry import is_from_file
from convoy.input_pipeline.convert.compressed import uncompressed
from convoy.input_pipeline.convert.options import VALIDATION, Options
from convoy.input_pipeline.convert.request import Log, Request
from convoy.input_pipeline.convert.sources import Source, Sources
from convoy.input_pipeline.convert.tfds_download import directory_of, prepare
from convoy.input_pipeline.dataset.examples import from_bytes, locate_bytes
from convoy.input_pipeline.dataset.layout import DATASET_INFO
from convoy.input_pipeline.dataset.open import Dataset, Split, open_dataset
from convoy.input_pipeline.dataset.records import FRAME_OVERHEAD, HEADER_BYTES, checked_payloads
from convoy.input_pipeline.dataset.storage import Shards

_READ_AT_ONCE = 256  # records
_INCOMPLETE = "incomplete."  # start of the names of directories that TFDS was writing when it was killed


class NotPreparedError(UsageError):
    """There is no prepared dataset of a name."""


@contextlib.contextmanager
def opened_tfds(request: Request, log: Log) -> Iterator[Options]:
    """Yields the options for a TFDS dataset, with its splits; prepares it if asked to."""
    name, folder = request.text("tfds"), Path(request.text("tfds_dir") or default_folder())
    request.refuse("tfds", ("split", "splits"), "its own splits")
    directory = _directory(request, name, folder, log)
    dataset = open_dataset(directory, request.record_format, keep_index=not request.is_dry_run)
    own = request.own_splits("tfds", _usable_splits(dataset, f"--tfds={name}", log))
    if "train" in own and VALIDATION not in own and request.validation_fraction is None:
        log(
            f"--tfds={name} has no split {VALIDATION!r} (it has {', '.join(own)}), so that training on it has no "
            "evaluation. --validation_fraction=0.1 takes one from 'train'."
        )
    yield request.options(
        directory,
        split_folders=own,
        validation_fraction=request.validation_fraction or 0.0,
        prepared=True,
        listing=partial(_listed, dataset, list(own)),
    )


def _directory(request: Request, name: str, folder: Path, log: Log) -> Path:
    """Returns the directory of a dataset; prepares it if asked to."""
    download = bool(request.origin.get("download"))
    try:
        if not is_from_file(name):
            return find_prepared(name, folder)
        if request.is_dry_run or not download:  # else `prepare` finds it
            return _of_builder(name, folder)
    except NotPreparedError as error:
        if not download:
            raise
        if request.is_dry_run:
            raise UsageError(
                f"--download: {name} is not prepared in {folder}, and --dry_run writes nothing. Omit --dry_run"
            ) from error
    return prepare(name, folder, request.record_format, log, show_bars=request.show_bars)


def _of_builder(name: str, folder: Path) -> Path:
    directory = directory_of(name, folder)
    if not directory.is_dir():
        raise NotPreparedError(
            f"--tfds={name}: there is no folder {directory}. Pass --download to prepare the dataset, or the data_dir "
            "that has it as --tfds_dir"
        )
    return directory


@contextlib.contextmanager
def opened_records(request: Request, log: Log) -> Iterator[Options]:
    """Yields the options for a folder of TFRecords, with the splits of their names; compressed ones are copied."""
    source = f"--tfrecords={request.text('tfrecords')}"
    with uncompressed(Path(request.text("tfrecords")), request.local_output, log) as folder:
        dataset = open_dataset(
            folder,
            request.record_format,
            default_split=request.default_split,
            keep_index=not request.is_dry_run,
        )
        if not dataset.manifest and dataset.record_format.first_label:
            log(f"{source}: labels are from {dataset.record_format.first_label}: that is the first class.")
        own = request.own_splits("tfrecords", _usable_splits(dataset, source, log))
        yield request.options(folder, split_folders=own, prepared=True, listing=partial(_listed, dataset, list(own)))


def _listed(dataset: Dataset, splits: Sequence[str]) -> contextlib.AbstractContextManager[Sources]:
    return contextlib.nullcontext(list_prepared(dataset, splits))


def _usable_splits(dataset: Dataset, source: str, log: Log) -> list[str]:
    """Returns the splits of a dataset whose records have labels, train first; logs the others."""
    usable = []
    for split in sorted(dataset.splits, key=lambda split: (split != "train", split)):
        try:
            dataset.split(split)
            usable.append(split)
        except DataError as error:
            log(f"{error}: split left out.")
    if not usable:
        raise DataError(f"{source}: {dataset.directory} has no usable split")
    return usable


def default_folder() -> Path:
    """Returns the default `data_dir` of TFDS."""
    return Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")


def find_prepared(name: str, folder: Path) -> Path:
    """Returns the directory of a prepared dataset.

    Args:
      name: `mnist`, `mnist:3.0.1`, `imagenet_resized/64x64` or `imagenet_resized/64x64:0.1.0`, as in TFDS. Without a
        version the newest is used.
      folder: TFDS's `data_dir`.

    Raises:
      NotPreparedError: the dataset is not there.
      UsageError: it has several configurations, and `name` has none; or `name` is the path of a dataset elsewhere.
    """
    path, _, version = name.partition(":")
    root = folder / path
    if not root.is_dir():
        _refuse_folder(name)
        known = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
        raise NotPreparedError(
            f"--tfds={name}: there is no folder {root}{did_you_mean(path, known)}. Pass --download to prepare the "
            "dataset, or the data_dir that has it as --tfds_dir"
        )
    found = {info.parent for depth in ("*", "*/*") for info in root.glob(f"{depth}/{DATASET_INFO}")}
    found = {directory for directory in found if not directory.name.startswith(_INCOMPLETE)}
    if (root / DATASET_INFO).is_file():
        found.add(root)
    if version:
        found = {directory for directory in found if directory.name == version}
    configurations = sorted({str(directory.parent.relative_to(folder)) for directory in found if directory != root})
    if len(configurations) > 1:
        raise UsageError(
            f"--tfds={name} has {len(configurations)} configurations. Name one, such as --tfds={configurations[0]}"
        )
    if not found:
        of_version = f" of version {version}" if version else ""
        raise NotPreparedError(
            f"--tfds={name}: {root} has no prepared dataset{of_version}. Pass --download to prepare it"
        )
    return max(found, key=lambda directory: [int(part) for part in re.findall(r"\d+", directory.name)])


def _refuse_folder(name: str) -> None:
    """Raises a UsageError if the name is the path of a prepared dataset, or of its folder."""
    path = Path(name)
    if (path / DATASET_INFO).is_file():
        raise UsageError(f"--tfds={name} is a folder, not the name of a dataset. Pass --tfrecords={name}")
    if any(path.glob(f"*/{DATASET_INFO}")):
        named = f"--tfds={path.name} --tfds_dir={path.parent}"
        raise UsageError(f"--tfds={name} is a folder, not the name of a dataset. Pass {named}")


def list_prepared(dataset: Dataset, splits: Sequence[str]) -> Sources:
    """Lists the images of a prepared dataset, or of a folder of TFRecords.

    Args:
      dataset: the dataset.
      splits: splits to list. If two splits have the same image, the first of them keeps it.

    Returns:
      The images with their TFDS splits, named after their shard and their number in it, and all classes of the dataset.

    Raises:
      DataError: a split or a record is damaged or has no labels.
    """
    if dataset.multi_label:
        raise DataError(
            f"{dataset.directory}: its images have any number of labels, which convert reads from a CSV only. Convert "
            "the images again, with their CSV"
        )
    images: list[Source] = []
    for name in splits:
        split = dataset.split(name)
        for shard in range(len(split.shard_paths)):
            images += _images_of_shard(split, shard, dataset.class_names)
    return Sources(tuple(images), dataset.class_names)


def _images_of_shard(split: Split, shard: int, class_names: Sequence[str]) -> Iterator[Source]:
    """Yields the images of a shard, as `list_prepared`."""
    path = Path(str(split.shard_paths[shard]))
    first, stop = np.searchsorted(split.shard, np.array([shard, shard + 1], split.shard.dtype)).tolist()
    with contextlib.closing(Shards([path])) as shards:
        modified = path.stat().st_mtime_ns
        for start in range(first, stop, _READ_AT_ONCE):
            locations = split.locations(np.arange(start, min(start + _READ_AT_ONCE, stop)))
            sizes = (locations.length + FRAME_OVERHEAD).tolist()
            frames = map(partial(shards.read, 0), locations.offset.tolist(), sizes)
            for index, payload in zip(locations.index.tolist(), checked_payloads(frames, locations), strict=True):
                try:
                    begin, end = locate_bytes(from_bytes(payload), len(payload), split.keys.image)
                except ValueError as error:
                    raise DataError(
                        f"{path}: the record at offset {split.offset[index]} has no usable {split.keys.image!r}: "
                        f"{error}; {split.fix}"
                    ) from None
                yield Source(
                    path=str(path),
                    name=f"{path.name}/{index - first:07d}",
                    category=class_names[split.label[index]],
                    size=end - begin,
                    modified=modified,
                    offset=int(split.offset[index]) + HEADER_BYTES + begin,
                    split=split.name,
                )
