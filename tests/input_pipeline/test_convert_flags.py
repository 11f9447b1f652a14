"""Flags of `convoy convert` that are rejected, and its summary."""

import re
import resource
import subprocess
import sys

import pytest

from convoy import cli
from convoy.cli.convert import class_summary
from convoy.core.errors import DataError, UsageError
from convoy.input_pipeline.convert.convert import Options, convert
from convoy.input_pipeline.convert.summary import ClassSummary, SplitSummary, Summary
from tests.input_pipeline.conversions import ROOT, assert_rejected, contents
from tests.input_pipeline.images import draw_classes


@pytest.fixture
def photos(tmp_path):
    return draw_classes(tmp_path / "photos", {"03": 6, "mug": 8})


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
        (["--splits=a:0.5,A:0.5"], "'A:0.5'"),
        (["--split=Validation", "--validation_fraction=0.5"], "--split=Validation"),
        (["--splits=a b:1"], "--split=a b"),
        (["--splits=a:1", "--split=b"], "--split "),
    ],
)
def test_invalid_splits_are_rejected(tmp_path, photos, capsys, flags, named):
    assert_rejected(capsys, named, f"--images={photos}", f"--output={tmp_path}/data", *flags, code=2)


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


@pytest.mark.parametrize("source", ["images", "parquet", "tar", "tfds", "tfrecords", "imagenet", "manifest"])
def test_a_source_given_twice_is_rejected(tmp_path, capsys, source):
    flags = (f"--{source}={tmp_path}/a", f"--output={tmp_path}/data")
    assert_rejected(capsys, f"--{source}={tmp_path}/b", *flags, f"--{source}", f"{tmp_path}/b", code=2)
    several = {"tar": "{a,b}.tar", "parquet": "{a,b}.parquet"}.get(source, "Pass one of them")
    assert_rejected(capsys, several, *flags, f"--{source}=b", code=2)
    parsed, _ = cli.parse("convert", [*flags, flags[0]])
    assert parsed[source].value == f"{tmp_path}/a"


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


def test_output_that_is_not_a_dataset_is_not_touched(tmp_path, photos, capsys):
    before = contents(tmp_path)
    assert_rejected(capsys, "manifest.json", f"--images={photos}", f"--output={photos}", code=2)
    assert contents(tmp_path) == before


def test_images_that_cannot_be_listed_exit_with_3(tmp_path, capsys):
    assert_rejected(capsys, f"{tmp_path}/none", f"--images={tmp_path}/none", f"--output={tmp_path}/data", code=3)
    assert list(tmp_path.iterdir()) == []


def test_help_is_fast():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "convoy", "convert", "--help"], cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5  # 0.2 s on an idle machine


def test_validation_split_needs_images(tmp_path):
    draw_classes(tmp_path / "photos", {"a": 1, "b": 1})
    with pytest.raises(DataError, match="2 images .* --validation_fraction=0"):
        convert(Options(tmp_path / "photos", tmp_path / "data"))
    with pytest.raises(UsageError, match="--split=validation .*--validation_fraction"):
        convert(Options(tmp_path / "photos", tmp_path / "data", split="validation", validation_fraction=0.1))
