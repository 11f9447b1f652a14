import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convoy import cli
from convoy.cli.convert import class_summary
from convoy.core.errors import DataError, UsageError
from convoy.input_pipeline.convert import publish
from convoy.input_pipeline.convert.convert import Options, convert
from convoy.input_pipeline.convert.sources import Table
from convoy.input_pipeline.convert.summary import ClassSummary, SplitSummary, Summary
from convoy.input_pipeline.dataset.open import open_dataset
from tests.input_pipeline.datasets import read_payloads
from tests.input_pipeline.images import draw, draw_classes, pixels
from tests.small_disk import small_disk

ROOT = Path(__file__).parents[2]


@pytest.fixture
def photos(tmp_path):
    return draw_classes(tmp_path / "photos", {"03": 6, "mug": 8})


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def examples(data, split="train"):
    """Returns the records of a split by file name, each as {key: value}."""
    import tensorflow as tf

    found = {}
    for payload in read_payloads(open_dataset(data).split(split)):
        features = tf.train.Example.FromString(payload).features.feature
        example = {key: (f.bytes_list.value or f.int64_list.value)[0] for key, f in features.items()}
        found[example["image/filename"].decode()] = example
    return found


def quarantined(data):
    return {
        (entry["path"], entry["reason"])
        for entry in map(json.loads, (data / "quarantine.jsonl").read_text().splitlines())
    }


def start(*flags, file=subprocess.PIPE):
    """Starts `convoy convert`, with stdout and stderr going to `file`."""
    command = [sys.executable, "-m", "convoy", "convert", *map(str, flags)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=file, stderr=file, start_new_session=True)


def assert_rejected(capsys, named, *flags, code):
    """Asserts that the command exits with `code` and an error of up to two lines that names the given value."""
    assert cli.main(["convoy", "convert", *map(str, flags)]) == code
    error = capsys.readouterr().err.strip()
    assert named in error
    assert len(error.splitlines()) <= 2


# Output.


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
    draw(photos / "mug" / "grey.png", 99)
    Image.fromarray(pixels(98)[..., 0]).save(photos / "mug" / "grey.jpg")
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
            "image/channels": 1 if name == "mug/grey.jpg" else 3,
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


def ten_thousand_classes():
    classes = tuple(
        ClassSummary(f"class {label:05d}", {"train": 100 + label, "test": label % 7}, 0, int(label == 42), 0)
        for label in range(10_000)
    )
    splits = tuple(
        SplitSummary(split, sum(one.kept[split] for one in classes), 10_000, 8, 10**9) for split in ("train", "test")
    )
    return Summary(splits, classes, 1, 0, 0, 0, 0, 0)


def test_class_summary_of_many_classes_has_the_extremes_in_a_few_lines():
    lines = class_summary(ten_thousand_classes())
    assert len(lines) <= 7 and max(map(len, lines)) < 120
    assert "train" in lines[0] and "50,995,000 images" in lines[0] and "10,000 classes" in lines[0]
    assert re.findall(r"'class (\d+)' (\d[\d,]*\d|\d)", lines[1]) == [
        ("09999", "10,099"),
        ("09998", "10,098"),
        ("09997", "10,097"),
    ]
    assert re.findall(r"'class (\d+)' (\d[\d,]*\d|\d)", lines[2]) == [
        ("00000", "100"),
        ("00001", "101"),
        ("00002", "102"),
    ]
    assert re.findall(r"' (\d[\d,]*\d|\d)", lines[4] + lines[5]) == ["6", "6", "6", "0", "0", "0"]
    assert re.findall(r"'class (\d+)' (\d+)", lines[6]) == [("00042", "1")]


def test_class_summary_of_few_classes_lists_all_with_short_names():
    kinds = {"a\nb": 3, "x" * 200: 1}
    classes = tuple(ClassSummary(name, {"train": images}, 0, 0, 0) for name, images in kinds.items())
    lines = class_summary(Summary((SplitSummary("train", 4, 2, 1, 9),), classes, 0, 0, 0, 0, 0, 0))
    assert len(lines) == 2 and "\n" not in lines[1] and len(lines[1]) < 100
    assert r"'a\nb' 3" in lines[1] and "xxx…' 1" in lines[1]


@pytest.mark.parametrize("number", [2, 10_000])
def test_class_summary_of_classes_of_one_size_is_one_line_per_split(number):
    classes = tuple(ClassSummary(f"class {label}", {"train": 100, "test": 20}, 0, 0, 0) for label in range(number))
    splits = tuple(SplitSummary(split, size * number, number, 1, 9) for split, size in (("train", 100), ("test", 20)))
    lines = class_summary(Summary(splits, classes, 0, 0, 0, 0, 0, 0))
    assert len(lines) == 2
    for line, split, size in zip(lines, ("train", "test"), (100, 20), strict=True):
        assert line.startswith(f"{split}:") and f"{number:,} classes" in line and f" {size} " in line


@pytest.mark.parametrize("verbose", [False, True])
def test_command_prints_one_row_per_class_only_with_verbose(tmp_path, photos, capsys, verbose):
    flags = (f"--images={photos}", f"--output={tmp_path}/data", *["--verbose"] * verbose)
    assert cli.main(["convoy", "convert", *flags]) == 0
    output = capsys.readouterr().out
    rows = [line.split()[0] for line in output.splitlines() if line and not line.startswith(" ")]
    assert ("mug" in rows) is verbose
    assert "'mug'" in output and "'03'" in output


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--splits=train:0.8,test:0.3"], "1.1"),
        (["--splits=train"], "'train' is not NAME:SHARE"),
        (["--splits=a:1,b:0"], "'b:0'"),
        (["--splits=a:0.5,a:0.5"], "'a:0.5'"),
        (["--splits=a b:1"], "--split=a b"),
        (["--splits=a:1", "--split=b"], "--split "),
    ],
)
def test_invalid_splits_are_rejected(tmp_path, photos, capsys, flags, named):
    assert_rejected(capsys, named, f"--images={photos}", f"--output={tmp_path}/data", *flags, code=2)


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


# Changed pixels.


def converted_image(tmp_path, save, name="odd.png", **options):
    """Converts one image, saved by `save(path)`, and returns (format, pixels, bytes before, bytes after)."""
    path = tmp_path / "photos" / "odd" / name
    path.parent.mkdir(parents=True)
    save(path)
    convert(Options(tmp_path / "photos", tmp_path / "data", validation_fraction=0, **options))
    (example,) = examples(tmp_path / "data").values()
    data = example["image/encoded"]
    height, width = example["image/height"], example["image/width"]
    if example["image/format"] == b"raw":
        array = np.frombuffer(data, np.uint8).reshape(height, width, 3)
    else:
        image = Image.open(io.BytesIO(data))
        assert image.format.lower() == example["image/format"].decode()
        array = np.asarray(image)
    assert array.shape == (height, width, 3) and example["image/channels"] == 3
    return example["image/format"].decode(), array, path.read_bytes(), data


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    array = np.zeros((20, 30, 3), np.uint8)
    array[:10] = 255
    image_format, rotated, *_ = converted_image(
        tmp_path, lambda path: Image.fromarray(array).save(path, quality=95, exif=exif), "rotated.jpg"
    )
    assert image_format == "jpeg" and rotated.shape == (30, 20, 3)
    assert rotated[:, 12:].mean() > 250 and rotated[:, :8].mean() < 5


def test_transparency_is_flattened_onto_white(tmp_path):
    array = np.dstack([pixels(1), np.full((24, 24), 255, np.uint8)])
    array[:12, :, 3] = 0
    image_format, flat, *_ = converted_image(tmp_path, Image.fromarray(array).save)
    assert image_format == "png"
    assert (flat[:12] == 255).all()
    np.testing.assert_array_equal(flat[12:], array[12:, :, :3])


def test_palette_becomes_rgb(tmp_path):
    palette = Image.fromarray(pixels(1)).quantize(16)
    image_format, array, *_ = converted_image(tmp_path, palette.save)
    assert image_format == "png"
    np.testing.assert_array_equal(array, np.asarray(palette.convert("RGB")))


def test_sixteen_bits_become_eight(tmp_path):
    grey = (np.arange(24 * 24).reshape(24, 24) * 100).astype(np.uint16)
    image_format, array, *_ = converted_image(tmp_path, Image.fromarray(grey).save)
    assert image_format == "png"
    np.testing.assert_array_equal(array, np.repeat((grey >> 8)[..., None], 3, 2))


def test_cmyk_becomes_rgb(tmp_path):
    cmyk = Image.fromarray(np.full((24, 24, 3), (200, 40, 90), np.uint8)).convert("CMYK")
    image_format, array, *_ = converted_image(tmp_path, lambda path: cmyk.save(path, quality=95), "cmyk.jpg")
    assert image_format == "jpeg"
    np.testing.assert_allclose(array.mean((0, 1)), (200, 40, 90), atol=4)


@pytest.mark.parametrize(("suffix", "target"), [("bmp", "png"), ("gif", "png"), ("webp", "jpeg"), ("tif", "png")])
def test_other_containers_become_jpeg_or_png(tmp_path, suffix, target):
    image = Image.fromarray(np.full((24, 24, 3), (200, 40, 90), np.uint8))
    image_format, array, *_ = converted_image(tmp_path, image.save, f"a.{suffix}")
    assert image_format == target
    np.testing.assert_allclose(array.mean((0, 1)), (200, 40, 90), atol=4)


def test_format_is_detected_from_the_content_not_from_the_suffix(tmp_path):
    image_format, _, before, after = converted_image(
        tmp_path, lambda path: Image.fromarray(pixels(1)).save(path, "JPEG"), "jpeg.png"
    )
    assert image_format == "jpeg" and before == after


@pytest.mark.parametrize("encoding", ["keep", "jpeg", "png", "raw"])
def test_images_are_resized_and_encoded_as_requested(tmp_path, encoding):
    image_format, array, *_ = converted_image(
        tmp_path, lambda path: draw(path, 7, size=50), "a.jpg", image_size=16, encoding=encoding
    )
    assert image_format == {"keep": "jpeg"}.get(encoding, encoding)
    expected = Image.open(tmp_path / "photos/odd/a.jpg").resize((16, 16), Image.Resampling.BILINEAR)
    assert np.abs(array.astype(int) - np.asarray(expected)).mean() < (4 if image_format == "jpeg" else 1e-9)


def test_tfds_reads_raw_pixels_of_one_size_as_images(tmp_path, photos):
    import tensorflow_datasets as tfds

    convert(Options(photos, tmp_path / "data", image_size=16, encoding="raw", validation_fraction=0))
    found = examples(tmp_path / "data")
    for example in tfds.builder_from_directory(str(tmp_path / "data")).as_dataset(split="train"):
        raw = found[example["image"]["filename"].numpy().decode()]["image/encoded"]
        assert example["image"]["encoded"].numpy().tobytes() == raw
        assert example["image"]["encoded"].shape == (16, 16, 3)


# Images left out.


def test_duplicates_are_dropped_within_a_class_and_kept_and_counted_across_classes(tmp_path, photos):
    (photos / "03" / "z_copy.jpg").write_bytes((photos / "03" / "03_001.jpg").read_bytes())
    (photos / "mug" / "z_other.jpg").write_bytes((photos / "03" / "03_002.jpg").read_bytes())
    summary = convert(Options(photos, tmp_path / "data", validation_fraction=0.4))
    assert (summary.duplicates, summary.conflicting, summary.quarantined) == (1, 2, 0)
    assert quarantined(tmp_path / "data") == {("03/z_copy.jpg", "same bytes as 03/03_001.jpg")}
    train = examples(tmp_path / "data")
    assert {"03/03_002.jpg", "mug/z_other.jpg"} <= set(train)  # not one in each split
    assert len(train) + len(examples(tmp_path / "data", "validation")) == 15


def break_images(folder):
    whole = (folder / "mug" / "mug_000.jpg").read_bytes()
    (folder / "mug" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "mug" / "empty.png").write_bytes(b"")
    (folder / "mug" / "text.jpg").write_text("<html>not found</html>")
    png = draw(folder / "mug" / "damaged.png", 55).read_bytes()
    (folder / "mug" / "damaged.png").write_bytes(png[:500] + bytes([png[500] ^ 255]) + png[501:])
    return {"mug/cut.jpg", "mug/empty.png", "mug/text.jpg", "mug/damaged.png"}


def test_bad_images_within_the_limit_are_left_out_with_a_reason(tmp_path, photos):
    bad = break_images(photos)
    (photos / "mug" / "notes.txt").write_text("stray")
    summary = convert(Options(photos, tmp_path / "data", validation_fraction=0, max_bad_fraction=4 / 18))
    reasons = dict(quarantined(tmp_path / "data"))
    assert set(reasons) == bad | {"mug/notes.txt"}
    assert reasons["mug/empty.png"] == "the file is empty"
    assert reasons["mug/text.jpg"] == "HTML, not an image"
    assert (summary.quarantined, summary.ignored) == (4, 1)
    assert len(examples(tmp_path / "data")) == 14


def test_too_many_bad_images_are_an_error_that_lists_some_and_leaves_no_dataset(tmp_path, photos, capsys):
    break_images(photos)
    before = contents(tmp_path)
    assert_rejected(capsys, "mug/", f"--images={photos}", f"--output={tmp_path}/new/data", code=3)
    assert_rejected(
        capsys,
        "--max_bad_fraction=0.1",
        f"--images={photos}",
        f"--output={tmp_path}/data",
        "--max_bad_fraction=.1",
        code=3,
    )
    assert {name: content for name, content in contents(tmp_path).items() if "partial" not in name} == before
    assert (
        cli.main(["convoy", "convert", f"--images={photos}", f"--output={tmp_path}/data", "--max_bad_fraction=.5"]) == 0
    )


def test_decompression_bomb_is_left_out(tmp_path, photos):
    Image.new("1", (20_000, 20_000)).save(photos / "mug" / "bomb.png")
    convert(Options(photos, tmp_path / "data", validation_fraction=0, max_bad_fraction=0.2))
    ((path, reason),) = quarantined(tmp_path / "data")
    assert path == "mug/bomb.png" and "decompression bomb" in reason


# Adding splits.


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


def test_split_that_does_not_fit_is_rejected_and_the_dataset_is_unchanged(tmp_path, photos, capsys):
    data = tmp_path / "data"
    convert(Options(photos, data))
    before = contents(tmp_path)
    new_class = draw_classes(tmp_path / "test", {"03": 1, "mugs": 1}, first=500)
    before = contents(tmp_path)
    flags = (f"--images={photos}", f"--output={data}")
    assert_rejected(capsys, "--split=train", *flags, code=2)
    assert_rejected(capsys, "--validation_fraction=0", *flags, "--split=extra", "--validation_fraction=.5", code=2)
    assert_rejected(capsys, "--image_size=0", *flags, "--split=test", "--image_size=8", code=2)
    assert_rejected(capsys, "--encoding=keep", *flags, "--split=test", "--encoding=raw", code=2)
    assert_rejected(capsys, "--name=data", *flags, "--split=test", "--name=other", code=2)
    assert_rejected(capsys, "mugs/mugs_000.jpg", f"--images={new_class}", flags[1], "--split=test", code=3)
    assert_rejected(capsys, "'mug'", f"--images={new_class}", flags[1], "--split=test", code=3)
    assert contents(tmp_path) == before


# Refused options.


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--encoding=jpg", "'jpeg'"),
        ("--validation_fraction=1", "--validation_fraction=1.0"),
        ("--max_bad_fraction=-1", "--max_bad_fraction=-1.0"),
        ("--image_size=-2", "--image_size=-2"),
        ("--workers=-1", "--workers=-1"),
        ("--split=my split", "--split=my split"),
        ("--name=My Data", "--name=my_data"),
        ("--imagesize=4", "image_size"),
    ],
)
def test_invalid_flag_is_rejected(tmp_path, photos, capsys, flag, named):
    assert_rejected(capsys, named, f"--images={photos}", f"--output={tmp_path}/data", flag, code=2)


def test_output_that_is_not_a_dataset_is_not_touched(tmp_path, photos, capsys):
    before = contents(tmp_path)
    assert_rejected(capsys, "manifest.json", f"--images={photos}", f"--output={photos}", code=2)
    assert contents(tmp_path) == before


def test_images_that_cannot_be_listed_exit_with_3(tmp_path, capsys):
    assert_rejected(capsys, f"{tmp_path}/none", f"--images={tmp_path}/none", f"--output={tmp_path}/data", code=3)
    assert list(tmp_path.iterdir()) == []


def test_help_is_fast():
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "convoy", "convert", "--help"], cwd=ROOT, check=True, capture_output=True)
    assert time.monotonic() - started < 1.5  # 0.2 s on an idle machine


# Interruptions.


def worker_processes(parent):
    """Returns the descendants of a process, Python's fork server first."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, generation = [], [parent]
    while generation:
        generation = [child for process in generation for child in children.get(process, [])]
        found += generation
    return found


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_conversion_killed_at_any_time_resumes_with_identical_results(tmp_path, wait_until):
    images = draw_classes(tmp_path / "photos", {"a": 40, "b": 40}, size=100, suffix=".png")
    marks, errors = tmp_path / "data.partial" / "marks", tmp_path / "errors"
    settings = ("--image_size=500", "--shards=8", "--workers=2", f"--images={images}")

    def stopped(stop):
        """Starts the conversion, stops it after one more shard; returns its exit code and stderr."""
        before = len(list(marks.glob("*-of-00008")))
        with open(errors, "w") as file:
            process = start(*settings, f"--output={tmp_path}/data", file=file)
            wait_until(
                lambda: process.poll() is not None or len(list(marks.glob("*-of-00008"))) > before, "a shard", 60
            )
            workers = worker_processes(process.pid)
            stop(process, workers)
            process.wait(60)
        wait_until(lambda: not any(map(is_running, workers)), "the end of the workers", 20)
        assert not (tmp_path / "data").exists()
        return process.returncode, errors.read_text()

    code, _ = stopped(lambda process, workers: os.kill(process.pid, signal.SIGKILL))
    assert code == -signal.SIGKILL
    code, errors_text = stopped(lambda process, workers: os.kill(workers[-1], signal.SIGKILL))
    assert code == 3
    # No image is named if the worker was between two shards.
    assert re.search(r"SIGKILL\)( .* [ab]/[ab]_\d+\.png)?\.", errors_text)
    assert re.search(r"convoy: \d finished shards .*data\.partial\b", errors_text)
    assert "--workers=1" in errors_text and "Traceback" not in errors_text
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        assert stopped(lambda process, workers, number=number: os.killpg(process.pid, number))[0] == code
        assert "Traceback" not in errors.read_text()

    for name in ("data", "reference/data"):
        with open(errors, "w") as file:
            assert start(*settings, f"--output={tmp_path / name}", file=file).wait(120) == 0
        if name == "data":
            assert re.search(r"reusing [4-8] of its [4-8] finished shards", errors.read_text())
    assert contents(tmp_path / "data") == contents(tmp_path / "reference" / "data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "errors", "photos", "reference"]


@pytest.fixture
def stopped_before_publishing(monkeypatch):
    """Returns a function that runs a conversion and interrupts it when all shards are finished."""

    def stop(options):
        with monkeypatch.context() as patch:
            patch.setattr(publish, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                convert(options)

    return stop


def test_shards_are_rewritten_if_an_image_or_a_setting_has_changed(tmp_path, photos, stopped_before_publishing):
    logged = []
    stopped_before_publishing(Options(photos, tmp_path / "data", shards=3))
    draw(photos / "mug" / "mug_003.jpg", 77)
    convert(Options(photos, tmp_path / "data", shards=3), log=logged.append)
    assert re.search(r"3 of its 4 finished shards \(1 outdated", logged.pop())
    convert(Options(photos, tmp_path / "reference" / "data", shards=3))
    assert contents(tmp_path / "data") == contents(tmp_path / "reference" / "data")

    stopped_before_publishing(Options(photos, tmp_path / "small", shards=2))
    (damaged,) = (tmp_path / "small.partial" / "dataset").glob("*-train.tfrecord-00001-of-00002")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    convert(Options(photos, tmp_path / "small", shards=2), log=logged.append)
    assert "2 of its 3 " in logged.pop()
    stopped_before_publishing(Options(photos, tmp_path / "tiny", shards=2))
    convert(Options(photos, tmp_path / "tiny", shards=2, image_size=8), log=logged.append)
    assert "0 of its 3 " in logged.pop()
    assert {example["image/width"] for example in examples(tmp_path / "tiny").values()} == {8}
    assert sorted(path.name for path in tmp_path.iterdir() if "partial" in path.name) == []


# Publishes a further split and exits after the given number of renames into the dataset.
_KILLED_WHILE_PUBLISHING = """
import os, sys
from pathlib import Path
from convoy.input_pipeline.convert.convert import Options, convert
images, data, renames = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
replace, done = os.replace, []
def counted(source, target):
    if Path(target).parent == data and Path(source).parent != data:
        done.append(target)
        if len(done) > renames:
            os._exit(99)
    replace(source, target)
os.replace = counted
convert(Options(images, data, split="test", shards=2))
"""


@pytest.mark.slow
def test_kill_while_publishing_leaves_the_dataset_intact_and_a_rerun_finishes(tmp_path, photos):
    data, reference = tmp_path / "data", tmp_path / "reference" / "data"
    test = draw_classes(tmp_path / "test", {"mug": 5}, first=500)
    (test / "mug" / "stray.txt").touch()
    for output in (data, reference):
        convert(Options(photos, output))
    convert(Options(test, reference, split="test", shards=2))
    for renames in (0, 1, 3, 5, 8, 11):
        command = [sys.executable, "-c", _KILLED_WHILE_PUBLISHING, str(test), str(data), str(renames)]
        assert subprocess.run(command, cwd=ROOT, timeout=120).returncode == 99
        assert open_dataset(data).splits == ("train", "validation")
    convert(Options(test, data, split="test", shards=2))
    assert contents(data) == contents(reference)


@pytest.mark.slow
def test_full_disk_is_a_one_line_error_and_a_rerun_resumes(tmp_path):
    images = draw_classes(tmp_path / "photos", {"a": 20, "b": 20}, size=200, suffix=".png")
    flags = (f"--images={images}", "--shards=8", "--validation_fraction=0", "--workers=1", "--name=data")

    def converted(output):
        with open(tmp_path / "errors", "w") as file:
            code = start(*flags, f"--output={output}", file=file).wait(120)
        return code, (tmp_path / "errors").read_text()

    with small_disk(tmp_path / "disk", 12 * 2**20) as disk:
        disk.fill(all_but=2_000_000)  # the dataset takes about 5 MB
        code, errors_text = converted(disk.seen / "data")
        assert code == 3, errors_text
        assert "No space left on device" in errors_text and f"--output={disk.seen / 'data'}" in errors_text
        assert re.search(r"convoy: [1-7] finished shards ", errors_text) and "Traceback" not in errors_text
        disk.make_room()
        assert converted(disk.seen / "data")[0] == 0
        assert converted(tmp_path / "data")[0] == 0
        assert contents(disk.seen / "data") == contents(tmp_path / "data")


@pytest.fixture
def memory_group():
    """A cgroup with a memory limit: (its folder, the files of its usage and its limit)."""
    root = Path("/sys/fs/cgroup")
    for parent, *files in (
        (root / "memory", "memory.usage_in_bytes", "memory.limit_in_bytes"),
        (root, "memory.current", "memory.max"),
    ):
        group = parent / f"convoy-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / files[1]).exists():
            break
        group.rmdir()
    else:
        pytest.skip("cannot create a memory cgroup")
    yield group, group / files[0], group / files[1]
    group.rmdir()


@pytest.mark.slow
def test_worker_killed_by_the_oom_killer_is_reported_with_its_image(tmp_path, memory_group, wait_until):
    group, usage, limit = memory_group
    for number in range(12):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6000, 6000), (number, 0, 0)).save(path)
    flags = (f"--images={tmp_path}/photos", f"--output={tmp_path}/data", "--shards=2", "--workers=2", "--image_size=32")
    with open(tmp_path / "errors", "w") as file:
        process = start(*flags, "--validation_fraction=0", file=file)
        (group / "cgroup.procs").write_text(str(process.pid))
        wait_until(lambda: process.poll() is not None or list(tmp_path.glob("data.partial/dataset/*.tmp")), "work", 240)
        limit.write_text(str(int(usage.read_text()) + 50_000_000))  # a decoded image is 108 MB
        assert process.wait(240) == 3
    errors_text = (tmp_path / "errors").read_text()
    assert re.search(r"SIGKILL.*memory.* [ab]/\d+\.png\b.*--workers=1", errors_text)
    wait_until(lambda: not (group / "cgroup.procs").read_text(), "the end of the processes", 120)


def test_interrupt_while_workers_start_prints_one_line(tmp_path):
    images = draw_classes(tmp_path / "photos", {"a": 4, "b": 4})
    process = start(f"--images={images}", f"--output={tmp_path}/data", "--workers=2")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("data.partial")):  # workers are importing TensorFlow now
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert output == "" and len(errors.splitlines()) == 1 and "interrupted" in errors
    assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_failure_while_adding_a_split_is_rolled_back(tmp_path, photos, monkeypatch):
    data = tmp_path / "data"
    convert(Options(photos, data))
    before = contents(data)
    test = draw_classes(tmp_path / "test", {"mug": 3}, first=500)
    replace = os.replace

    def full_disk(source, target):
        if Path(target) == data / "dataset_info.json":
            monkeypatch.setattr(os, "replace", replace)
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(DataError, match="No space left on device"):
        convert(Options(test, data, split="test"))
    after = contents(data)
    assert {name: after[name] for name in before} == before
    assert {name.partition("/")[0] for name in after.keys() - before.keys()} == {"test.partial"}


def test_validation_split_needs_images(tmp_path):
    draw_classes(tmp_path / "photos", {"a": 1, "b": 1})
    with pytest.raises(DataError, match="2 images .* --validation_fraction=0"):
        convert(Options(tmp_path / "photos", tmp_path / "data"))
    with pytest.raises(UsageError, match="--split=validation .*--validation_fraction"):
        convert(Options(tmp_path / "photos", tmp_path / "data", split="validation", validation_fraction=0.1))
