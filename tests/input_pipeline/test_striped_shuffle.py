"""Striped shuffle through the reader, from local directories and from remote paths."""

import contextlib
import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from convoy.core.errors import ConvoyError, DataError
from convoy.core.remote import RemotePath
from convoy.input_pipeline.convert.convert import Options, convert
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.dataset.records import FRAME_OVERHEAD
from convoy.input_pipeline.dataset.storage import Shards
from convoy.input_pipeline.reading.decode import Crop
from convoy.input_pipeline.reading.reader import BatchSlice, Reader
from convoy.input_pipeline.reading.windows import RangeReader, make_stripes
from tests.input_pipeline.images import draw_classes
from tests.input_pipeline.streams import (
    COLUMNS,
    SIZE,
    STRIPED,
    assert_same,
    columns_of,
    make_split,
    remote,
    stream,
    striped,
)
from tests.object_stores import upload_folder

IMAGES = 60


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return make_split(tmp_path_factory.mktemp("data"), IMAGES)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return make_split(tmp_path_factory.mktemp("many"), 400, shards=7, size=8)


@pytest.fixture
def reads(monkeypatch):
    """Records each (shard, offset, size) that is read."""
    recorded = []
    read = Shards.read

    def recording(shards, shard, offset, size):
        recorded.append((shard, offset, size))
        return read(shards, shard, offset, size)

    monkeypatch.setattr(Shards, "read", recording)
    return recorded


@pytest.fixture
def without_gaps(monkeypatch):
    """No gaps between records are read: in shards as small as these, all gaps are small."""
    monkeypatch.setattr("convoy.input_pipeline.reading.windows._SKIPPED_BYTES", 0)


def read_by(process: int, processes: int, split, steps: range, *, virtual_replicas=8, window_size=14, **calls):
    """Reads the frames of a process, two steps per call; returns them by position, and the most window bytes at once.

    Calls are `swapped` where the second of two comes first, as with two threads.
    """
    slices = BatchSlice(16, processes, first_replica=process, local_replicas=1)
    sampler = striped(split, virtual_replicas, window_size, slices)
    frames, most_bytes = {}, 0
    firsts = [*steps[::2]]
    if calls.get("swapped"):
        firsts = [first for pair in zip(firsts[1::2], firsts[::2], strict=True) for first in pair]
    with (
        contextlib.closing(Shards(split.shard_paths)) as shards,
        contextlib.closing(RangeReader(split, shards)) as reader,
    ):
        for first in firsts:
            positions = np.concatenate([slices.positions(first), slices.positions(first + 1)])
            indices, _ = sampler.locate(positions, 3)
            read = list(reader.read_windows(sampler.stripes, positions, indices, seed=3))
            frames |= dict(zip(positions.tolist(), read, strict=True))
            most_bytes = max(most_bytes, reader.window_bytes)
    return frames, most_bytes


def frames_of(split, indices) -> list[bytes]:
    frames = []
    for index in indices:
        content = split.shard_paths[split.shard[index]].read_bytes()
        frames.append(content[split.offset[index] :][: split.length[index] + FRAME_OVERHEAD])
    return frames


@pytest.mark.parametrize("part", [slice(None), np.flatnonzero(np.arange(400) % 5 != 2)], ids=["whole", "fold"])
def test_processes_together_read_the_records_of_the_same_order(many, part):
    split = dataclasses.replace(many, **{name: getattr(many, name)[part] for name in COLUMNS})
    steps = range(2 * split.num_images // 16 // 2 * 2)
    positions = np.arange(16 * len(steps))
    expected = frames_of(split, striped(split, 8, 14, BatchSlice(16)).locate(positions, 3)[0])
    for processes in (1, 2, 4):
        together = {}
        for process in range(processes):
            together |= read_by(process, processes, split, steps)[0]
        assert [together[position] for position in positions] == expected


@pytest.mark.usefixtures("without_gaps")
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_each_process_reads_its_share_of_the_bytes_once(many, reads, processes, swapped):
    epochs, steps = 4, range(4 * 400 // 16)
    total = int((many.length + FRAME_OVERHEAD).sum())
    next_windows = int(14 * (many.length.max() + FRAME_OVERHEAD) * 8 // processes)  # prefetched at the end
    times_read = [np.zeros(path.stat().st_size, int) for path in many.shard_paths]
    for process in range(processes):
        reads.clear()
        read_by(process, processes, many, steps, swapped=swapped)
        bytes_read = sum(size for _, _, size in reads)
        assert bytes_read == pytest.approx(epochs * total / processes, abs=next_windows)
        for shard, offset, size in reads:
            times_read[shard][offset : offset + size] += 1
    for shard, times in enumerate(times_read):
        for offset, length in zip(*(column[many.shard == shard] for column in (many.offset, many.length)), strict=True):
            of_record = times[offset : offset + length + FRAME_OVERHEAD]
            assert epochs <= of_record.min() and of_record.max() <= epochs + 1


@pytest.mark.parametrize("window_size", [1, 5, 25, 1000])
@pytest.mark.usefixtures("without_gaps")
def test_at_most_three_windows_of_each_local_virtual_replica_are_in_memory(many, window_size):
    record_bytes = int(many.length.max()) + FRAME_OVERHEAD
    for processes in (1, 4):
        _, most_bytes = read_by(0, processes, many, range(40), window_size=window_size)
        needed = 2 * 2 * 16 // processes  # records of two calls
        assert most_bytes <= (3 * min(window_size, 51) * 8 // processes + needed) * record_bytes


@pytest.mark.usefixtures("without_gaps")
def test_resuming_reads_the_same_records_with_no_earlier_ones(many, reads):
    whole, _ = read_by(1, 2, many, range(60))
    reads.clear()
    resumed, _ = read_by(1, 2, many, range(30, 60))
    assert resumed == {position: frame for position, frame in whole.items() if position >= 30 * 16}
    bytes_read = sum(size for _, _, size in reads)
    assert bytes_read < 30 * 8 * many.length.mean() + 3 * 4 * 14 * many.length.max()


@pytest.mark.usefixtures("without_gaps")
def test_windows_are_read_in_few_long_reads(many, reads):
    read_by(0, 1, many, range(100))  # 4 epochs of 8 stripes of 50 records, in 4 windows each
    assert len(reads) < 4 * 8 * 4 * 1.5 + 8


def test_stream_follows_the_order_and_shows_each_image_once_per_epoch(split):
    seen = stream(split, 30, **STRIPED)
    expected, _ = striped(split, 4, 14).locate(np.arange(240), 3)
    assert np.array_equal(seen["index"], expected)
    assert np.array_equal(seen["label"], seen["index"])
    for epoch in range(4):
        assert np.array_equal(np.sort(seen["index"][epoch * IMAGES : (epoch + 1) * IMAGES]), np.arange(IMAGES))


def test_images_equal_those_of_global_shuffle(split):
    in_windows, in_all = (stream(split, 15, **options) for options in (STRIPED, {}))
    by_index = [seen["image"][np.argsort(seen["index"][:IMAGES])] for seen in (in_windows, in_all)]
    assert np.array_equal(*by_index)


@pytest.mark.slow
@pytest.mark.parametrize("start_step", [1, 5, 11])
def test_resuming_equals_running_from_the_start(split, start_step):
    whole = stream(split, 16, crop=Crop(8, 0.3), **STRIPED)
    resumed = stream(split, 16 - start_step, crop=Crop(8, 0.3), start_step=start_step, **STRIPED)
    assert_same(resumed, {name: column[8 * start_step :] for name, column in whole.items()})


@pytest.mark.slow
def test_workers_read_disjoint_parts_of_the_single_process_stream(split):
    whole = stream(split, 12, slices=BatchSlice(8, replicas=2), **STRIPED)
    for worker in range(2):
        own = stream(split, 6, slices=BatchSlice(8, 2, first_replica=worker, local_replicas=1), **STRIPED)
        for step in range(6):
            start = 8 * step + 4 * worker
            part = {name: column[4 * step : 4 * step + 4] for name, column in own.items()}
            assert_same(part, {name: column[start : start + 4] for name, column in whole.items()})


@pytest.mark.parametrize(
    ("record_bytes", "virtual_replicas", "records"),
    [
        (1000, 1, 67_108),
        (2**16, 1, 1024),
        (2**18, 1, 1024),
        (2**20, 1, 512),
        (2**30, 1, 1),
        (2**18, 2, 512),
        (2**16, 32, 1024),
        (2**16, 64, 512),
        (2**16, 512, 512),
    ],
)
def test_default_window_size(split, record_bytes, virtual_replicas, records):
    many = np.zeros(100_000, np.int32)
    large = dataclasses.replace(split, shard=many, length=np.full(100_000, record_bytes))
    sizes = {"virtual_replicas": virtual_replicas, "global_batch_size": virtual_replicas}
    assert make_stripes(large, **sizes).window_size == records
    assert make_stripes(large, **sizes, window_size=7).window_size == 7


@pytest.mark.slow
class TestRemotePath:
    def test_same_batches_as_local_directory(self, split):
        local, far = (stream(each, 20, crop=Crop(8, 0.3), **STRIPED) for each in (split, remote(split)))
        assert_same(local, far)

    @pytest.mark.parametrize("slices", [BatchSlice(7), BatchSlice(8, 4, first_replica=2, local_replicas=1)])
    def test_evaluation_equals_local_directory_with_few_reads(self, split, reads, slices):
        seen = []
        for each in (split, remote(split)):
            reads.clear()
            reader = Reader(each, Crop(SIZE))
            seen.append(columns_of(reader.evaluation(slices), -1))
            reader.close()
        assert_same(*seen)
        assert len(reads) <= len(split.shard_paths)

    def test_global_shuffle_gives_the_batches_of_the_local_directory(self, split):
        assert_same(stream(split, 20), stream(remote(split), 20))

    def test_file_system_error_is_not_a_data_error(self, tmp_path):
        split = make_split(tmp_path, 9)
        gone = tuple(RemotePath(f"file://{path}-gone") for path in split.shard_paths)
        gone = dataclasses.replace(split, shard_paths=gone)
        reader = Reader(gone, Crop(8), on_corrupt="substitute", sampler=striped(gone, 4, 14, BatchSlice(4)))
        with pytest.raises(tf.errors.OpError):
            columns_of(reader.training(BatchSlice(4), seed=0), 1)
        error = reader.explain()
        assert isinstance(error, ConvoyError) and not isinstance(error, DataError)
        assert "-gone" in str(error) and "bytes " in str(error)
        reader.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_dataset_opens_by_scheme(tmp_path, scheme):
    images = draw_classes(tmp_path / "photos", {"a": 3, "b": 4}, size=SIZE)
    convert(Options(images=images, output=tmp_path / "data", validation_fraction=0, shards=2, workers=1))
    directory = f"file://{tmp_path}/data"
    if scheme == "memory":
        directory = "memory://bucket/data"
        upload_folder(tmp_path / "data", RemotePath(directory))
    local, far = open_dataset(tmp_path / "data"), open_dataset(directory)
    assert str(far.directory) == directory
    assert far.digest("train") == local.digest("train")
    assert_same(stream(far.split("train"), 4, **STRIPED), stream(local.split("train"), 4, **STRIPED))


@pytest.mark.parametrize(
    ("directory", "named"),
    [
        ("file:///nowhere/data", "file:///nowhere/data"),
        ("nosuch://bucket/data", "nosuch://"),
    ],
)
def test_unreadable_path_is_named(directory, named):
    with pytest.raises(ConvoyError, match=named):
        open_dataset(directory)
