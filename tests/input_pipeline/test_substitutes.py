"""Substitution of records that cannot be used."""

import dataclasses
import threading

import numpy as np
import pytest
import tensorflow as tf

from convoy.core.errors import DataError
from convoy.input_pipeline.reading.cache import MemoryCache
from convoy.input_pipeline.reading.decode import Crop
from convoy.input_pipeline.reading.reader import BatchSlice, Reader
from convoy.input_pipeline.reading.record_reader import RecordReader
from tests.input_pipeline.streams import (
    SIZE,
    STRIPED,
    assert_names_record,
    assert_same,
    columns_of,
    flip,
    make_split,
    stream,
    without_image,
)

pytestmark = pytest.mark.slow

IMAGES, FLIPPED = 60, (0, 17, 59)
SUBSTITUTE = {"on_corrupt": "substitute"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_split(tmp_path_factory.mktemp("whole"), IMAGES)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    split = make_split(tmp_path_factory.mktemp("damaged"), IMAGES)
    for index in FLIPPED:
        flip(split, index)
    return split


def substitutes_in(seen, undamaged) -> dict[int, set[int]]:
    """Returns the substitutes of each image that is missing in `seen`."""
    changed = undamaged["index"] != seen["index"]
    assert_same(seen, undamaged, where=~changed)
    return {
        int(index): set(seen["index"][undamaged["index"] == index].tolist()) for index in undamaged["index"][changed]
    }


@pytest.mark.parametrize("order", [{}, STRIPED], ids=["global", "striped"])
def test_damaged_record_always_has_the_same_substitute_with_its_label(whole, damaged, order):
    undamaged = stream(whole, 30, **order)
    seen = stream(damaged, 30, **SUBSTITUTE, **order)
    places = substitutes_in(seen, undamaged)
    assert places.keys() == set(FLIPPED)
    assert all(len(found) == 1 and not found & set(FLIPPED) for found in places.values())
    assert len(set.union(*places.values())) == len(FLIPPED)  # not one image for all
    by_index = dict(zip(undamaged["index"].tolist(), undamaged["image"], strict=True))
    for index, label, image in zip(seen["index"], seen["label"], seen["image"], strict=True):
        assert label == index and np.array_equal(image, by_index[index])


def test_substitutes_do_not_depend_on_order_workers_or_start_step(whole, damaged):
    expected = substitutes_in(stream(damaged, 30, **SUBSTITUTE), stream(whole, 30))
    assert substitutes_in(stream(damaged, 30, **SUBSTITUTE, **STRIPED), stream(whole, 30, **STRIPED)) == expected
    late = {"start_step": 11}
    assert substitutes_in(stream(damaged, 30, **SUBSTITUTE, **late), stream(whole, 30, **late)) == expected
    found = {}
    for worker in range(2):
        part = {"slices": BatchSlice(8, 2, first_replica=worker, local_replicas=1)}
        found |= substitutes_in(stream(damaged, 40, **SUBSTITUTE, **part), stream(whole, 40, **part))
    assert found == expected


def test_substitutions_name_shard_offset_index_and_reason(damaged):
    reader = Reader(damaged, Crop(SIZE), **SUBSTITUTE)
    assert reader.substituted(np.arange(IMAGES), seed=3) == []
    seen = columns_of(reader.training(BatchSlice(10), seed=3), 6)
    found = reader.substituted(np.arange(IMAGES), seed=3)
    assert sorted(substitution.index for substitution in found) == list(FLIPPED)
    for substitution in found:
        assert substitution.shard == str(damaged.shard_paths[damaged.shard[substitution.index]])
        assert substitution.offset == damaged.offset[substitution.index]
        assert "checksum" in substitution.reason
        assert substitution.substitute in seen["index"]
    assert np.array_equal(reader.images_at(np.arange(IMAGES), seed=3), seen["index"])
    reader.close()


def test_evaluation_substitutes_nothing(damaged):
    reader = Reader(damaged, Crop(SIZE), **SUBSTITUTE)
    with pytest.raises(tf.errors.OpError):
        columns_of(reader.evaluation(BatchSlice(10)), -1)
    assert_names_record(reader.explain(), damaged, 0)
    reader.close()


def test_undecodable_images_end_the_stream_until_recover_substitutes_them(tmp_path, whole):
    split = make_split(tmp_path, IMAGES)
    for index in (8, 9, 33):
        split = without_image(split, index)
    flip(split, 20)
    reader, slices = (
        Reader(split, Crop(SIZE), draws=4, cache=MemoryCache(IMAGES, budget_bytes=2**30), **SUBSTITUTE),
        BatchSlice(8),
    )
    taken, ends = [], 0
    while len(taken) < 30:
        try:
            for batch in reader.training(slices, seed=3, start_step=len(taken)).as_numpy_iterator():
                taken.append(batch)
                if len(taken) == 30:
                    break
        except tf.errors.OpError:
            ends += 1
            assert reader.recover(slices, len(taken), seed=3)
    assert ends == 1  # recover also checks the following steps
    seen = {name: np.concatenate([batch[name] for batch in taken]) for name in taken[0]}
    assert substitutes_in(seen, stream(whole, 30)).keys() == {8, 9, 20, 33}
    reasons = {each.index: each.reason for each in reader.substituted(np.arange(IMAGES), seed=3)}
    assert reasons.keys() == {8, 9, 20, 33}
    assert "decoded" in reasons[8] and "checksum" in reasons[20]
    assert not reader.recover(slices, 0, seed=3)  # nothing is left to substitute
    reader.close()


def test_explain_checks_records_in_several_threads(tmp_path, monkeypatch):
    split = without_image(make_split(tmp_path, 12), 11)
    reader = Reader(split, Crop(SIZE), draws=4)
    with pytest.raises(tf.errors.OpError):
        columns_of(reader.training(BatchSlice(12), seed=3), 1)
    both, problem = threading.Barrier(2), RecordReader.problem

    def wait_for_other_thread(records, index):
        both.wait(30)
        return problem(records, index)

    monkeypatch.setattr("convoy.input_pipeline.reading.record_reader.usable_cores", lambda: 2)
    monkeypatch.setattr(RecordReader, "problem", wait_for_other_thread)
    assert_names_record(reader.explain(), split, 11)
    reader.close()


def test_recover_does_nothing_without_substitution(tmp_path):
    split = without_image(make_split(tmp_path, 12), 7)
    reader = Reader(split, Crop(SIZE), draws=4)
    with pytest.raises(tf.errors.OpError):
        columns_of(reader.training(BatchSlice(4), seed=3), 3)
    assert not reader.recover(BatchSlice(4), 0, seed=3)
    assert_names_record(reader.explain(), split, 7)
    reader.close()


def test_split_without_any_usable_record_raises(tmp_path):
    split = make_split(tmp_path, 6)
    for index in range(6):
        flip(split, index)
    reader = Reader(split, Crop(SIZE), draws=4, **SUBSTITUTE)
    with pytest.raises(tf.errors.OpError):
        columns_of(reader.training(BatchSlice(4), seed=3), 1)
    error = reader.explain()
    assert isinstance(error, DataError) and "substitute" in str(error) and "100" in str(error)
    reader.close()


def test_records_after_the_cut_of_a_truncated_shard_are_substituted(tmp_path, whole):
    split = make_split(tmp_path, IMAGES)
    cut = 30
    with open(split.shard_paths[split.shard[cut]], "r+b") as file:
        file.truncate(int(split.offset[cut]) + 20)
    missing = {index for index in range(cut, IMAGES) if split.shard[index] == split.shard[cut]}
    for order in ({}, STRIPED):
        places = substitutes_in(stream(split, 15, **SUBSTITUTE, **order), stream(whole, 15, **order))
        assert places.keys() == missing


def test_one_of_two_images_can_substitute_the_other(tmp_path):
    split = make_split(tmp_path, 2, shards=1)
    flip(split, 0)
    seen = stream(dataclasses.replace(split), 3, slices=BatchSlice(4), **SUBSTITUTE)
    assert seen["index"].tolist() == [1] * 12
