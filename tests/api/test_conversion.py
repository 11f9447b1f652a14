"""`convert`, `verify` and `sample`."""

import json
import logging

import pytest

import convoy


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "images"),
        ({"images": "photos", "splits": {"train": 0.5, "test": 0.5}, "split": "test"}, "splits=train:0.5,test:0.5"),
        ({"images": "photos", "splits": {"train": 0.5, "test": 0.4}}, "0.9"),
        ({"images": "photos", "splits": ["train", "test"]}, "NAME:SHARE"),
        ({"images": "photos", "missing": "ignore"}, "missing='ignore'"),
        ({"images": "photos", "group_column": "patient"}, "group_column=patient"),
        ({"images": "photos", "tfds": "mnist"}, "tfds=mnist"),
        ({"images": "nosuch://bucket/photos"}, "nosuch://bucket/photos"),
        ({"images": iter([(b"", "a")]), "manifest": "photos.csv"}, "manifest"),
        ({"images": "photos", "max_megapixels": 0}, "max_megapixels=0"),
        ({"images": "photos", "encoding": "gif"}, "encoding=gif"),
    ],
)
def test_wrong_argument_is_named_as_a_parameter(given, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "a").mkdir(parents=True)
    (tmp_path / "photos" / "a" / "1.png").touch()
    with pytest.raises(convoy.UsageError) as caught:
        convoy.convert(output="data", **given)
    outside_commands = "".join(str(caught.value).split("`")[::2])
    assert named in outside_commands and "--" not in outside_commands.partition("Example:")[0]
    assert not (tmp_path / "data").exists()


def test_sample_is_that_of_the_command(tmp_path, dataset):
    """With the arguments of the fixture."""
    photos = convoy.sample(tmp_path / "photos", categories=7, per_category=13, test_per_category=37, size=32, workers=1)
    files = {path.relative_to(photos): path.read_bytes() for path in photos.rglob("*.jpg")}
    assert files == {path.relative_to(dataset.photos): path.read_bytes() for path in dataset.photos.rglob("*.jpg")}
    with pytest.raises(convoy.UsageError, match="not empty"):
        convoy.sample(photos)


@pytest.mark.slow
def test_iterable_of_bytes_and_categories_is_converted(tmp_path, dataset):
    images = ((path.read_bytes(), path.parent.name) for path in sorted((dataset.photos / "train").rglob("*.jpg"))[:30])
    conversion = convoy.convert(images, output=tmp_path / "data", workers=1, validation_fraction=0)
    assert conversion.splits[0].images + conversion.duplicates == 30


@pytest.mark.slow
def test_conversion_has_the_shards_of_the_command(tmp_path, dataset, caplog):
    caplog.set_level(logging.INFO, logger="convoy")
    output, steps = tmp_path / "data", []
    conversion = convoy.convert(
        dataset.photos / "train",
        output=output,
        manifest=dataset.photos / "train.csv",
        workers=1,
        progress=lambda done, total: steps.append((done, total)),
    )
    ours, theirs = (json.loads((data / "manifest.json").read_text()) for data in (output, dataset.data))
    assert ours["splits"]["train"] == theirs["splits"]["train"]
    assert [split.name for split in conversion.splits] == ["train", "validation"]
    assert conversion.dataset.class_names == dataset.categories
    assert steps[-1][0] == steps[-1][1]
    found = convoy.verify(output, workers=1)
    assert found and not found.faults
    shard = next(output.glob("*train.tfrecord-00000*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    found = convoy.verify(output, workers=1)
    assert not found and {fault.file for fault in found.faults} == {shard.name}
    assert shard.name in repr(found)
