"""The images of a dataset that TFDS prepared, as sources to convert.

    directory = find_prepared("food101", default_folder())
    found = list_prepared(directory, ["train", "validation"])

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
from convoy.input_pipeline.convert.sources import Source, Sources
from convoy.input_pipeline.dataset.examples import from_bytes, locate_bytes
from convoy.input_pipeline.dataset.layout import DATASET_INFO, RecordFormat
from convoy.input_pipeline.dataset.open import Split, open_dataset
from convoy.input_pipeline.dataset.records import FRAME_OVERHEAD, HEADER_BYTES, checked_payloads
from convoy.input_pipeline.dataset.storage import Shards

_READ_AT_ONCE = 256  # records


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
      UsageError: the dataset does not exist, or has several configurations and `name` has none.
    """
    path, _, version = name.partition(":")
    root = folder / path
    if not root.is_dir():
        known = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
        raise UsageError(
            f"--tfds={name}: there is no folder {root}{did_you_mean(path, known)}. Prepare the dataset with TFDS, or "
            "pass its data_dir as --tfds_dir"
        )
    found = {info.parent for depth in ("*", "*/*") for info in root.glob(f"{depth}/{DATASET_INFO}")}
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
        raise UsageError(f"--tfds={name}: {root} has no prepared dataset{f' of version {version}' * bool(version)}")
    return max(found, key=lambda directory: [int(part) for part in re.findall(r"\d+", directory.name)])


def list_prepared(directory: Path, splits: Sequence[str], record_format: RecordFormat | None = None) -> Sources:
    """Lists the images of a prepared dataset, or of a folder of TFRecords.

    Args:
      directory: directory of the dataset.
      splits: splits to list. If two splits have the same image, the first of them keeps it. Records without a split
        by their names are of the first.
      record_format: what is known about the records.

    Returns:
      The images with their TFDS splits, named after their shard and their number in it, and all classes of the dataset.

    Raises:
      DataError: a split or a record is damaged or has no labels.
    """
    dataset = open_dataset(directory, record_format, default_split=splits[0])
    if dataset.multi_label:
        raise DataError(
            f"{directory}: its images have any number of labels, which convert reads from a CSV only. Convert the "
            "images again, with their CSV"
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
