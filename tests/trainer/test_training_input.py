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
def check_counts(monkeypatch):
    """Counts how often each image is checked individually."""
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


def test_undecodable_image_is_substituted_after_checking_each_image_once(training_input, check_counts):
    reading = training_input("substitute")
    with contextlib.closing(reading.batches(0)) as batches:
        seen = np.concatenate([batch["index"].numpy() for batch in itertools.islice(batches, IMAGES // 8)])
    assert np.array_equal(np.setdiff1d(np.arange(IMAGES), seen), [NO_IMAGE])
    assert [each.index for step in range(1, 9) for each in reading.substituted(step)] == [NO_IMAGE]
    assert check_counts.total() <= IMAGES + 1  # plus the substitute


def test_undecodable_image_is_named(training_input, check_counts):
    with (
        pytest.raises(DataError, match=f"record {NO_IMAGE} at offset "),
        contextlib.closing(training_input("raise").batches(0)) as batches,
    ):
        list(itertools.islice(batches, IMAGES // 8))
    assert max(check_counts.values()) == 1


def take(training_input: TrainingInput, start_step: int, steps: int) -> list[dict[str, np.ndarray]]:
    with contextlib.closing(training_input.batches(start_step)) as batches:
        return [{name: column.numpy() for name, column in batch.items()} for batch in itertools.islice(batches, steps)]


@pytest.mark.slow
def test_striped_order_stays_when_the_number_of_virtual_replicas_changes(training_input):
    striped = {"shuffle": "striped", "shuffle_window_size": 10, "virtual_replicas": 2}
    one_change = {"steps": (9,), "numbers": (2,)}
    more = {"virtual_replicas": 4, "earlier_virtual_replicas": one_change}
    settings = (striped, striped | more, striped | {"virtual_replicas": 4})
    order, kept, other = (
        [batch["index"].tolist() for batch in take(training_input("substitute", **each), 0, 3)] for each in settings
    )
    assert order == kept != other


@pytest.mark.slow
def test_each_stage_has_its_image_size_and_continues_the_order(training_input):
    stages = {"progressive": {"sizes": (9, 12), "ends": (0.25, 0.5)}, "steps": 12, "cache": "memory"}
    reading = training_input("substitute", **stages)
    whole = take(reading, 0, 14)
    assert [batch["image"].shape[1] for batch in whole] == [9] * 3 + [12] * 3 + [SIZE] * 8
    assert reading.images(6) == whole[5]["index"].tolist()  # in the previous stage
    seen = np.concatenate([batch["index"] for batch in whole])
    expected, _ = positions_to_images(np.arange(14 * 8), num_images=IMAGES, seed=0)
    usable = expected != NO_IMAGE
    assert np.array_equal(seen[usable], expected[usable]) and NO_IMAGE not in seen
    for batch, expected in zip(
        take(reading, 5, 2) + take(reading, 3, 1), [*whole[5:7], whole[3]], strict=True
    ):  # also backwards
        for name in expected:
            np.testing.assert_array_equal(batch[name], expected[name])
