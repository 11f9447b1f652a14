import gzip
import os
import re

import numpy as np
import pytest

from convoy.core.errors import DataError
from convoy.input_pipeline.dataset import records
from convoy.input_pipeline.dataset.records import RecordError


def write(path, payloads):
    path.write_bytes(b"".join(map(records.frame, payloads)))
    return path


def walked(path):
    return [np.array(column) for column in zip(*records.walk(path), strict=True)]


def test_masked_crc_golden_value():
    # The CRC-32C of "123456789" is 0xE3069283 (RFC 3720); the mask is rotate right by 15 and add 0xA282EAD8.
    crc = 0xE3069283
    assert records.masked_crc(b"123456789") == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32


def test_frames_equal_tensorflows(tmp_path):
    import tensorflow as tf

    payloads = [b"", b"a", os.urandom(100_000)]
    ours = write(tmp_path / "ours", payloads)
    with tf.io.TFRecordWriter(str(tmp_path / "theirs")) as writer:
        for payload in payloads:
            writer.write(payload)
    assert ours.read_bytes() == (tmp_path / "theirs").read_bytes()
    assert [record.numpy() for record in tf.data.TFRecordDataset(str(ours))] == payloads


def test_example_is_parsed_by_tensorflow_and_is_independent_of_key_order():
    import tensorflow as tf

    features = {"image/encoded": os.urandom(300), "text": "Schöne 03", "label": 41, "below": -5, "big": 2**40, "x": 0.5}
    serialized = records.example(features)
    assert serialized == records.example(dict(reversed(features.items())))
    parsed = tf.train.Example.FromString(serialized).features.feature
    assert parsed["image/encoded"].bytes_list.value == [features["image/encoded"]]
    assert parsed["text"].bytes_list.value == ["Schöne 03".encode()]
    assert [parsed[key].int64_list.value[:] for key in ("label", "below", "big")] == [[41], [-5], [2**40]]
    assert parsed["x"].float_list.value == [0.5]
    assert len(parsed) == len(features)


def test_example_rejects_unsupported_types():
    with pytest.raises(TypeError, match="'shape'"):
        records.example({"shape": [1, 2]})


def test_walk_yields_offset_length_and_checksum_of_every_record(tmp_path):
    payloads = [os.urandom(n) for n in (0, 1, 17, 5000)]
    offset, length, crc = walked(write(tmp_path / "shard", payloads))
    assert offset.tolist() == [0, 16, 33, 66]
    assert length.tolist() == [0, 1, 17, 5000]
    assert crc.tolist() == [records.masked_crc(payload) for payload in payloads]


def test_walk_of_an_empty_file_is_empty(tmp_path):
    assert list(records.walk(write(tmp_path / "shard", []))) == []


@pytest.mark.parametrize("cut", [1, 4, 10, 115, 117, 127])
def test_walk_names_shard_and_offset_of_a_truncated_record(tmp_path, cut):
    shard = write(tmp_path / "shard", [b"x" * 100, b"y" * 100])
    shard.write_bytes(shard.read_bytes()[:-cut])
    with pytest.raises(DataError, match=rf"{re.escape(str(shard))}.* offset (0|116)\b.*truncated"):
        list(records.walk(shard))


def test_walk_names_shard_and_offset_of_a_corrupt_header(tmp_path):
    shard = write(tmp_path / "shard", [b"x" * 100, b"y" * 100])
    content = bytearray(shard.read_bytes())
    content[116 + 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=rf"{re.escape(str(shard))}.*offset 116"):
        list(records.walk(shard))


def read(paths, shards, offsets, lengths, crcs, first_index=0):
    indices = np.arange(first_index, first_index + len(shards))
    locations = records.Locations(paths, indices, *map(np.asarray, (shards, offsets, lengths, crcs)))
    frames = [
        paths[shard].read_bytes()[offset : offset + length + records.FRAME_OVERHEAD]
        for shard, offset, length in zip(shards, offsets, lengths, strict=True)
    ]
    return records.checked_payloads(frames, locations)


def test_records_can_be_read_in_any_order_from_several_shards(tmp_path):
    payloads = [[os.urandom(50 + 10 * i) for i in range(20)] for _ in range(3)]
    paths = [write(tmp_path / f"shard{s}", payloads[s]) for s in range(3)]
    walks = [walked(path) for path in paths]
    random = np.random.default_rng(0)
    shards, numbers = random.integers(0, 3, 100), random.integers(0, 20, 100)
    places = [np.array([walks[s][k][i] for s, i in zip(shards, numbers, strict=True)]) for k in range(3)]
    expected = [payloads[s][i] for s, i in zip(shards, numbers, strict=True)]
    assert read(paths, shards, *places) == expected


@pytest.mark.parametrize(
    ("byte", "noun"),
    [(120, "header"), (116 + 12 + 50, "corrupt")],
    ids=["length", "payload"],
)
def test_damaged_record_error_has_shard_offset_and_index(tmp_path, byte, noun):
    shard = write(tmp_path / "shard", [b"x" * 100, b"y" * 100])
    places = walked(shard)
    content = bytearray(shard.read_bytes())
    content[byte] ^= 1
    shard.write_bytes(content)
    with pytest.raises(RecordError, match=noun) as caught:
        read([shard], [0, 0], *places, first_index=76)
    assert (caught.value.path, caught.value.offset, caught.value.index) == (str(shard), 116, 77)


def test_intact_record_with_another_checksum_than_the_index_is_rejected(tmp_path):
    shard = write(tmp_path / "shard", [b"x" * 100, b"y" * 100])
    offset, length, crc = walked(shard)
    with pytest.raises(RecordError, match="corrupt") as caught:
        read([shard], [0], offset[:1], length[:1], crc[1:])
    assert (caught.value.offset, caught.value.index) == (0, 0)


def test_record_beyond_the_end_of_its_shard_is_rejected(tmp_path):
    shard = write(tmp_path / "shard", [b"x" * 100])
    with pytest.raises(RecordError, match=r"truncated.*\b0 of 116\b") as caught:
        read([shard], [0], [116], [100], [0])
    assert caught.value.offset == 116


def test_compressed_bombs_are_unpacked_in_pieces():
    whole = bytes(2**23 + 1)
    bomb = gzip.compress(whole) + gzip.compress(b"second part")
    pieces = list(records.decompressed("GZIP", [bomb]))
    assert b"".join(pieces) == whole + b"second part"
    assert max(map(len, pieces)) <= 2**22
