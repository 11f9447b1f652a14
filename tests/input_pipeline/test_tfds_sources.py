"""Conversion of datasets prepared by TFDS, and of other tools' TFRecords."""

import gzip
import json
import shutil
import zlib
from dataclasses import replace

import numpy as np
import pytest

from convoy import cli
from convoy.core.errors import DataError, UsageError
from convoy.input_pipeline.convert.convert import Options, convert
from convoy.input_pipeline.convert.tfds_sources import find_prepared
from convoy.input_pipeline.dataset import records
from convoy.input_pipeline.dataset.open import open_dataset
from tests.input_pipeline.datasets import encode, example
from tests.input_pipeline.images import draw_classes, pixels


def test_prepared_dataset_is_converted_with_splits_and_labels(tmp_path, capsys, monkeypatch):
    import tensorflow as tf

    from convoy.input_pipeline.dataset.examples import from_bytes, read_features
    from convoy.input_pipeline.reading.decode import Crop
    from convoy.input_pipeline.reading.reader import Reader
    from tests.input_pipeline.external_sets import prepare_with_tfds

    prepare_with_tfds(tmp_path / "tfds")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    assert cli.main(["convoy", "convert", "--tfds=photos", f"--output={tmp_path}/data"]) == 0
    assert "split 'test'" in capsys.readouterr().err  # left out: its images have no labels
    dataset = open_dataset(tmp_path / "data")
    assert (dataset.class_names, dataset.splits) == (("cup", "fork", "jar"), ("train", "validation"))
    assert [dataset.split(split).num_images for split in dataset.splits] == [60, 15]
    payloads = Reader(dataset.split("validation"), Crop(24)).read(np.arange(15))
    found = {}
    for payload in payloads:
        features = read_features(from_bytes(payload), len(payload))
        assert features["image/filename"][0].startswith(b"photos-validation.tfrecord-00000-of-00001/00000")
        image = tf.io.decode_png(features["image/encoded"][0]).numpy()
        number = next(number for number in range(60, 75) if np.array_equal(image, pixels(number)))
        found[number] = features["image/class/label"][0]
    assert found == {number: number % 3 for number in range(60, 75)}


def test_validation_split_is_taken_from_a_prepared_dataset_without_one(tmp_path, capsys):
    from tests.input_pipeline.external_sets import TwoSplits, prepare_with_tfds

    prepare_with_tfds(tmp_path / "tfds", TwoSplits)
    flags = ("--tfds=two_splits", f"--tfds_dir={tmp_path / 'tfds'}", "--workers=1")
    for given, validation, is_noted in ((), {}, True), (("--validation_fraction=.1",), {"validation": 3}, False):
        output = tmp_path / f"data{len(given)}"
        assert cli.main(["convoy", "convert", *flags, f"--output={output}", *given]) == 0
        dataset = open_dataset(output)
        counts = {split: dataset.split(split).num_images for split in dataset.splits}
        assert counts == {"train": 30 - sum(validation.values()), "test": 6, **validation}
        assert ("--validation_fraction" in capsys.readouterr().err) == is_noted


def test_own_validation_split_leaves_none_to_be_taken(tmp_path, capsys):
    from tests.input_pipeline.external_sets import prepare_with_tfds

    flags = ("convert", f"--output={tmp_path / 'data'}", "--workers=1", "--tfds=photos", f"--tfds_dir={tmp_path}")
    prepare_with_tfds(tmp_path)
    assert cli.main(["convoy", *flags, "--validation_fraction=.1"]) == 2
    assert "--tfds=photos" in capsys.readouterr().err and not (tmp_path / "data").exists()


def test_prepared_dataset_is_found_by_name_configuration_and_version(tmp_path):
    for path in ("mnist/3.0.1", "mnist/3.0.10", "resized/8x8/1.0.0", "resized/16x16/1.0.0", "half/1.0.0"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "dataset_info.json").touch()
    shutil.rmtree(tmp_path / "half" / "1.0.0")
    for name, path in (("mnist", "mnist/3.0.10"), ("mnist:3.0.1", "mnist/3.0.1"), ("resized/8x8", "resized/8x8/1.0.0")):
        assert find_prepared(name, tmp_path) == tmp_path / path
    for name, message in (
        ("minst", "--tfds=minst.*'mnist'"),
        ("mnist:1.0.0", "--tfds=mnist:1.0.0.* version 1.0.0"),
        ("half", "--tfds=half.*no prepared dataset[.]"),
        ("resized", "2 configurations.*--tfds=resized/16x16"),
    ):
        with pytest.raises(UsageError, match=message):
            find_prepared(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "fix"),
    [("tfds/mnist/3.0.1", "--tfrecords=tfds/mnist/3.0.1"), ("tfds/mnist/", "--tfds=mnist --tfds_dir=tfds")],
)
@pytest.mark.parametrize("download", ["--download", "--nodownload"])
def test_the_path_of_a_prepared_dataset_is_not_a_name(tmp_path, capsys, monkeypatch, name, fix, download):
    (tmp_path / "tfds" / "mnist" / "3.0.1").mkdir(parents=True)
    (tmp_path / "tfds" / "mnist" / "3.0.1" / "dataset_info.json").touch()
    monkeypatch.chdir(tmp_path)
    flags = [f"--tfds={name}", f"--tfds_dir={tmp_path}/elsewhere", "--output=data", download]
    assert cli.main(["convoy", "convert", *flags]) == 2
    assert fix in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--images=x", "--manifest=x.csv", "--split=train", "--splits=a:1"])
def test_flags_that_conflict_with_a_prepared_dataset_are_rejected(tmp_path, capsys, flag):
    assert cli.main(["convoy", "convert", "--tfds=photos", f"--tfds_dir={tmp_path}", "--output=data", flag]) == 2
    error = capsys.readouterr().err
    assert flag.partition("=")[0] in error and "--tfds=photos" in error


@pytest.fixture
def shards(tmp_path):
    """A folder of shards. Class 0 has no images, and all validation images are also in train."""
    from tests.input_pipeline.external_sets import write_like_model_garden

    folder = write_like_model_garden(tmp_path / "shards", range(12), "train")
    return write_like_model_garden(folder, range(6), "validation")


def test_split_of_duplicates_is_left_out_and_logged(tmp_path, shards):
    logged = []
    options = Options(shards, tmp_path / "data", prepared=True, splits={"train": 0.5, "validation": 0.5})
    summary = convert(options, log=logged.append)
    (line,) = logged
    assert "'validation'" in line
    assert [split.name for split in summary.splits] == ["train"]
    listed = list(map(json.loads, (tmp_path / "data" / "quarantine.jsonl").read_text().splitlines()))
    assert {line["split"] for line in listed} == {"validation"} and len(listed) == 6


def test_empty_class_may_be_missing_in_the_existing_dataset(tmp_path, shards):
    photos = draw_classes(tmp_path / "photos", {"cup": 2, "fork": 2, "jar": 2}, first=90)
    convert(Options(photos, tmp_path / "data", split="test"))
    convert(Options(shards, tmp_path / "data", prepared=True, splits={"train": 1.0}))
    assert open_dataset(tmp_path / "data").split("train").num_images == 12


def test_bad_images_are_limited_per_split(tmp_path):
    from tests.input_pipeline.external_sets import write_like_model_garden

    write_like_model_garden(tmp_path / "shards", range(30), "train")
    files = [b"\xff\xd8 damaged", encode(pixels(40), "jpeg"), encode(pixels(41), "jpeg")]
    framed = [records.frame(example(file, "jpeg", pixels(40), label=1)) for file in files]
    (tmp_path / "shards" / "test-00000-of-00001").write_bytes(b"".join(framed))
    options = Options(tmp_path / "shards", tmp_path / "data", prepared=True, splits={"train": 0.5, "test": 0.5})
    with pytest.raises(DataError, match="1 of 3 images .*--max_bad_fraction=0.1 "):
        convert(replace(options, max_bad_fraction=0.1))
    convert(replace(options, max_bad_fraction=0.4))


def write_records(path, numbers, compress=bytes):
    """Writes images with the keys `jpg` and `cls` and labels from 1; `compress` is applied to the file's bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    payloads = [records.example({"jpg": encode(pixels(i), "png"), "cls": 1 + i % 3}) for i in numbers]
    path.write_bytes(compress(b"".join(map(records.frame, payloads))))


def convert_records(folder, output, *flags):
    keys = ("--image_key=jpg", "--label_key=cls")
    return cli.main(["convoy", "convert", f"--tfrecords={folder}", f"--output={output}", "--workers=1", *keys, *flags])


def test_compressed_records_of_other_tools_are_converted_with_their_splits(tmp_path):
    write_records(tmp_path / "records" / "train-1.tfrec.gz", range(12), gzip.compress)
    write_records(tmp_path / "records" / "train-2", range(12, 20))
    write_records(tmp_path / "records" / "test" / "part", range(20, 26), zlib.compress)
    (tmp_path / "names.txt").write_text("cup\nfork\njar\n")
    names = f"--class_names_file={tmp_path / 'names.txt'}"
    assert convert_records(tmp_path / "records", tmp_path / "out" / "data", names) == 0
    dataset = open_dataset(tmp_path / "out" / "data")
    assert dataset.class_names == ("cup", "fork", "jar")
    counts = {split: dataset.split(split).num_images for split in dataset.splits}
    assert counts == {"test": 6, "train": 18, "validation": 2}  # drawn from train, as with folders of images
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["data"]


def test_records_without_splits_are_divided_as_requested(tmp_path, capsys):
    write_records(tmp_path / "records" / "part-1", range(30))
    assert convert_records(tmp_path / "records", tmp_path / "data", "--splits=train:0.6,test:0.2,holdout:0.2") == 0
    dataset = open_dataset(tmp_path / "data")
    counts = {split: dataset.split(split).num_images for split in dataset.splits}
    assert (counts, dataset.class_names) == ({"holdout": 6, "test": 6, "train": 18}, ("1", "2", "3"))
    assert "labels are from 1" in capsys.readouterr().err
    write_records(tmp_path / "records2" / "train-1", range(4))
    write_records(tmp_path / "records2" / "test-1", range(4, 8))
    assert convert_records(tmp_path / "records2", tmp_path / "more", "--split=train") == 2
    error = capsys.readouterr().err
    assert "--split" in error and "train, test" in error


def test_compressed_records_that_are_damaged_are_named(tmp_path, capsys):
    write_records(tmp_path / "records" / "train.gz", range(3), lambda data: gzip.compress(data)[:-40])
    assert convert_records(tmp_path / "records", tmp_path / "out" / "data") == 3
    error = capsys.readouterr().err
    assert "train.gz" in error and "GZIP" in error
    assert not (tmp_path / "out").exists()
