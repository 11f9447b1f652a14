import os

import numpy as np
import pytest

from convoy.input_pipeline.dataset import records
from convoy.input_pipeline.dataset.examples import feature_names, from_bytes, from_file, read_features


def read(payload, names=None):
    return read_features(from_bytes(payload), len(payload), names)


def random_example(random):
    import tensorflow as tf

    features = {}
    for number in range(random.integers(0, 6)):
        count = random.integers(0, 4)
        kind = random.integers(0, 3)
        if kind == 0:
            feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[random.bytes(n) for n in range(count)]))
        elif kind == 1:
            feature = tf.train.Feature(float_list=tf.train.FloatList(value=random.random(count)))
        else:
            values = random.integers(-(2**63), 2**63 - 1, count)
            feature = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        features[f"feature/{number}" + "x" * random.integers(0, 40)] = feature
    return tf.train.Example(features=tf.train.Features(feature=features))


def parsed_by_tensorflow(payload):
    import tensorflow as tf

    features = tf.train.Example.FromString(payload).features.feature
    return {
        name: list(getattr(feature, kind).value) if (kind := feature.WhichOneof("kind")) else []
        for name, feature in features.items()
    }


def test_examples_equal_tensorflows():
    random = np.random.default_rng(0)
    for _ in range(300):
        payload = random_example(random).SerializeToString()
        expected = parsed_by_tensorflow(payload)
        assert read(payload) == expected
        assert feature_names(from_bytes(payload), len(payload)) == sorted(expected)


def test_unpacked_integers():
    payload = b"\x0a\x0d\x0a\x0b\x0a\x01k\x12\x06\x1a\x04\x08\x03\x08\x05"
    assert parsed_by_tensorflow(payload) == read(payload) == {"k": [3, 5]}


def test_only_requested_features_are_read_from_a_file(tmp_path):
    image = os.urandom(100_000)
    payload = records.example({"a": image, "image/class/label": 7, "z": "end"})
    path = tmp_path / "shard"
    path.write_bytes(b"before" + payload)
    reads = []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        source = from_file(descriptor, 6, len(payload))

        def counted(start, count):
            reads.append(count)
            return source(start, count)

        assert read_features(counted, len(payload), {"image/class/label"}) == {"image/class/label": [7]}
        assert sum(reads) < 1000
        assert read_features(source, len(payload), {"a", "z"}) == {"a": [image], "z": [b"end"]}
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("size", [2**60, 2**63, 2**64 - 1])
def test_impossible_length_is_rejected(size):
    with pytest.raises(ValueError, match="fit"):
        read(b"\x0a" + records._varint(size) + b"rest")


def test_damaged_examples_are_rejected_or_equal_tensorflows():
    from google.protobuf.message import DecodeError

    random = np.random.default_rng(1)
    whole = random_example(np.random.default_rng(4)).SerializeToString(deterministic=True)
    rejected = 0
    for _ in range(3000):
        payload = bytearray(whole if random.random() < 0.8 else random.bytes(random.integers(0, 60)))
        for _ in range(random.integers(1, 4)):
            if payload:
                payload[random.integers(len(payload))] = random.integers(256)
        payload = bytes(payload[: random.integers(len(payload) + 1)]) if random.random() < 0.3 else bytes(payload)
        try:
            found = read(payload)
        except ValueError:
            rejected += 1
            continue
        try:
            expected = parsed_by_tensorflow(payload)
        except DecodeError:
            continue  # protobuf is stricter, for example about text that is not UTF-8
        # protobuf drops entries with unknown fields; repr, because NaN != NaN
        assert all(repr(found.get(name, [])) == repr(values) for name, values in expected.items())
    assert rejected > 300
