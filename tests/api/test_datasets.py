"""`open_dataset`: splits and batches."""

import itertools

import numpy as np
import pytest

import convoy
from tests.input_pipeline.datasets import write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten images of 12x8 pixels: image `i` has the color `10 * i` and the label `i % 3`."""
    images = [np.full([12, 8, 3], 10 * i, np.uint8) for i in range(10)]
    return write_dataset(tmp_path_factory.mktemp("datasets") / "data", {"train": images}, ("a", "b", "c"))


@pytest.fixture
def train(data):
    return convoy.open_dataset(data).split("train")


def test_dataset_has_splits_classes_and_counts(data):
    dataset = convoy.open_dataset(data)
    assert (dataset.splits, dataset.class_names) == (("train",), ("a", "b", "c"))
    assert dataset.counts == {"train": {"a": 4, "b": 3, "c": 3}}
    assert dataset.split("train").counts == {"a": 4, "b": 3, "c": 3}
    assert "a" in repr(dataset)
    with pytest.raises(convoy.DataError, match="trian"):
        dataset.split("trian")


def test_images_have_their_stored_size(train):
    (image,) = train.images([3])
    assert (image.shape, image.dtype) == ((12, 8, 3), np.uint8)


def colors(batches):
    return [batch["image"][:, 0, 0, 0].tolist() for batch in batches]


def test_batches_in_record_order_have_every_image_once(train):
    batches = list(train.batches(4, image_size=6))
    assert [batch["image"].shape for batch in batches] == [(4, 6, 6, 3), (4, 6, 6, 3), (2, 6, 6, 3)]
    assert np.concatenate([batch["index"] for batch in batches]).tolist() == list(range(10))
    assert np.concatenate([batch["label"] for batch in batches]).tolist() == train.labels.tolist()
    stored = [int(image[0, 0, 0]) for image in train.images(range(10))]
    assert sum(colors(batches), []) == stored
    assert len(list(train.batches(4, epochs=2))) == 6
    assert [len(batch["label"]) for batch in train.batches(4, drop_remainder=True)] == [4, 4]


def test_shuffled_batches_are_those_of_training(train):
    from convoy.input_pipeline.reading.decode import Crop
    from convoy.input_pipeline.reading.reader import BatchSlice, Reader

    batches = list(train.batches(4, seed=3, epochs=2))
    indices = np.concatenate([batch["index"] for batch in batches])
    assert [len(batch["index"]) for batch in batches] == [4] * 5
    assert sorted(indices.tolist()) == sorted([*range(10), *range(10)])
    reader = Reader(train._split, Crop(8))
    stream = itertools.islice(reader.training(BatchSlice(4, 1), seed=3), 5)
    np.testing.assert_array_equal(indices, np.concatenate([batch["index"].numpy() for batch in stream]))
    reader.close()
    np.testing.assert_array_equal(np.concatenate([batch["label"] for batch in batches]), train.labels[indices])
    assert colors(batches) == colors(train.batches(4, seed=3, epochs=2))


def test_endless_batches_and_tensors(train):
    import tensorflow as tf

    batches = list(itertools.islice(train.batches(4, seed=0, epochs=None, as_numpy=False), 6))
    assert len(batches) == 6 and all(tf.is_tensor(batch["image"]) for batch in batches)
    with pytest.raises(convoy.UsageError, match="seed"):
        train.batches(4, epochs=None)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"epochs": 0}, {"image_size": 0}, {"resize": "stretch"}])
def test_wrong_argument_is_named(train, wrong):
    (name,) = wrong
    with pytest.raises(convoy.UsageError, match=name):
        train.batches(**{"batch_size": 4, **wrong})


def test_damaged_record_is_named(data, tmp_path):
    import shutil

    copy = shutil.copytree(data, tmp_path / "data")
    shard = next(copy.glob("*.tfrecord-00001-*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    with pytest.raises(convoy.DataError, match=shard.name):
        list(convoy.open_dataset(copy).split("train").batches(4))
