"""Block shuffle through the reader, from local directories and from remote paths."""

import collections
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
from convoy.input_pipeline.reading.blocks import make_blocks
from convoy.input_pipeline.reading.decode import Crop
from convoy.input_pipeline.reading.order import Blocks, block_positions_to_images
from convoy.input_pipeline.reading.reader import BatchSlice, Reader
from tests.input_pipeline.images import draw_classes
from tests.input_pipeline.streams import SIZE, assert_same, columns_of, make_split, stream
from tests.object_stores import upload_folder

IMAGES = 60
BLOCK_SHUFFLE = {"shuffle": "block", "block_size": 14}


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return make_split(tmp_path_factory.mktemp("data"), IMAGES)


@pytest.fixture(scope="module")
def remote(split):
    return dataclasses.replace(split, shard_paths=tuple(RemotePath(f"file://{path}") for path in split.shard_paths))


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


def test_stream_follows_block_positions_and_shows_each_image_once_per_epoch(split):
    seen = stream(split, 30, **BLOCK_SHUFFLE)
    blocks = Blocks(np.bincount(split.shard), 14)
    expected, _ = block_positions_to_images(np.arange(240), blocks=blocks, seed=3)
    assert np.array_equal(seen["index"], expected)
    assert np.array_equal(seen["label"], seen["index"])
    for epoch in range(4):
        assert np.array_equal(np.sort(seen["index"][epoch * IMAGES : (epoch + 1) * IMAGES]), np.arange(IMAGES))


def test_images_equal_those_of_global_shuffle(split):
    in_blocks, in_all = (stream(split, 15, **options) for options in (BLOCK_SHUFFLE, {}))
    by_index = [seen["image"][np.argsort(seen["index"][:IMAGES])] for seen in (in_blocks, in_all)]
    assert np.array_equal(*by_index)


@pytest.mark.slow
@pytest.mark.parametrize("start_step", [1, 5, 11])
def test_resuming_equals_running_from_the_start(split, start_step):
    whole = stream(split, 16, crop=Crop(8, 0.3), **BLOCK_SHUFFLE)
    resumed = stream(split, 16 - start_step, crop=Crop(8, 0.3), start_step=start_step, **BLOCK_SHUFFLE)
    assert_same(resumed, {name: column[8 * start_step :] for name, column in whole.items()})


@pytest.mark.slow
def test_workers_read_disjoint_parts_of_the_single_process_stream(split):
    whole = stream(split, 12, slices=BatchSlice(8, replicas=2), **BLOCK_SHUFFLE)
    for worker in range(2):
        own = stream(split, 6, slices=BatchSlice(8, 2, first_replica=worker, local_replicas=1), **BLOCK_SHUFFLE)
        for step in range(6):
            start = 8 * step + 4 * worker
            part = {name: column[4 * step : 4 * step + 4] for name, column in own.items()}
            assert_same(part, {name: column[start : start + 4] for name, column in whole.items()})


def test_each_block_takes_few_long_reads(split, reads):
    stream(split, 150, **BLOCK_SHUFFLE)
    blocks = Blocks(np.bincount(split.shard), 14)
    expected = collections.Counter()
    for number in range(3 * blocks.blocks_per_epoch):
        images = np.sort(blocks.images(number, seed=3))
        for shard in np.unique(split.shard[images]):
            of_shard = images[split.shard[images] == shard]
            start = split.offset[of_shard[0]]
            end = split.offset[of_shard[-1]] + split.length[of_shard[-1]] + FRAME_OVERHEAD
            expected[int(shard), int(start), int(end - start)] += 1
    assert len(expected) < 3 * blocks.blocks_per_epoch * 3
    counted = collections.Counter(reads)
    for read, times in expected.items():
        assert counted[read] >= times, read
    assert sum(counted.values()) < IMAGES * 20 // 3  # 20 epochs and prefetch; single reads would be three times as many


@pytest.mark.parametrize(
    ("record_bytes", "records"), [(1000, 67_108), (2**16, 1024), (2**18, 1024), (2**20, 512), (2**30, 1)]
)
def test_default_block_size(split, record_bytes, records):
    many = np.zeros(100_000, np.int32)
    large = dataclasses.replace(split, shard=many, length=np.full(100_000, record_bytes))
    assert make_blocks(large).size == records
    assert make_blocks(large, 7).size == 7
    assert make_blocks(split).size == IMAGES


@pytest.mark.slow
class TestRemotePath:
    def test_same_batches_as_local_directory(self, split, remote):
        local, far = (stream(each, 20, crop=Crop(8, 0.3), **BLOCK_SHUFFLE) for each in (split, remote))
        assert_same(local, far)

    @pytest.mark.parametrize("slices", [BatchSlice(7), BatchSlice(8, 4, first_replica=2, local_replicas=1)])
    def test_evaluation_equals_local_directory_with_few_reads(self, split, remote, reads, slices):
        seen = []
        for each in (split, remote):
            reads.clear()
            reader = Reader(each, Crop(SIZE))
            seen.append(columns_of(reader.evaluation(slices), -1))
            reader.close()
        assert_same(*seen)
        assert len(reads) <= len(split.shard_paths)

    def test_global_shuffle_gives_the_batches_of_the_local_directory(self, split, remote):
        assert_same(stream(split, 20), stream(remote, 20))

    def test_file_system_error_is_not_a_data_error(self, tmp_path):
        split = make_split(tmp_path, 9)
        gone = tuple(RemotePath(f"file://{path}-gone") for path in split.shard_paths)
        reader = Reader(dataclasses.replace(split, shard_paths=gone), Crop(8), on_corrupt="substitute", **BLOCK_SHUFFLE)
        with pytest.raises(tf.errors.OpError):
            columns_of(reader.training(BatchSlice(4), seed=0), 1)
        error = reader.explain()
        assert isinstance(error, ConvoyError) and not isinstance(error, DataError)
        assert "-gone" in str(error) and "bytes 0" in str(error)
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
    assert_same(stream(far.split("train"), 4, **BLOCK_SHUFFLE), stream(local.split("train"), 4, **BLOCK_SHUFFLE))


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
