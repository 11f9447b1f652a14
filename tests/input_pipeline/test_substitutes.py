"""Records that cannot be used, and those that stand in for them."""

import dataclasses
import threading

import numpy as np
import pytest
import tensorflow as tf

from convoy.core.errors import DataError
from convoy.input_pipeline.reading.cache import PixelCache
from convoy.input_pipeline.reading.decode import Crop
from convoy.input_pipeline.reading.reader import BatchSlice, Reader
from tests.input_pipeline.streams import SIZE, assert_same, columns_of, flip, make_split, stream, without_image

IMAGES, FLIPPED = 60, (0, 17, 59)
WINDOWED = {"shuffle": "block", "block_size": 14}
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
    """Returns, for each image that is missing in `seen`, those in its places."""
    changed = undamaged["index"] != seen["index"]
    assert_same(seen, undamaged, where=~changed)
    return {
        int(index): set(seen["index"][undamaged["index"] == index].tolist()) for index in undamaged["index"][changed]
    }


@pytest.mark.parametrize("order", [{}, WINDOWED], ids=["global", "block"])
def test_a_damaged_record_always_has_the_same_one_in_its_place_with_that_ones_label(whole, damaged, order):
    undamaged = stream(whole, 30, **order)
    seen = stream(damaged, 30, **SUBSTITUTE, **order)
    places = substitutes_in(seen, undamaged)
    assert places.keys() == set(FLIPPED)
    assert all(len(found) == 1 and not found & set(FLIPPED) for found in places.values())
    assert len(set.union(*places.values())) == len(FLIPPED)  # not one image for all
    by_index = dict(zip(undamaged["index"].tolist(), undamaged["image"], strict=True))
    for index, label, image in zip(seen["index"], seen["label"], seen["image"], strict=True):
        assert label == index and np.array_equal(image, by_index[index])


def test_substitutes_depend_neither_on_the_order_nor_on_workers_nor_on_where_a_run_starts(whole, damaged):
    expected = substitutes_in(stream(damaged, 30, **SUBSTITUTE), stream(whole, 30))
    assert substitutes_in(stream(damaged, 30, **SUBSTITUTE, **WINDOWED), stream(whole, 30, **WINDOWED)) == expected
    late = {"start_step": 11}
    assert substitutes_in(stream(damaged, 30, **SUBSTITUTE, **late), stream(whole, 30, **late)) == expected
    found = {}
    for worker in range(2):
        part = {"slices": BatchSlice(8, 2, first_replica=worker, local_replicas=1)}
        found |= substitutes_in(stream(damaged, 40, **SUBSTITUTE, **part), stream(whole, 40, **part))
    assert found == expected


def test_what_is_substituted_is_told_with_shard_offset_index_and_reason(damaged):
    reader = Reader(damaged, Crop(SIZE), **SUBSTITUTE)
    assert reader.substituted(np.arange(IMAGES), seed=3) == []
    seen = columns_of(reader.training(BatchSlice(10), seed=3), 6)
    told = reader.substituted(np.arange(IMAGES), seed=3)
    assert sorted(substitution.index for substitution in told) == list(FLIPPED)
    for substitution in told:
        assert substitution.shard == str(damaged.shard_paths[damaged.shard[substitution.index]])
        assert substitution.offset == damaged.offset[substitution.index]
        assert substitution.reason.startswith("is corrupt (its bytes give checksum 0x")
        assert substitution.substitute in seen["index"]
    assert np.array_equal(reader.images_at(np.arange(IMAGES), seed=3), seen["index"])
    reader.close()


def test_evaluation_substitutes_nothing(damaged):
    reader = Reader(damaged, Crop(SIZE), **SUBSTITUTE)
    with pytest.raises(tf.errors.OpError):
        columns_of(reader.evaluation(BatchSlice(10)), -1)
    assert "record 0 at offset 0 is corrupt" in str(reader.explain())
    reader.close()


def test_what_cannot_be_decoded_ends_the_stream_which_goes_on_once_it_is_mended(tmp_path, whole):
    split = make_split(tmp_path, IMAGES)
    for index in (8, 9, 33):
        split = without_image(split, index)
    flip(split, 20)
    reader, slices = (
        Reader(split, Crop(SIZE), draws=4, cache=PixelCache(IMAGES, budget_bytes=2**30), **SUBSTITUTE),
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
    assert ends == 1  # it looks ahead
    seen = {name: np.concatenate([batch[name] for batch in taken]) for name in taken[0]}
    assert substitutes_in(seen, stream(whole, 30)).keys() == {8, 9, 20, 33}
    told = {each.index: each.reason for each in reader.substituted(np.arange(IMAGES), seed=3)}
    assert told.keys() == {8, 9, 20, 33} and told[8] == "is whole but holds no image that can be decoded"
    assert not reader.recover(slices, 0, seed=3)  # nothing is left to mend
    reader.close()


def test_what_ended_a_stream_is_looked_for_by_several_threads(tmp_path, monkeypatch):
    split = without_image(make_split(tmp_path, 12), 11)
    reader = Reader(split, Crop(SIZE), draws=4)
    with pytest.raises(tf.errors.OpError):
        columns_of(reader.training(BatchSlice(12), seed=3), 1)
    together, problem_of = threading.Barrier(2), reader._problem_of

    def meeting(index):
        together.wait(30)  # for another thread
        return problem_of(index)

    monkeypatch.setattr("convoy.input_pipeline.reading.reader.usable_cores", lambda: 2)
    monkeypatch.setattr(reader, "_problem_of", meeting)
    assert "record 11 at offset" in str(reader.explain())
    reader.close()


def test_without_substitutes_nothing_is_mended(tmp_path):
    split = without_image(make_split(tmp_path, 12), 7)
    reader = Reader(split, Crop(SIZE), draws=4)
    with pytest.raises(tf.errors.OpError):
        columns_of(reader.training(BatchSlice(4), seed=3), 3)
    assert not reader.recover(BatchSlice(4), 0, seed=3)
    assert "record 7 at offset" in str(reader.explain())
    reader.close()


def test_data_with_nothing_that_can_be_used_is_refused(tmp_path):
    split = make_split(tmp_path, 6)
    for index in range(6):
        flip(split, index)
    reader = Reader(split, Crop(SIZE), draws=4, **SUBSTITUTE)
    with pytest.raises(tf.errors.OpError):
        columns_of(reader.training(BatchSlice(4), seed=3), 1)
    assert isinstance(reader.explain(), DataError)
    assert "none of 100 others, tried in its place, can be used either" in str(reader.explain())
    reader.close()


def test_a_shard_that_was_cut_short_is_substituted_from_there_on(tmp_path, whole):
    split = make_split(tmp_path, IMAGES)
    cut = 30
    with open(split.shard_paths[split.shard[cut]], "r+b") as file:
        file.truncate(int(split.offset[cut]) + 20)
    missing = {index for index in range(cut, IMAGES) if split.shard[index] == split.shard[cut]}
    for order in ({}, WINDOWED):
        places = substitutes_in(stream(split, 15, **SUBSTITUTE, **order), stream(whole, 15, **order))
        assert places.keys() == missing


def test_one_image_of_two_can_stand_in_for_the_other(tmp_path):
    split = make_split(tmp_path, 2, shards=1)
    flip(split, 0)
    seen = stream(dataclasses.replace(split), 3, slices=BatchSlice(4), **SUBSTITUTE)
    assert seen["index"].tolist() == [1] * 12
