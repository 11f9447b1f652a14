import numpy as np
import pytest

from convoy.core.errors import DataError
from convoy.input_pipeline.convert.metadata import write_index
from convoy.input_pipeline.dataset import index, records
from convoy.input_pipeline.dataset.index import RecordKeys


def tiled(lengths_of_shards, random=None):
    """Returns the index of shards with these record lengths, and the sizes of the shards."""
    random = random or np.random.default_rng(0)
    shard, offset, sizes = [], [], []
    for number, lengths in enumerate(lengths_of_shards):
        ends = np.cumsum(np.array(lengths, np.int64) + records.FRAME_OVERHEAD)
        offset.append(np.concatenate([[0], ends])[: len(lengths)])
        shard.append(np.full(len(lengths), number, np.int32))
        sizes.append(int(ends[-1]) if len(lengths) else 0)
    total = sum(map(len, lengths_of_shards))
    arrays = {
        "shard": np.concatenate(shard),
        "offset": np.concatenate(offset).astype(np.int64),
        "length": np.concatenate([np.array(lengths, np.int64) for lengths in lengths_of_shards]),
        "label": random.integers(0, 10, total).astype(np.int32),
        "crc": random.integers(0, 2**32, total).astype(np.uint32),
    }
    return arrays, sizes


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(index, "_CHUNK", 7)


@pytest.mark.parametrize("shards", [[[5]], [[5] * 7, [6] * 7], [[], [1, 2, 3], [], [4] * 20, []], [[0] * 6, [0]], [[]]])
def test_index_matches_its_shards(small_chunks, shards):
    arrays, sizes = tiled(shards)
    assert index.find_mismatch(arrays, sizes) == ""


def test_any_changed_position_is_a_mismatch(small_chunks):
    arrays, sizes = tiled([[3] * 9, [], [8, 0, 5], [1] * 16])
    for name, delta in (
        ("offset", 1),
        ("offset", -(2**63)),
        ("length", 1),
        ("length", -1),
        ("shard", 1),
        ("shard", -1),
    ):
        for record in range(len(arrays["shard"])):
            changed = {key: values.copy() for key, values in arrays.items()}
            changed[name][record] += np.array(delta).astype(changed[name].dtype)
            assert index.find_mismatch(changed, sizes), (name, delta, record)
    for number in range(len(sizes)):
        assert index.find_mismatch(arrays, [size + (i == number) for i, size in enumerate(sizes)])
    assert index.find_mismatch(arrays, sizes[:-1])
    assert index.find_mismatch(arrays, [*sizes, 1])
    assert not index.find_mismatch(arrays, [*sizes, 0])
    assert index.find_mismatch({name: values[:0] for name, values in arrays.items()}, sizes)


def test_index_takes_28_bytes_per_record_and_loading_little_more(tmp_path):
    import tracemalloc

    arrays, sizes = tiled(np.random.default_rng(0).integers(100, 1000, (20, 100_000)))
    write_index(tmp_path, "train", arrays)
    tracemalloc.start()
    try:
        loaded = index.load(index.index_path(tmp_path, "train"), sizes)
        assert index.label_counts(loaded["label"], 10).sum() == 2_000_000
        used, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 28.1 * 2_000_000
    assert peak - used < 30 * 2**20  # independent of the number of records
    for name, values in arrays.items():
        np.testing.assert_array_equal(loaded[name], values)


def test_out_of_range_labels_have_no_counts(small_chunks):
    assert index.label_counts(np.array([0, 1, 1] * 9), 3).tolist() == [9, 18, 0]
    assert index.label_counts(np.array([0] * 20 + [3]), 3) is None
    assert index.label_counts(np.array([0] * 20 + [-1]), 3) is None


def write_shard(path, *examples):
    path.write_bytes(b"".join(records.frame(records.example(features)) for features in examples))
    return path


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"image": b"x", "kind": 3}, r"'label'.*image, kind"),
        ({"label": "three"}, "'label'.*integer"),
        ({"label": 2**40}, "1099511627776.* 999,999"),
        ({"label": -2}, "-2"),
    ],
)
def test_record_without_a_usable_label_is_named(tmp_path, features, message):
    whole = {"image": b"x", "label": 1}
    shard = write_shard(tmp_path / "shard", whole, features)
    offset = len(records.frame(records.example(whole)))
    with pytest.raises(DataError, match=rf"{shard}: .*offset {offset}\b.*{message}"):
        index.scan([shard], RecordKeys("image", "label"))


@pytest.mark.parametrize("length", [2**60, 2**63, 2**64 - 1])
def test_impossible_frame_length_is_rejected(tmp_path, length):
    header = length.to_bytes(8, "little")
    path = tmp_path / "shard"
    path.write_bytes(header + records.masked_crc(header).to_bytes(4, "little") + b"rest of the file")
    with pytest.raises(DataError, match=r"offset 0\b.*truncated"):
        index.scan([path], RecordKeys())
