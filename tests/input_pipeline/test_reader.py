import dataclasses
import shutil

import numpy as np
import pytest
import tensorflow as tf

from convoy.input_pipeline.augment.pipeline import parse_pipeline
from convoy.input_pipeline.convert.convert import Options, convert
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.dataset.records import RecordError
from convoy.input_pipeline.reading.decode import CROP_DRAWS, Crop
from convoy.input_pipeline.reading.order import (
    class_sampling,
    image_randomness,
    positions_to_images,
    sampled_positions_to_images,
)
from convoy.input_pipeline.reading.reader import BatchSlice, Reader
from convoy.input_pipeline.reading.sampler import Sampler
from tests.input_pipeline.datasets import encode, write_split
from tests.input_pipeline.images import draw_classes, pixels
from tests.input_pipeline.streams import assert_names_record

SIZE = 24
TRAIN_IMAGES = 23


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    images = draw_classes(folder / "photos", {"03": 7, "mug": 9, "Käse": 7}, size=SIZE)
    convert(Options(images=images, output=folder / "data", validation_fraction=0, shards=3, workers=1))
    return folder / "data"


@pytest.fixture(scope="module")
def split(converted):
    split = open_dataset(converted).split("train")
    assert split.num_images == TRAIN_IMAGES
    return split


@pytest.fixture
def open_reader():
    """Opens readers and closes them after the test."""
    opened = []

    def open_one(*arguments, **options) -> Reader:
        opened.append(Reader(*arguments, **options))
        return opened[-1]

    yield open_one
    for reader in opened:
        reader.close()


def first(batches: tf.data.Dataset, count: int) -> list[dict[str, np.ndarray]]:
    return list(batches.take(count).as_numpy_iterator())


def joined(batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def plain_decode(split, index: int) -> np.ndarray:
    """Reads a record independently: every record of the shard in turn, with TFRecordDataset."""
    ends = (split.shard[:index] == split.shard[index]).sum()
    record = list(tf.data.TFRecordDataset(str(split.shard_paths[split.shard[index]])).as_numpy_iterator())[ends]
    features = tf.train.Example.FromString(record).features.feature
    return tf.io.decode_image(features["image/encoded"].bytes_list.value[0], channels=3).numpy()


def test_element_is_one_replica_batch_of_one_step(split, open_reader):
    reader = open_reader(split, Crop(16, 0.5), draws=7)
    batches = reader.training(BatchSlice(global_batch_size=6, replicas=2), seed=0)
    assert {name: (tuple(spec.shape), spec.dtype) for name, spec in batches.element_spec.items()} == {
        "image": ((3, 16, 16, 3), tf.uint8),
        "label": ((3,), tf.int32),
        "index": ((3,), tf.int64),
        "randomness": ((3, 7), tf.float32),
    }
    (batch,) = first(batches, 1)
    assert batch["image"].shape == (3, 16, 16, 3) and batch["randomness"].shape == (3, 7)


def test_pixels_and_labels_match_the_records(split, open_reader):
    reader = open_reader(split, Crop(SIZE))
    seen = joined(first(reader.training(BatchSlice(TRAIN_IMAGES), seed=0), 1))
    for index, label, image in zip(seen["index"], seen["label"], seen["image"], strict=True):
        assert np.array_equal(image, plain_decode(split, index))
        assert label == split.label[index]


def test_training_follows_the_global_order_across_epochs(split, open_reader):
    reader = open_reader(split, Crop(8), draws=8)
    seen = joined(first(reader.training(BatchSlice(10), seed=5), 7))
    indices, epochs = positions_to_images(np.arange(70), num_images=TRAIN_IMAGES, seed=5)
    assert np.array_equal(seen["index"], indices)
    assert np.array_equal(seen["randomness"], image_randomness(indices, epochs, seed=5, draws=8))


def test_every_image_once_per_epoch(split, open_reader):
    reader = open_reader(split, Crop(8))
    seen = joined(first(reader.training(BatchSlice(8), seed=1), 12))["index"]
    for epoch in range(4):
        of_epoch = seen[epoch * TRAIN_IMAGES : (epoch + 1) * TRAIN_IMAGES]
        assert np.array_equal(np.sort(of_epoch), np.arange(TRAIN_IMAGES))


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["inverse_sqrt", "balanced"])
def test_class_sampling_stream_is_independent_of_workers_and_resume(split, open_reader, sampling):
    # Class 0 has one image, class 1 two, class 2 the others.
    split = dataclasses.replace(split, label=np.minimum(np.arange(TRAIN_IMAGES), 3).astype(np.int32) * 2 // 3)
    seen = joined(
        first(
            open_reader(split, Crop(8, 0.3), sampler=Sampler(split, sampling=sampling)).training(BatchSlice(6), seed=5),
            8,
        )
    )
    table = class_sampling(split.label, sampling)
    indices, passes = sampled_positions_to_images(np.arange(48), sampling=table, seed=5)
    assert np.array_equal(seen["index"], indices)
    assert np.array_equal(seen["label"], split.label[indices])
    assert np.array_equal(seen["randomness"], image_randomness(indices, passes, seed=5, draws=CROP_DRAWS))
    assert len(np.unique(seen["randomness"], axis=0)) == 48  # repeated images are augmented differently
    for worker in range(2):
        reader = open_reader(split, Crop(8, 0.3), sampler=Sampler(split, sampling=sampling))
        slices = BatchSlice(6, replicas=2, first_replica=worker, local_replicas=1)
        own = joined(first(reader.training(slices, seed=5, start_step=3), 5))
        where = (np.arange(48) >= 18) & (np.arange(48) // 3 % 2 == worker)
        assert_equal(own, {name: column[where] for name, column in seen.items()})


@pytest.mark.parametrize("replicas", [2, 3, 4, 6, 12])
def test_images_of_a_step_do_not_depend_on_the_number_of_replicas(split, open_reader, replicas):
    reader = open_reader(split, Crop(8, 0.3))
    alone = joined(first(reader.training(BatchSlice(12), seed=2), 3))
    shared = joined(first(reader.training(BatchSlice(12, replicas=replicas), seed=2), 3 * replicas))
    assert_equal(shared, alone)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "local_replicas"), [(2, 1), (2, 3), (3, 2)])
def test_workers_read_disjoint_parts_of_the_single_process_stream(split, open_reader, workers, local_replicas):
    replicas, steps = workers * local_replicas, 4
    alone = first(
        open_reader(split, Crop(8, 0.3)).training(BatchSlice(12, replicas=replicas), seed=2), steps * replicas
    )
    for worker in range(workers):
        slices = BatchSlice(12, replicas, first_replica=worker * local_replicas, local_replicas=local_replicas)
        own = first(open_reader(split, Crop(8, 0.3)).training(slices, seed=2), steps * local_replicas)
        for step in range(steps):
            for local in range(local_replicas):
                expected = alone[step * replicas + worker * local_replicas + local]
                assert_equal(own[step * local_replicas + local], expected)


@pytest.mark.parametrize("start_step", [1, 4, 9])
def test_resuming_equals_running_from_the_start(split, open_reader, start_step):
    reader = open_reader(split, Crop(8, 0.3))
    slices = BatchSlice(6, replicas=2)
    from_start = first(reader.training(slices, seed=3), 2 * 11)
    resumed = first(reader.training(slices, seed=3, start_step=start_step), 2 * (11 - start_step))
    for one, other in zip(resumed, from_start[2 * start_step :], strict=True):
        assert_equal(one, other)


def test_iterating_twice_gives_the_same_batches(split, open_reader):
    batches = open_reader(split, Crop(8, 0.3)).training(BatchSlice(5), seed=3)
    assert_equal(joined(first(batches, 6)), joined(first(batches, 6)))


@pytest.mark.slow
def test_crop_does_not_depend_on_the_batch(split, open_reader):
    reader = open_reader(split, Crop(8, 0.2))
    epoch = {}
    for batch_size in (23, 7, 1):
        seen = joined(first(reader.training(BatchSlice(batch_size), seed=4), -(-23 // batch_size)))
        by_index = {int(index): image for index, image in zip(seen["index"][:23], seen["image"][:23], strict=True)}
        assert len(by_index) == TRAIN_IMAGES
        epoch = epoch or by_index
        assert all(np.array_equal(by_index[index], epoch[index]) for index in epoch)


@pytest.mark.slow
def test_augmentation_does_not_depend_on_the_batch(split, open_reader):
    pipeline = parse_pipeline("crop(scale=0.3..1) | contrast(0.5) | trivial | flip", image_size=8)
    by_image = []
    for batch_size, replicas in ((1, 1), (6, 3)):
        reader = open_reader(split, Crop(8, *pipeline.scale), pipeline.draws, operations=pipeline.host)
        elements = replicas * -(-23 // batch_size)
        seen = joined(first(reader.training(BatchSlice(batch_size, replicas), seed=4), elements))
        by_image.append(dict(zip(seen["index"][:TRAIN_IMAGES].tolist(), seen["image"], strict=False)))
    alone, together = by_image
    assert alone.keys() == together.keys() and len(alone) == TRAIN_IMAGES
    assert all(np.array_equal(together[i], alone[i]) for i in alone)


def test_evaluation_is_not_augmented(split, open_reader):
    pipeline = parse_pipeline("solarize(0, 1) | trivial", image_size=8)
    augmented, plain = (
        joined(
            list(
                open_reader(split, Crop(8), pipeline.draws, operations=each)
                .evaluation(BatchSlice(8))
                .as_numpy_iterator()
            )
        )
        for each in (pipeline.host, ())
    )
    assert_equal(augmented, plain)


def test_crops_differ_by_epoch_and_seed(split, open_reader):
    reader = open_reader(split, Crop(8, 0.2))

    def crops(seed):
        seen = joined(first(reader.training(BatchSlice(TRAIN_IMAGES), seed=seed), 2))
        ordered = np.argsort(seen["index"], kind="stable").reshape(TRAIN_IMAGES, 2)
        return seen["image"][ordered]  # [image, epoch, ...]

    one, other = crops(0), crops(1)
    assert (one[:, 0] != one[:, 1]).any((1, 2, 3)).all()
    assert (one[:, 0] != other[:, 0]).any((1, 2, 3)).all()


@pytest.mark.parametrize(("batch_size", "replicas"), [(23, 1), (8, 1), (8, 4), (10, 5), (64, 2)])
def test_evaluation_yields_every_image_once_and_pads_with_weight_0(split, open_reader, batch_size, replicas):
    reader = open_reader(split, Crop(SIZE, 0.1))
    batches = list(reader.evaluation(BatchSlice(batch_size, replicas)).as_numpy_iterator())
    assert len(batches) == replicas * -(-TRAIN_IMAGES // batch_size)
    assert all(batch["image"].shape == (batch_size // replicas, SIZE, SIZE, 3) for batch in batches)
    seen = joined(batches)
    counted = seen["weight"] == 1
    assert seen["weight"].sum() == TRAIN_IMAGES and ((seen["weight"] == 0) | counted).all()
    assert np.array_equal(seen["index"][counted], np.arange(TRAIN_IMAGES))
    assert np.array_equal(seen["label"][counted], split.label)
    assert np.array_equal(seen["image"][counted][20], plain_decode(split, 20))  # the whole image, though training crops


def test_workers_evaluate_every_image_once(split, open_reader):
    seen = []
    for worker in range(3):
        slices = BatchSlice(12, replicas=6, first_replica=2 * worker, local_replicas=2)
        seen.append(joined(list(open_reader(split, Crop(8)).evaluation(slices).as_numpy_iterator())))
        assert len(seen[-1]["index"]) == 2 * 4  # equal batch counts, so that no worker waits for another
    together = joined(seen)
    assert np.array_equal(np.sort(together["index"][together["weight"] == 1]), np.arange(TRAIN_IMAGES))


def test_reader_works_with_a_distributed_strategy(split, open_reader):
    reader = open_reader(split, Crop(8))
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    distributed = strategy.distribute_datasets_from_function(lambda _: reader.training(BatchSlice(6), seed=1))
    batch = next(iter(distributed))
    assert np.array_equal(batch["index"], positions_to_images(np.arange(6), num_images=TRAIN_IMAGES, seed=1)[0])


def test_any_image_shape_becomes_square(tmp_path, open_reader):
    shapes = [(1, 40), (40, 1), (1, 1), (5, 9), (16, 16), (300, 2)]
    images = [np.full((*shape, 3), 10 * (number + 1), np.uint8) for number, shape in enumerate(shapes)]
    split = write_split(tmp_path, images, range(len(images)))
    for crop in (Crop(16), Crop(16, 0.05)):
        seen = joined(first(open_reader(split, crop).training(BatchSlice(6), seed=0), 3))
        assert seen["image"].shape == (18, 16, 16, 3)
        for label, image in zip(seen["label"], seen["image"], strict=True):
            assert (image == 10 * (label + 1)).all()


@pytest.mark.parametrize("image_format", ["raw", "png", "bmp"])
def test_lossless_formats_keep_every_pixel(tmp_path, open_reader, image_format):
    images = [pixels(number, 20) for number in range(7)]
    split = write_split(tmp_path, images, [0] * 7, image_format)
    seen = joined(first(open_reader(split, Crop(20)).training(BatchSlice(7), seed=0), 1))
    for index, image in zip(seen["index"], seen["image"], strict=True):
        assert np.array_equal(image, images[index])


def test_raw_images_can_be_non_square(tmp_path, open_reader):
    images = [pixels(number, 20)[:10] for number in range(3)]
    split = write_split(tmp_path, images, [0] * 3, "raw", shards=1)
    (batch,) = open_reader(split, Crop(10)).evaluation(BatchSlice(3)).as_numpy_iterator()
    averaged = np.round(images[1].reshape(10, 10, 2, 3).astype(np.float32).mean(2)).astype(np.uint8)
    assert np.array_equal(batch["image"][1], averaged)


def damaged(converted, tmp_path, index: int, place: int):
    """Copies a dataset with one flipped bit in a record's payload; returns its split."""
    split = open_dataset(shutil.copytree(converted, tmp_path / "data")).split("train")
    path = split.shard_paths[split.shard[index]]
    content = bytearray(path.read_bytes())
    content[split.offset[index] + 12 + place % split.length[index]] ^= 0x10
    path.write_bytes(content)
    return split


@pytest.mark.parametrize("place", [0, 200, -1])
def test_flipped_bit_ends_training_and_names_shard_offset_and_index(converted, tmp_path, open_reader, place):
    split = damaged(converted, tmp_path, 13, place)
    reader = open_reader(split, Crop(8))
    batches = reader.training(BatchSlice(8), seed=0)
    with pytest.raises(tf.errors.OpError):
        first(batches, 3)
    assert_names_record(reader.explain(), split, 13)


def test_flipped_bit_ends_evaluation(converted, tmp_path, open_reader):
    split = damaged(converted, tmp_path, 22, 100)
    reader = open_reader(split, Crop(8))
    with pytest.raises(tf.errors.OpError):
        list(reader.evaluation(BatchSlice(8)).as_numpy_iterator())
    assert_names_record(reader.explain(), split, 22)


def test_undecodable_image_with_correct_checksum_is_named(tmp_path, open_reader):
    images = [pixels(number, 8) for number in range(6)]
    split = write_split(tmp_path, images, [0] * 6)
    broken = write_split(tmp_path / "broken", images[:1], [0], "cut", shards=1)
    columns = ("offset", "length", "label", "crc")
    split = dataclasses.replace(
        split,
        shard_paths=(*split.shard_paths, *broken.shard_paths),
        shard=np.append(split.shard, 2),
        **{name: np.append(getattr(split, name), getattr(broken, name)) for name in columns},
    )
    reader = open_reader(split, Crop(8))
    with pytest.raises(tf.errors.OpError):
        list(reader.evaluation(BatchSlice(3)).as_numpy_iterator())
    assert_names_record(reader.explain(), split, 6)
    with pytest.raises(RecordError) as raised:
        reader.images(np.array([0, 6]))
    assert_names_record(raised.value, split, 6)
    assert "decoded" in raised.value.reason


def test_shard_truncated_after_opening_is_named(converted, tmp_path, open_reader):
    split = open_dataset(shutil.copytree(converted, tmp_path / "data")).split("train")
    reader = open_reader(split, Crop(8))
    last = TRAIN_IMAGES - 1
    with split.shard_paths[split.shard[last]].open("r+b") as file:
        file.truncate(int(split.offset[last]) + 40)
    assert len(reader.read(np.arange(last))) == last
    with pytest.raises(RecordError) as raised:
        reader.read(np.array([last]))
    assert_names_record(raised.value, split, last)


def test_reading_by_index_from_many_threads(split, open_reader):
    from concurrent.futures import ThreadPoolExecutor

    reader = open_reader(split, Crop(8))
    orders = [np.random.default_rng(seed).permutation(TRAIN_IMAGES) for seed in range(8)]
    whole = reader.read(np.arange(TRAIN_IMAGES))
    with ThreadPoolExecutor(8) as pool:
        for order, payloads in zip(orders, pool.map(reader.read, orders), strict=True):
            assert payloads == [whole[index] for index in order]


def test_undecodable_bytes_end_the_iteration(tmp_path, open_reader):
    # The checksum is correct: the record was written like this.
    split = write_split(tmp_path, [pixels(0, 16)], [0], "raw", shards=1)
    content = split.shard_paths[0].read_bytes()
    assert encode(pixels(0, 16), "raw") in content
    from convoy.input_pipeline.dataset import records

    payload = content[12:-4].replace(b"raw", b"png")
    split.shard_paths[0].write_bytes(records.frame(payload))
    split.crc[0] = records.masked_crc(payload)
    with pytest.raises(tf.errors.InvalidArgumentError):
        first(open_reader(split, Crop(16), CROP_DRAWS).training(BatchSlice(1), seed=0), 1)
