import collections
import contextlib
import itertools

import numpy as np
import pytest
import tensorflow as tf

from convoy.core.errors import DataError
from convoy.input_pipeline.reading.order import positions_to_images
from convoy.input_pipeline.reading.record_reader import RecordReader
from convoy.trainer import config as configs
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.session.training_input import TrainingInput
from tests.input_pipeline.streams import SIZE, make_split, without_image

IMAGES, NO_IMAGE = 64, 63


@pytest.fixture
def examined(monkeypatch):
    """Counts how often each image is examined on its own."""
    counts, problem = collections.Counter(), RecordReader.problem

    def counting(reader, index):
        counts[index] += 1
        return problem(reader, index)

    monkeypatch.setattr(RecordReader, "problem", counting)
    return counts


@pytest.fixture
def training_input(tmp_path):
    def make(on_corrupt, **changes):
        config = configs.default_config()
        with config.unlocked():
            config.image_size, config.batch_size, config.on_corrupt, config.cache = SIZE, 8, on_corrupt, "none"
            config.update(changes)
        plan = configs.resolve(config, num_images=IMAGES, replicas=1)
        split = without_image(make_split(tmp_path / on_corrupt, IMAGES), NO_IMAGE)
        return TrainingInput(split, config, plan, tf.distribute.OneDeviceStrategy("cpu:0"), WorkerGroup(None))

    return make


def test_images_are_examined_once_to_go_on_without_one_that_cannot_be_decoded(training_input, examined):
    reading = training_input("substitute")
    with contextlib.closing(reading.batches(0)) as batches:
        seen = np.concatenate([batch["index"].numpy() for batch in itertools.islice(batches, IMAGES // 8)])
    assert np.array_equal(np.setdiff1d(np.arange(IMAGES), seen), [NO_IMAGE])
    assert [each.index for step in range(1, 9) for each in reading.substituted(step)] == [NO_IMAGE]
    assert examined.total() <= IMAGES + 1  # and the substitute


def test_an_image_that_cannot_be_decoded_is_named(training_input, examined):
    with (
        pytest.raises(DataError, match=f"record {NO_IMAGE} at offset .*.*no image"),
        contextlib.closing(training_input("raise").batches(0)) as batches,
    ):
        list(itertools.islice(batches, IMAGES // 8))
    assert max(examined.values()) == 1


def taken(training_input: TrainingInput, start_step: int, steps: int) -> list[dict[str, np.ndarray]]:
    with contextlib.closing(training_input.batches(start_step)) as batches:
        return [{name: column.numpy() for name, column in batch.items()} for batch in itertools.islice(batches, steps)]


def test_images_of_each_stage_have_its_size_and_take_up_the_order_where_the_one_before_stopped(training_input):
    stages = {"progressive": {"sizes": (9, 12), "ends": (0.25, 0.5)}, "steps": 12, "cache": "memory"}
    reading = training_input("substitute", **stages)
    whole = taken(reading, 0, 14)
    assert [batch["image"].shape[1] for batch in whole] == [9] * 3 + [12] * 3 + [SIZE] * 8
    assert reading.images(6) == whole[5]["index"].tolist()  # of the stage before
    seen = np.concatenate([batch["index"] for batch in whole])
    expected, _ = positions_to_images(np.arange(14 * 8), num_images=IMAGES, seed=0)
    usable = expected != NO_IMAGE
    assert np.array_equal(seen[usable], expected[usable]) and NO_IMAGE not in seen
    for batch, expected in zip(
        taken(reading, 5, 2) + taken(reading, 3, 1), [*whole[5:7], whole[3]], strict=True
    ):  # it goes back
        for name in expected:
            np.testing.assert_array_equal(batch[name], expected[name])
