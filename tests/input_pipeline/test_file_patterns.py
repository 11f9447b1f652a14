"""Which files a pattern names, and which splits."""

import pytest

from convoy.core.errors import DataError, UsageError
from convoy.input_pipeline.convert.file_patterns import find_files


def found(pattern):
    return [(file.name, file.split) for file in find_files(str(pattern), flag="tar", suffixes=(".tar", ".tgz"))]


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("s-{000..002}.tar", ["s-000.tar", "s-001.tar", "s-002.tar"]),
        ("s-{001..001}.tar", ["s-001.tar"]),
        ("{s-000,b}.tar", ["b.tar", "s-000.tar"]),
        ("s-*.tar", ["s-000.tar", "s-001.tar", "s-002.tar"]),
        ("s-00[02].tar", ["s-000.tar", "s-002.tar"]),
        ("", ["b.tar", "more/d.tgz", "s-000.tar", "s-001.tar", "s-002.tar"]),
        ("more", ["d.tgz"]),
        ("mo*", ["more/d.tgz"]),
        ("**/d.tgz", ["more/d.tgz"]),
        ("more/d.tgz", ["d.tgz"]),
        ("odd {1}[2]*.zip", ["odd {1}[2]*.zip"]),
    ],
)
def test_files_of_a_pattern(tmp_path, pattern, names):
    make(tmp_path, "s-000.tar", "s-001.tar", "s-002.tar", "b.tar", "more/d.tgz", "more/.hidden.tar", "odd {1}[2]*.zip")
    assert found(tmp_path / pattern) == [(name, "") for name in names]


@pytest.mark.parametrize(
    ("names", "pattern", "splits"),
    [
        (["train-00000-of-00001.parquet", "test-1.parquet"], "*", {"train", "test"}),
        (["set-val-1.tar", "set-train-1.tar"], "*.tar", {"train", "validation"}),
        (["train/0000.parquet", "val/0000.parquet"], "*/*", {"train", "validation"}),
        (["default/train/0.tar", "default/test/0.tar"], "", {"train", "test"}),
        (["train/0.tar"], "train/*.tar", {""}),
    ],
)
def test_splits_are_those_of_the_names_below_the_pattern(tmp_path, names, pattern, splits):
    make(tmp_path, *(name.replace(".parquet", ".tar") for name in names))
    assert {split for _, split in found(tmp_path / pattern)} == splits


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("s-{000..003}.tar", "s-003.tar"),
        ("t-{000..003}.tar", "t-000.tar"),
        ("x*.tar", "x*.tar"),
        ("s_000.tar", "'s-000.tar'"),
        ("none/*.tar", "none"),
        ("empty", ".tgz"),
        ("part-*.tar", "shard 1 of the 3"),
        ("mixed/*.tar", "mixed/b.tar"),
    ],
)
def test_missing_files_are_named(tmp_path, pattern, named):
    make(tmp_path, "s-000.tar", "s-001.tar", "s-002.tar", "empty/x.txt", "mixed/train-1.tar", "mixed/b.tar")
    make(tmp_path, "part-00000-of-00003.tar", "part-00002-of-00003.tar")
    with pytest.raises(DataError) as caught:
        found(tmp_path / pattern)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_part_of_a_set_can_be_named(tmp_path):
    make(tmp_path, "part-00000-of-00003.tar", "part-00002-of-00003.tar")
    assert len(found(tmp_path / "part-{00000,00002}-of-00003.tar")) == 2


@pytest.mark.parametrize("pattern", ["s-{002..000}.tar", "s-{x}.tar", "{0..99999999}.tar", "{0..9999}{0..9999}.tar"])
def test_braces_that_stand_for_nothing_sensible_are_refused(tmp_path, pattern):
    with pytest.raises(UsageError, match="--tar="):
        found(tmp_path / pattern)
