import errno
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from convoy.core.errors import DataError
from convoy.input_pipeline.convert.convert import Options, convert
from convoy.input_pipeline.dataset import records
from convoy.input_pipeline.dataset.open import open_dataset
from tests.input_pipeline.datasets import read_payloads
from tests.input_pipeline.images import draw_classes


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    images = draw_classes(folder / "photos", {"03": 12, "mug": 18, "Käse": 6})
    convert(Options(images=images, output=folder / "data", validation_fraction=0.25, shards=3, workers=2))
    return folder / "data"


@pytest.fixture
def data(converted, tmp_path):
    return shutil.copytree(converted, tmp_path / "data")


def assert_rejected(message, directory):
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(directory)
    assert "\n" not in str(caught.value)


def test_dataset_has_name_classes_and_splits(data):
    dataset = open_dataset(data)
    assert (dataset.directory, dataset.name, dataset.num_classes) == (data, "data", 3)
    assert dataset.class_names == ("03", "Käse", "mug")
    assert dataset.splits == ("train", "validation")
    assert (dataset.split("train").num_images, dataset.split("validation").num_images) == (27, 9)
    assert dataset.manifest["splits"]["train"]["counts"] == np.bincount(dataset.split("train").label).tolist()


def test_index_dtypes_and_read_only_arrays(data):
    split = open_dataset(str(data)).split("train")
    types = {"shard": np.int32, "offset": np.int64, "length": np.int64, "label": np.int32, "crc": np.uint32}
    for name, dtype in types.items():
        array = getattr(split, name)
        assert array.dtype == dtype and array.shape == (split.num_images,)
        assert not array.flags.writeable


def test_index_has_every_record_of_every_shard(data):
    import tensorflow as tf

    dataset = open_dataset(data)
    for name in dataset.splits:
        split = dataset.split(name)
        features = [tf.train.Example.FromString(payload).features.feature for payload in read_payloads(split)]
        assert [f["image/class/label"].int64_list.value[0] for f in features] == split.label.tolist()
        names = [f["image/class/text"].bytes_list.value[0].decode() for f in features]
        assert names == [dataset.class_names[label] for label in split.label]
        walked = [(s, *header) for s, path in enumerate(split.shard_paths) for header in records.walk(path)]
        columns = (split.shard, split.offset, split.length, split.crc)
        assert walked == list(zip(*(column.tolist() for column in columns), strict=True))


def test_digest_depends_on_content_not_location(data, tmp_path):
    digest = open_dataset(data).digest("train")
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert open_dataset(shutil.copytree(data, tmp_path / "moved")).digest("train") == digest
    assert open_dataset(data).digest("validation") != digest
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["class_names"][0] = "04"
    (data / "manifest.json").write_text(json.dumps(manifest))
    assert open_dataset(data).digest("train") != digest


def test_class_weights_balance_the_classes(data):
    entry = open_dataset(data).manifest["splits"]["train"]
    weighted = np.array(entry["counts"]) * entry["class_weights"]
    np.testing.assert_allclose(weighted, weighted.mean())
    assert weighted.sum() == pytest.approx(entry["num_images"])


def test_unknown_split_error_suggests_and_lists_splits(data):
    dataset = open_dataset(data)
    with pytest.raises(DataError, match=r"'valid'.*'validation'.*train, validation"):
        dataset.split("valid")
    with pytest.raises(DataError, match="'test'"):
        dataset.digest("test")


def test_missing_directory_suggests_the_closest_name(data):
    assert_rejected(r"/dat\b.*'data'", data.with_name("dat"))


def test_unreadable_directory_is_named(data, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "stat", refuse)
    assert_rejected(r"manifest\.json.*Permission denied", data)


def test_directory_without_manifest_is_named(tmp_path):
    assert_rejected("not a dataset.*manifest.json", tmp_path)


def test_damaged_manifest_and_other_version_are_rejected(data):
    text = (data / "manifest.json").read_text()
    (data / "manifest.json").write_text(text[:100])
    assert_rejected(r"manifest\.json", data)
    (data / "manifest.json").write_text(text.replace('"format_version": 1', '"format_version": 99'))
    assert_rejected("version 99.* version 1", data)
    (data / "manifest.json").write_text('{"format_version": 1, "name": "data"}')
    assert_rejected(r"manifest\.json.*damaged", data)


def test_missing_or_truncated_shard_is_named(data):
    shard = data / "data-train.tfrecord-00001-of-00003"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    assert_rejected(f"{shard}.*{len(content) - 1:,} bytes.*{len(content):,}", data)
    shard.unlink()
    assert_rejected(f"{shard}.*missing", data)


def open_with_scan(data, caplog, split="train"):
    """Opens a dataset with an unusable index; returns the split and the logged line."""
    whole = {path.name: path.read_bytes() for path in data.iterdir()}
    opened = open_dataset(data).split(split)
    assert {path.name: path.read_bytes() for path in data.iterdir()} == whole
    (log,) = caplog.messages
    caplog.clear()
    assert f"convoy verify --data={data} --repair_index" in log
    return opened, log


def assert_same(split, expected):
    for name in ("shard", "offset", "length", "label", "crc"):
        array = getattr(split, name)
        np.testing.assert_array_equal(array, getattr(expected, name))
        assert array.dtype == getattr(expected, name).dtype and not array.flags.writeable


def test_missing_or_unreadable_index_is_rebuilt_from_the_shards(data, caplog):
    expected = open_dataset(data).split("validation")
    index = data / "index-validation.npz"
    index.write_bytes(index.read_bytes()[:200])
    split, log = open_with_scan(data, caplog, "validation")
    assert_same(split, expected)
    assert str(index) in log
    index.unlink()
    split, log = open_with_scan(data, caplog, "validation")
    assert_same(split, expected)
    assert str(index) in log and "missing" in log


@pytest.mark.parametrize(
    ("array", "change", "named"),
    [
        ("offset", lambda a: a + (np.arange(len(a)) == 5), "record 5"),
        ("length", lambda a: a + (np.arange(len(a)) == len(a) - 1), "bytes of shard"),
        ("length", lambda a: np.where(np.arange(len(a)) == 3, 2**62, a), "4,611,686,018,427,387,904 bytes"),
        ("label", lambda a: a + 3, "label"),
        ("label", lambda a: np.zeros_like(a), "counts"),
        ("shard", lambda a: a + 1, "shard 3"),
        ("shard", lambda a: a[::-1].copy(), "start of a record"),
        ("crc", lambda a: a[1:], "length"),
        ("shard", lambda a: a.astype(np.int64), "cannot be read"),
        ("shard", lambda a: np.array([{}]), "cannot be read"),
    ],
)
def test_mismatching_index_is_rebuilt_from_the_shards(data, caplog, array, change, named):
    expected = open_dataset(data).split("train")
    path = data / "index-train.npz"
    with np.load(path) as index:
        arrays = dict(index)
    arrays[array] = change(arrays[array])
    np.savez(path, **arrays)
    split, log = open_with_scan(data, caplog)
    assert str(path) in log and named in log
    assert_same(split, expected)


def test_flipped_bit_in_an_index_is_detected(data, caplog):
    expected = open_dataset(data).split("train")
    path = data / "index-train.npz"
    content = bytearray(path.read_bytes())
    label = expected.label.tobytes()
    content[content.index(label) + 1] ^= 1
    path.write_bytes(content)
    split, log = open_with_scan(data, caplog)
    assert "CRC" in log
    assert_same(split, expected)


def test_shards_with_other_labels_than_the_manifest_are_rejected(data):
    manifest = json.loads((data / "manifest.json").read_text())
    counts = manifest["splits"]["train"]["counts"]
    counts[0], counts[1] = counts[0] + 1, counts[1] - 1
    (data / "manifest.json").write_text(json.dumps(manifest))
    assert_rejected("'train'.* manifest.json.*labels", data)


def test_opening_a_dataset_does_not_import_tensorflow(data):
    program = "import sys; from convoy.input_pipeline.dataset.open import open_dataset"
    program += f"; open_dataset({str(data)!r}).split('train')"
    program += "; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_tfds_opens_the_directory_and_slices_it(data):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(data))
    label = builder.info.features["image"]["class"]["label"]
    assert label.names == ["03", "Käse", "mug"]
    assert builder.info.splits["train"].num_examples == 27
    sliced = list(builder.as_dataset(split="train[2:5]"))
    shards = sorted(str(path) for path in data.glob("data-train.tfrecord-*-of-00003"))
    raw = [tf.train.Example.FromString(r.numpy()).features.feature for r in tf.data.TFRecordDataset(shards)][2:5]
    assert len(sliced) == 3
    for features, by_tfds in zip(raw, sliced, strict=True):
        image = by_tfds["image"]
        pixels = tf.io.decode_jpeg(features["image/encoded"].bytes_list.value[0]).numpy()
        np.testing.assert_array_equal(image["encoded"].numpy(), pixels)
        assert pixels.shape == (image["height"], image["width"], image["channels"])
        assert image["class"]["label"].numpy() == features["image/class/label"].int64_list.value[0]
        assert image["class"]["text"].numpy().decode() == label.int2str(image["class"]["label"].numpy())
        assert image["filename"].numpy() == features["image/filename"].bytes_list.value[0]
        assert image["format"].numpy() == b"jpeg"


def test_shards_have_the_keys_of_model_garden(data):
    import tensorflow as tf

    # The features that the classification decoder of the TensorFlow Model Garden parses.
    features = {
        "image/encoded": tf.io.FixedLenFeature((), tf.string, ""),
        "image/class/label": tf.io.FixedLenFeature((), tf.int64, -1),
        "image/class/text": tf.io.FixedLenFeature((), tf.string, ""),
        "image/object/bbox/xmin": tf.io.VarLenFeature(tf.float32),
    }
    shards = tf.data.Dataset.list_files(str(data / "data-train.tfrecord-?????-of-00003"), shuffle=False)
    read = [tf.io.parse_single_example(record, features) for record in tf.data.TFRecordDataset(shards)]
    split = open_dataset(data).split("train")
    assert [int(example["image/class/label"]) for example in read] == split.label.tolist()
    assert {tf.io.decode_image(example["image/encoded"]).shape.as_list() == [24, 24, 3] for example in read} == {True}
    assert not any(len(example["image/object/bbox/xmin"].values) for example in read)


@pytest.mark.skipif(not importlib.util.find_spec("tfrecord"), reason="the package tfrecord is not installed")
def test_tfrecord_package_reads_parts_of_a_shard_by_its_idx(data, python):
    split = open_dataset(data).split("train")
    # In a separate process, because it and TensorFlow define the same protobuf messages.
    program = """
import sys, tfrecord
for path in sys.argv[1:]:
    for part in range(3):
        keys = {"image/encoded": "byte", "image/class/label": "int", "image/class/text": "byte"}
        for example in tfrecord.reader.tfrecord_loader(path, path + ".idx", keys, shard=(part, 3)):
            print(part, int(example["image/class/label"][0]))
"""
    read = python("-c", program, *split.shard_paths)
    expected = []
    for number in range(len(split.shard_paths)):
        in_shard = split.label[split.shard == number].tolist()
        for part in range(3):
            start, stop = (len(in_shard) * bound // 3 for bound in (part, part + 1))
            expected += [f"{part} {label}" for label in in_shard[start:stop]]
    assert read.stdout.splitlines() == expected, read.stderr


def test_idx_file_has_offset_and_size_of_each_frame(data):
    dataset = open_dataset(data)
    split = dataset.split("train")
    for number, path in enumerate(split.shard_paths):
        lines = [tuple(map(int, line.split())) for line in path.with_name(path.name + ".idx").read_text().splitlines()]
        in_shard = split.shard == number
        assert lines == list(zip(split.offset[in_shard].tolist(), (split.length[in_shard] + 16).tolist(), strict=True))
        content = path.read_bytes()
        assert b"".join(content[offset : offset + size] for offset, size in lines) == content


def test_validation_split_is_stratified(data):
    counts = Counter(open_dataset(data).split("validation").label.tolist())
    assert sum(counts.values()) == 9
    assert all(abs(counts[label] - 0.25 * total) <= 1 for label, total in enumerate((12, 6, 18)))
