"""The cache of decoded images on a disk: what shares it, and that damage does not change a batch."""

import logging
import os

import numpy as np
import pytest
import tensorflow as tf

from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.dataset.views import make_view
from convoy.input_pipeline.reading.decode import Crop
from convoy.input_pipeline.reading.disk_cache import open_disk_cache
from convoy.input_pipeline.reading.pixel_store import DiskSpace
from convoy.input_pipeline.reading.reader import Reader
from tests.input_pipeline.datasets import write_dataset
from tests.input_pipeline.images import pixels
from tests.input_pipeline.streams import EIGHT, assert_names_record, assert_same, columns_of, flip, remote, stream

IMAGES, EPOCH = 40, 5  # steps of 8
WHOLE, CROPS = Crop(16), Crop(16, 0.3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    images = [pixels(number, 40)[: 20 + number % 20] for number in range(IMAGES)]
    return open_dataset(write_dataset(tmp_path_factory.mktemp("data") / "data", {"train": images}, ["a", "b"]))


@pytest.fixture
def space(tmp_path):
    return DiskSpace(tmp_path / "cache", 2**30)


def opened(dataset, crop, space):
    cache = open_disk_cache(dataset, "train", crop, space)
    assert cache
    return cache


def file_of(dataset, crop, space):
    return opened(dataset, crop, space)._store.path.name


def test_only_the_same_pixels_share_a_file(dataset, space, tmp_path):
    assert file_of(dataset, CROPS, space) == file_of(dataset, Crop(8, 0.5, 0.9, "pad"), space)  # whole images
    assert file_of(dataset, WHOLE, space) == file_of(dataset, WHOLE, space)
    other = write_dataset(tmp_path / "other", {"train": [pixels(7, 40)] * IMAGES}, ["a", "b"])
    files = [
        file_of(dataset, CROPS, space),
        file_of(dataset, WHOLE, space),
        file_of(dataset, Crop(17), space),
        file_of(dataset, Crop(16, resize="pad"), space),
        file_of(open_dataset(other), WHOLE, space),
    ]
    assert len(set(files)) == len(files)


@pytest.mark.slow
@pytest.mark.parametrize("crop", [WHOLE, CROPS])
@pytest.mark.parametrize("place", [lambda split: split, remote], ids=["local", "remote"])
def test_a_later_run_reads_no_shard(tmp_path, space, crop, place):
    images = [pixels(number, 40) for number in range(IMAGES)]
    dataset = open_dataset(write_dataset(tmp_path / "data", {"train": images}, ["a", "b"]))
    split = dataset.split("train")
    expected = stream(split, 2 * EPOCH, crop=crop)
    stream(split, EPOCH, crop=crop, cache=opened(dataset, crop, space))
    for path in split.shard_paths:
        os.truncate(path, 0)
    assert_same(stream(place(split), 2 * EPOCH, crop=crop, cache=opened(dataset, crop, space)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("crop", [WHOLE, CROPS])
def test_damaged_images_are_decoded_again(dataset, space, crop, caplog):
    split, cache = dataset.split("train"), opened(dataset, crop, space)
    expected = stream(split, 2 * EPOCH, crop=crop)
    assert_same(stream(split, 2 * EPOCH, crop=crop, cache=cache), expected)
    path = cache._store.path
    content = np.fromfile(path, np.uint8)
    content[::7001] ^= 1
    content.tofile(path)
    with caplog.at_level(logging.WARNING, "convoy"):
        assert_same(stream(split, 2 * EPOCH, crop=crop, cache=cache), expected)
    assert [record for record in caplog.records if str(path) in record.getMessage()] == caplog.records[:1]
    assert path.stat().st_size > len(content)  # they were added again
    store = opened(dataset, crop, space)._store
    assert all(store.read(number) is not None for number in range(IMAGES))


@pytest.mark.slow
def test_a_damaged_image_with_a_damaged_record_is_named(tmp_path, space):
    images = [pixels(number, 40) for number in range(IMAGES)]
    dataset = open_dataset(write_dataset(tmp_path / "data", {"train": images}, ["a", "b"]))
    split, cache = dataset.split("train"), opened(dataset, CROPS, space)
    stream(split, EPOCH, crop=CROPS, cache=cache)
    os.truncate(cache._store.path, 0)
    flip(split, 3)
    reader = Reader(split, CROPS, cache=cache)
    with pytest.raises(tf.errors.OpError):
        columns_of(reader.training(EIGHT, seed=3), EPOCH)
    assert_names_record(reader.explain(), split, 3)
    reader.close()


@pytest.mark.slow
def test_parts_of_a_dataset_share_the_images_of_the_whole(dataset, space):
    numbers = np.array([3, 5, 8, 13, 21, 34, 35, 36])
    part = make_view(dataset, ("train",), {"train": numbers}, fraction=0.2)
    expected = stream(part.split("train"), EPOCH)
    cache = opened(part, WHOLE, space)
    assert_same(stream(part.split("train"), EPOCH, cache=cache), expected)
    whole = opened(dataset, WHOLE, space)
    assert np.flatnonzero(whole.keeps(np.arange(IMAGES))).tolist() == numbers.tolist()
    assert_same(stream(dataset.split("train"), EPOCH, cache=whole), stream(dataset.split("train"), EPOCH))
    os.truncate(cache._store.path, 100)
    assert_same(stream(part.split("train"), EPOCH, cache=cache), expected)


def test_without_a_usable_folder_there_is_no_cache_and_one_line(dataset, tmp_path, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING, "convoy"):
        assert open_disk_cache(dataset, "train", WHOLE, DiskSpace(tmp_path / "file/cache")) is None
    assert len(caplog.records) == 1 and "--cache_dir" in caplog.text and str(tmp_path / "file") in caplog.text
