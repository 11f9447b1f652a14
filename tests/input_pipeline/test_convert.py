"""Output of `convoy convert`: records, splits, classes."""

import re

import numpy as np
import pytest
from PIL import Image

from convoy import cli
from convoy.core.errors import DataError
from convoy.input_pipeline.convert.convert import Options, convert
from convoy.input_pipeline.convert.sources import Table
from convoy.input_pipeline.dataset.open import open_dataset
from tests.input_pipeline.conversions import assert_rejected, contents, examples, quarantined, start
from tests.input_pipeline.images import draw, draw_classes, pixels


@pytest.fixture
def photos(tmp_path):
    return draw_classes(tmp_path / "photos", {"03": 6, "mug": 8})


def test_command_converts_and_prints_a_summary(tmp_path, photos):
    data = tmp_path / "My Photos-2"
    process = start(f"--images={photos}", f"--output={data}", "--workers=2")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert all(line.startswith("converting: ") for line in errors.splitlines())  # progress on a slow machine
    assert "14 images" in output and all(f"0 {noun}" in output for noun in ("duplicates", "quarantined"))
    assert output.splitlines()[-1].endswith(f"convoy train --data={data} --workdir=RUN")
    dataset = open_dataset(data)
    assert dataset.name == "my_photos_2"
    assert dataset.splits == ("train", "validation")
    assert sum(dataset.split(split).num_images for split in dataset.splits) == 14
    assert sorted(path.name for path in data.iterdir() if ".tfrecord-" not in path.name) == [
        "dataset_info.json",
        "features.json",
        "image-class-label.labels.txt",
        "image.class.label.labels.txt",
        "images-train.npz",
        "images-validation.npz",
        "index-train.npz",
        "index-validation.npz",
        "manifest.json",
        "quarantine.jsonl",
        "report.html",
    ]


def test_record_has_the_file_bytes_and_imagenet_keys(tmp_path, photos):
    draw(photos / "mug" / "gray.png", 99)
    Image.fromarray(pixels(98)[..., 0]).save(photos / "mug" / "gray.jpg")
    convert(Options(images=photos, output=tmp_path / "data", validation_fraction=0))
    found = examples(tmp_path / "data")
    assert len(found) == 16
    for name, example in found.items():
        category = name.split("/")[0]
        assert example == {
            "image/encoded": (photos / name).read_bytes(),
            "image/format": b"png" if name.endswith("png") else b"jpeg",
            "image/height": 24,
            "image/width": 24,
            "image/channels": 1 if name == "mug/gray.jpg" else 3,
            "image/class/label": ["03", "mug"].index(category),
            "image/class/text": category.encode(),
            "image/filename": name.encode(),
        }


def test_result_does_not_depend_on_the_number_of_workers(tmp_path, photos):
    (photos / "mug" / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    draw(photos / "mug" / "large.png", 5, size=40)
    for workers in (1, 2, 3):
        output = tmp_path / f"workers{workers}" / "data"
        convert(Options(photos, output, workers=workers, shards=4, image_size=24, max_bad_fraction=0.2))
    assert contents(tmp_path / "workers1") == contents(tmp_path / "workers2") == contents(tmp_path / "workers3")


def test_seed_changes_order_and_validation_split(tmp_path, photos):
    for seed in (0, 1):
        convert(Options(photos, tmp_path / f"data{seed}", seed=seed, validation_fraction=0.3))
    splits = [[list(examples(tmp_path / f"data{seed}", split)) for split in ("train", "validation")] for seed in (0, 1)]
    assert sorted(splits[0][0] + splits[0][1]) == sorted(splits[1][0] + splits[1][1])
    assert set(splits[0][1]) != set(splits[1][1])


def test_images_are_shuffled_over_the_requested_number_of_shards(tmp_path, photos):
    convert(Options(photos, tmp_path / "data", shards=4, validation_fraction=0))
    split = open_dataset(tmp_path / "data").split("train")
    assert np.bincount(split.shard).tolist() == [3, 4, 3, 4]
    assert np.any(np.diff(split.label) < 0)


def test_csv_sets_the_categories_and_other_files_are_counted(tmp_path, photos):
    rows = "filename,category\n" + "".join(f"mug_{i:03d}.jpg,0{i % 2}\n" for i in range(8))
    (tmp_path / "train.csv").write_text(rows)
    summary = convert(Options(photos, tmp_path / "data", Table(tmp_path / "train.csv"), validation_fraction=0))
    assert summary.ignored == 6
    assert open_dataset(tmp_path / "data").class_names == ("00", "01")
    found = examples(tmp_path / "data")
    assert found["mug/mug_003.jpg"]["image/class/text"] == b"01"
    assert len(found) == 8
    assert ("03/03_000.jpg", "not named by train.csv") in quarantined(tmp_path / "data")


def test_missing_files_of_a_csv_are_skipped_and_listed_on_request(tmp_path, photos, capsys):
    (tmp_path / "t.csv").write_text("filename;category\nmug_001.jpg;a\nmug_002.jpg;b\ngone.jpg;a\n")
    flags = (
        f"--images={photos}",
        f"--output={tmp_path}/data",
        f"--manifest={tmp_path}/t.csv",
        "--validation_fraction=0",
    )
    assert_rejected(capsys, "'gone.jpg'", *flags, code=3)
    assert cli.main(["convoy", "convert", *flags, "--missing=skip"]) == 0
    output = capsys.readouterr().out
    assert all(count in output for count in ("2 images", "1 missing", "12 other files ignored"))
    assert dict(quarantined(tmp_path / "data"))["gone.jpg"].startswith("named by t.csv")


def test_splits_get_their_share_of_every_class(tmp_path, capsys):
    photos = draw_classes(tmp_path / "photos", {"a": 40, "b": 20, "c": 3, "d": 1})
    flags = (f"--images={photos}", f"--output={tmp_path}/data")
    assert cli.main(["convoy", "convert", *flags, "--splits=train:0.7,validation:.2,test:0.1", "--verbose"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert table[:5] == [
        ["class", "train", "validation", "test", "re-encoded", "duplicates", "quarantined"],
        *(["a", "28", "8", "4", "0", "0", "0"], ["b", "14", "4", "2", "0", "0", "0"]),
        *(["c", "2", "1", "0", "0", "0", "0"], ["d", "1", "0", "0", "0", "0", "0"]),
    ]
    dataset = open_dataset(tmp_path / "data")
    assert {split: dataset.split(split).num_images for split in dataset.splits} == {
        "train": 45,
        "validation": 13,
        "test": 6,
    }
    names = [name for split in dataset.splits for name in examples(tmp_path / "data", split)]
    assert len(names) == len(set(names)) == 64


def test_images_of_an_earlier_split_are_left_out_of_a_later_one(tmp_path, photos):
    convert(Options(photos, tmp_path / "data", validation_fraction=0.2))
    test = draw_classes(tmp_path / "test", {"mug": 3}, first=500)
    for kind, name in (("mug", "a.jpg"), ("03", "other_class.jpg")):
        (test / kind).mkdir(exist_ok=True)
        (test / kind / name).write_bytes((photos / "mug" / "mug_003.jpg").read_bytes())
    summary = convert(Options(test, tmp_path / "data", split="test"))
    assert (summary.leaked, summary.duplicates) == (2, 0)
    assert sorted(examples(tmp_path / "data", "test")) == ["mug/mug_000.jpg", "mug/mug_001.jpg", "mug/mug_002.jpg"]
    reasons = dict(quarantined(tmp_path / "data"))
    assert reasons.keys() == {"mug/a.jpg", "03/other_class.jpg"}
    assert re.fullmatch(r"same bytes as image \d+ of split (train|validation)", reasons["mug/a.jpg"])
    with pytest.raises(DataError, match="already in another split"):
        convert(Options(photos, tmp_path / "data", split="again"))


def test_split_is_added_with_the_labels_and_settings_of_the_first(tmp_path, photos):
    data = tmp_path / "data"
    convert(Options(photos, data, image_size=16, encoding="png"))
    train = contents(data)
    test = draw_classes(tmp_path / "test", {"mug": 3}, first=500)
    summary = convert(Options(test, data, split="test"))
    assert [split.name for split in summary.splits] == ["test"]
    dataset = open_dataset(data)
    assert dataset.splits == ("test", "train", "validation")
    assert dataset.split("test").label.tolist() == [1, 1, 1]
    assert {example["image/width"] for example in examples(data, "test").values()} == {16}
    kept = {name: content for name, content in train.items() if ".tfrecord-" in name or name.startswith("index")}
    assert kept.items() <= contents(data).items()
    import tensorflow_datasets as tfds

    assert len(list(tfds.builder_from_directory(str(data)).as_dataset(split="test"))) == 3


def test_a_folder_of_splits_is_converted_at_once(tmp_path):
    for split, numbers in (("train", {"bag": 20, "mug": 10}), ("Test", {"bag": 3, "mug": 2})):
        draw_classes(tmp_path / "photos" / split, numbers, first=100 * len(split))
    logged = []
    summary = convert(Options(tmp_path / "photos", tmp_path / "data", workers=1), log=logged.append)
    assert [(split.name, split.images, split.classes) for split in summary.splits] == [
        ("train", 27, 2),
        ("validation", 3, 2),
        ("test", 5, 2),
    ]
    assert any("--folders=classes" in line for line in logged)
    dataset = open_dataset(tmp_path / "data")
    assert dataset.class_names == ("bag", "mug")
    assert {name.partition("/")[0] for name in examples(tmp_path / "data", "test")} == {"Test"}
    names = {split: set(examples(tmp_path / "data", split)) for split in ("train", "validation")}
    assert {name.partition("/")[0] for name in names["train"] | names["validation"]} == {"train"}
    whole = Options(tmp_path / "photos", tmp_path / "all", validation_fraction=0, workers=1)
    assert [split.images for split in convert(whole).splits] == [30, 5]
    classes = convert(Options(tmp_path / "photos", tmp_path / "classes", folders="classes", workers=1))
    assert [one.name for one in classes.classes] == ["Test", "train"]


def test_options_that_contradict_a_folder_of_splits_are_refused(tmp_path, capsys):
    for split in ("train", "validation"):
        draw_classes(tmp_path / "photos" / split, {"bag": 2, "mug": 2}, first=10 * len(split))
    flags = (f"--images={tmp_path / 'photos'}", f"--output={tmp_path / 'data'}")
    for flag, named in (
        ("--split=validation", "--images="),
        ("--splits=train:0.5,test:0.5", "--splits"),
        ("--validation_fraction=0.1", "--validation_fraction"),
        ("--folders=photos", "--folders"),
    ):
        assert_rejected(capsys, named, *flags, flag, code=2)
    convert(Options(tmp_path / "photos", tmp_path / "data", workers=1))
    assert_rejected(capsys, "'train'", *flags, code=2)
