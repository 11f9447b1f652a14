"""`convoy convert --dry_run`: the numbers of the conversion that follows, and nothing on disk."""

import dataclasses

import pytest

import convoy
from convoy import cli
from tests.input_pipeline.conversions import contents, quarantined
from tests.input_pipeline.datasets import encode
from tests.input_pipeline.images import draw_classes, pixels


@pytest.fixture
def photos(tmp_path):
    """Two splits with a duplicate, an image of the other split, a damaged image and a file that is not one."""
    folder = draw_classes(tmp_path / "photos" / "train", {"cup": 12, "jar": 12})
    draw_classes(tmp_path / "photos" / "test", {"cup": 3, "jar": 3}, first=50)
    (folder / "cup" / "copy.jpg").write_bytes((folder / "cup" / "cup_000.jpg").read_bytes())
    (folder.parent / "test" / "jar" / "seen.jpg").write_bytes((folder / "jar" / "jar_001.jpg").read_bytes())
    (folder / "jar" / "cut.jpg").write_bytes((folder / "jar" / "jar_002.jpg").read_bytes()[:200])
    (folder / "jar" / "notes.txt").write_text("no image")
    return folder.parent


def folder_of_splits(photos):
    return {"images": photos}


def similar_images_together(photos):
    return {"images": photos / "train", "group_similar": True, "splits": {"train": 0.7, "validation": 0.3}}


def table(photos):
    rows = [f"{path.relative_to(photos)},{path.parent.name}" for path in sorted(photos.glob("train/*/*.jpg"))]
    (photos / "train.csv").write_text("\n".join(["filename,category", *rows, "gone.jpg,cup"]))
    return {"images": photos, "manifest": photos / "train.csv", "missing": "skip"}


def iterable(photos):
    return {"images": [(encode(pixels(i), "png"), "cup" if i % 2 else "jar") for i in (*range(8), 0)]}


def records(photos):
    from tests.input_pipeline.test_tfds_sources import write_records

    write_records(photos / "records" / "train-1", range(12))
    write_records(photos / "records" / "test-1", range(10, 14))
    return {"tfrecords": photos / "records", "image_key": "jpg", "label_key": "cls"}


def later_split(photos):
    convoy.convert(photos / "train", output=photos.parent / "more" / "data", workers=1, max_bad_fraction=0.5)
    return {"images": photos / "test", "split": "test"}


@pytest.mark.parametrize(
    "source",
    [folder_of_splits, similar_images_together, table, iterable, records, later_split],
    ids=lambda f: f.__name__,
)
def test_it_counts_what_the_conversion_does_and_writes_nothing(tmp_path, photos, source, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = {**source(photos), "output": tmp_path / "more" / "data", "workers": 1, "max_bad_fraction": 0.5}
    before = contents(tmp_path), sorted(tmp_path.rglob("*"))
    planned = convoy.convert(**arguments, dry_run=True)
    assert (contents(tmp_path), sorted(tmp_path.rglob("*"))) == before
    written = convoy.convert(**arguments)
    assert dataclasses.asdict(planned) == dataclasses.asdict(written)
    assert sum(split.images for split in planned.splits) > 0
    assert {(entry.path, entry.reason) for entry in planned.left_out} <= quarantined(tmp_path / "more" / "data")


def test_the_command_lists_classes_and_what_is_left_out(tmp_path, photos, capsys):
    flags = [f"--images={photos}", f"--output={tmp_path / 'data'}", "--workers=1", "--max_bad_fraction=0.5"]
    assert cli.main(["convoy", "convert", *flags, "--dry_run"]) == 0
    before_decoding, _, after = capsys.readouterr().out.partition("Decoding")
    assert "train: 22 images of 2 classes" in before_decoding
    assert "2 duplicates" in before_decoding and "quarantined" not in before_decoding
    assert "1 quarantined" in after
    for name in ("train/cup/copy.jpg", "test/jar/seen.jpg", "train/jar/cut.jpg", "train/jar/notes.txt"):
        assert name in after
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_it_fails_where_the_conversion_would(tmp_path, photos, capsys):
    flags = [f"--images={photos}", f"--output={tmp_path / 'data'}", "--workers=1", "--dry_run"]
    assert cli.main(["convoy", "convert", *flags]) == 3
    assert "cut.jpg" in capsys.readouterr().err
    assert cli.main(["convoy", "convert", *flags, "--image_size=-1"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
