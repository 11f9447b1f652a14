"""Helpers for reader tests: splits, their streams, and damage to their records."""

import dataclasses
from pathlib import Path

import numpy as np

from convoy.core.remote import RemotePath
from convoy.input_pipeline.dataset import records
from convoy.input_pipeline.dataset.open import Split
from convoy.input_pipeline.dataset.records import RecordError
from convoy.input_pipeline.reading.decode import Crop
from convoy.input_pipeline.reading.reader import BatchSlice, Reader
from convoy.input_pipeline.reading.sampler import Sampler
from convoy.input_pipeline.reading.windows import make_stripes
from tests.input_pipeline.datasets import write_split
from tests.input_pipeline.images import pixels

COLUMNS = ("shard", "offset", "length", "label", "crc")
SIZE = 16
EIGHT, WHOLE = BatchSlice(8), Crop(SIZE)
STRIPED = {"virtual_replicas": 4, "window_size": 14}  # for `stream`


def make_split(folder: Path, count: int = 60, shards: int = 3, size: int = SIZE) -> Split:
    """Writes PNGs labeled by their index in shard order, the order that `convoy convert` writes."""
    split = write_split(folder, [pixels(number, size) for number in range(count)], [0] * count, shards=shards)
    in_shards = np.lexsort((split.offset, split.shard))
    columns = {name: getattr(split, name)[in_shards] for name in COLUMNS}
    return dataclasses.replace(split, **{**columns, "label": np.arange(count, dtype=np.int32)})


def remote(split: Split) -> Split:
    """Returns the split as in an object store."""
    return dataclasses.replace(split, shard_paths=tuple(RemotePath(f"file://{path}") for path in split.shard_paths))


def striped(split: Split, virtual_replicas: int, window_size: int, slices: BatchSlice = EIGHT) -> Sampler:
    """Returns the order of a striped shuffle."""
    sizes = {"virtual_replicas": virtual_replicas, "global_batch_size": slices.global_batch_size}
    return Sampler(split, stripes=make_stripes(split, window_size=window_size, **sizes))


def stream(
    split: Split,
    steps: int,
    *,
    slices: BatchSlice = EIGHT,
    crop: Crop = WHOLE,
    draws=4,
    start_step=0,
    virtual_replicas=0,
    window_size=0,
    sampling="natural",
    **options,
):
    """Returns the columns of the first `steps` elements of the training stream; striped with virtual replicas."""
    options["sampler"] = Sampler(split, sampling=sampling)
    if virtual_replicas:
        options["sampler"] = striped(split, virtual_replicas, window_size, slices)
    reader = Reader(split, crop, draws=draws, **options)
    try:
        return columns_of(reader.training(slices, seed=3, start_step=start_step), steps)
    finally:
        reader.close()


def columns_of(batches, count: int) -> dict[str, np.ndarray]:
    taken = list(batches.take(count).as_numpy_iterator())
    return {name: np.concatenate([batch[name] for batch in taken]) for name in taken[0]}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray], where=slice(None)):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name][where], other[name][where], err_msg=name)


def assert_names_record(error: Exception | None, split: Split, index: int) -> None:
    """Asserts that an error is about a record: by attributes and in its message."""
    assert isinstance(error, RecordError)
    shard, offset = str(split.shard_paths[split.shard[index]]), int(split.offset[index])
    assert (error.path, error.offset, error.index) == (shard, offset, index)
    assert all(value in str(error) for value in (shard, str(offset), str(index)))


def flip(split: Split, index: int) -> None:
    """Flips one bit of a record's payload."""
    path = split.shard_paths[split.shard[index]]
    content = bytearray(path.read_bytes())
    content[split.offset[index] + records.HEADER_BYTES + 60] ^= 1
    path.write_bytes(content)


def without_image(split: Split, index: int) -> Split:
    """Zeroes the start of a record's image and updates its checksum; returns the updated split."""
    path = split.shard_paths[split.shard[index]]
    content = bytearray(path.read_bytes())
    start = split.offset[index] + records.HEADER_BYTES
    end = start + split.length[index]
    image = content.index(b"\x89PNG", start, end)
    content[image : image + 30] = bytes(30)
    crc = split.crc.copy()
    crc[index] = records.masked_crc(bytes(content[start:end]))
    content[end : end + 4] = int(crc[index]).to_bytes(4, "little")
    path.write_bytes(content)
    return dataclasses.replace(split, crc=crc)
