import os

import numpy as np
import pytest

from convoy.input_pipeline.dataset import records
from convoy.input_pipeline.dataset.examples import feature_names, from_bytes, from_file, read_features


def read(payload, wanted=None):
    return read_features(from_bytes(payload), len(payload), wanted)


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


def as_tensorflow_reads_it(payload):
    import tensorflow as tf

    features = tf.train.Example.FromString(payload).features.feature
    return {
        name: list(getattr(feature, kind).value) if (kind := feature.WhichOneof("kind")) else []
        for name, feature in features.items()
    }


def test_examples_are_read_as_tensorflow_reads_them():
    random = np.random.default_rng(0)
    for _ in range(300):
        payload = random_example(random).SerializeToString()
        expected = as_tensorflow_reads_it(payload)
        assert read(payload) == expected
        assert feature_names(from_bytes(payload), len(payload)) == sorted(expected)


def test_integers_may_stand_one_by_one():
    payload = b"\x0a\x0d\x0a\x0b\x0a\x01k\x12\x06\x1a\x04\x08\x03\x08\x05"
    assert as_tensorflow_reads_it(payload) == read(payload) == {"k": [3, 5]}


def test_only_what_is_wanted_is_read_from_a_file(tmp_path):
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
def test_a_length_that_cannot_be_is_refused(size):
    with pytest.raises(ValueError, match="does not fit"):
        read(b"\x0a" + records._varint(size) + b"rest")


def test_bytes_that_are_no_example_are_refused_or_read_as_tensorflow_does():
    from google.protobuf.message import DecodeError

    random = np.random.default_rng(1)
    whole = random_example(np.random.default_rng(4)).SerializeToString(deterministic=True)
    refused = 0
    for _ in range(3000):
        payload = bytearray(whole if random.random() < 0.8 else random.bytes(random.integers(0, 60)))
        for _ in range(random.integers(1, 4)):
            if payload:
                payload[random.integers(len(payload))] = random.integers(256)
        payload = bytes(payload[: random.integers(len(payload) + 1)]) if random.random() < 0.3 else bytes(payload)
        try:
            found = read(payload)
        except ValueError:
            refused += 1
            continue
        try:
            expected = as_tensorflow_reads_it(payload)
        except DecodeError:
            continue  # protobuf is stricter, such as with text that is not UTF-8
        # protobuf sets an entry aside in which a field is unknown; repr, because NaN is not NaN
        assert all(repr(found.get(name, [])) == repr(values) for name, values in expected.items())
    assert refused > 300
