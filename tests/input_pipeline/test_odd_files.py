"""Files and folders as people have them: odd names, links that lead nowhere, pipes, other things under image names."""

import json
import os
import socket
from pathlib import Path

import pytest

from convoy.core.errors import DataError
from convoy.input_pipeline.convert.convert import Options, convert
from convoy.input_pipeline.convert.sources import Table, list_sources
from convoy.input_pipeline.dataset.open import open_dataset
from tests.input_pipeline.images import draw, draw_classes
from tests.input_pipeline.test_convert import examples
from tests.input_pipeline.zoo import ZOO

ODD_NAMES = (
    "ünï çødé 猫 🐈.jpg",
    "e\u0301 as two characters.jpg",
    "a b\tc.jpg",
    "line\nbreak.jpg",
    "quote\"'`$(touch x);&|.jpg",
    "-rf.jpg",
    "%s %d {} \\n.jpg",
    "a" * 251 + ".jpg",
    "many.dots...jpg",
    "CAPITALS.JPG",
    "<script>alert(1)<!--.png",
    " leading and trailing .png",
)


@pytest.fixture
def photos(tmp_path):
    return draw_classes(tmp_path / "photos", {"cup": 6, "mug": 6})


def converted(photos: Path, **options):
    """Converts without a validation split, allowing all to be bad; returns the summary and {path: reason}."""
    output = photos.parent / "data"
    summary = convert(Options(photos, output, validation_fraction=0, max_bad_fraction=1, workers=1, **options))
    lines = (output / "quarantine.jsonl").read_text().splitlines()
    return summary, {entry["path"]: entry["reason"] for entry in map(json.loads, lines)}


def test_a_file_s_name_may_be_anything(photos, tmp_path):
    for number, name in enumerate(ODD_NAMES):
        draw(photos / "mug" / name, 100 + number)
    os.replace(draw(photos / "mug" / "plain.jpg", 99), os.fsencode(photos / "mug") + b"/not \xff utf-8.jpg")
    summary, left_out = converted(photos)
    assert left_out == {} and summary.quarantined == summary.ignored == 0
    data = tmp_path / "data"
    assert open_dataset(data).split("train").num_images == 12 + len(ODD_NAMES) + 1
    (photos / "mug" / os.fsdecode(b"not \xff utf-8.jpg")).unlink()  # `examples` reads names as UTF-8
    convert(Options(photos, tmp_path / "again", validation_fraction=0, workers=1))
    assert {f"mug/{name}" for name in ODD_NAMES} <= set(examples(tmp_path / "again"))


def test_odd_names_come_through_a_csv(photos, tmp_path):
    quoted = [name.replace('"', '""') for name in ODD_NAMES]
    for number, name in enumerate(ODD_NAMES):
        draw(photos / "mug" / name, 100 + number)
    rows = "".join(f'"{name}",odd\r\n' for name in quoted)
    (tmp_path / "odd.csv").write_bytes(f"filename,category\r\n{rows}".encode())
    summary, left_out = converted(photos, table=Table(tmp_path / "odd.csv"))
    assert set(left_out.values()) == {"not named by odd.csv"}
    assert summary.splits[0].images == len(ODD_NAMES) and summary.ignored == 12


def test_a_class_may_be_named_by_any_text_of_one_line(tmp_path):
    names = ["猫 🐈", "a b", "$(x)", "x" * 240, "-", "%s"]
    photos = draw_classes(tmp_path / "photos", dict.fromkeys(names, 2))
    draw_classes(photos, {".hidden": 2})
    summary, _ = converted(photos)
    assert {one.name for one in summary.classes} == set(names)
    (photos / "two\nlines").mkdir()
    with pytest.raises(DataError, match="line break"):
        list_sources(photos)


def test_links_to_images_and_class_folders_are_followed(photos, tmp_path):
    outside = draw(tmp_path / "outside" / "image.jpg", 50)
    (photos / "mug" / "link.jpg").symlink_to(outside)
    (photos / "jug").symlink_to(draw_classes(tmp_path / "more", {"jug": 2}, first=60) / "jug")
    summary, left_out = converted(photos)
    assert (
        left_out == {}
        and [one.name for one in summary.classes] == ["cup", "jug", "mug"]
        and summary.splits[0].images == 15
    )


def test_links_that_lead_nowhere_are_left_out_and_named(photos):
    (photos / "mug" / "dangling.jpg").symlink_to(photos / "gone.jpg")
    (photos / "mug" / "itself.jpg").symlink_to("itself.jpg")
    (photos / "mug" / "one.jpg").symlink_to("two.jpg")
    (photos / "mug" / "two.jpg").symlink_to("one.jpg")
    (photos / "round").symlink_to("round")
    summary, left_out = converted(photos)
    loop = "not readable: too many levels of symbolic links"
    assert left_out == {
        "mug/dangling.jpg": "not readable: no such file or directory",
        "mug/itself.jpg": loop,
        "mug/one.jpg": loop,
        "mug/two.jpg": loop,
    }
    assert summary.splits[0].images == 12 and summary.ignored == 1


def test_a_folder_that_contains_itself_is_walked_once(photos):
    (photos / "mug" / "again").symlink_to(photos / "mug", target_is_directory=True)
    (photos / "mug" / "up").symlink_to("..", target_is_directory=True)
    summary, left_out = converted(photos)
    assert left_out == {} and summary.splits[0].images == 12


@pytest.mark.timeout(120)
def test_pipes_and_sockets_under_image_names_are_not_opened(photos, tmp_path, monkeypatch):
    os.mkfifo(photos / "mug" / "pipe.jpg")
    (photos / "mug" / "link to pipe.jpg").symlink_to("pipe.jpg")
    (photos / "mug" / "endless.jpg").symlink_to("/dev/zero")
    monkeypatch.chdir(photos / "mug")  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jpg")
        summary, left_out = converted(photos)
    assert left_out == {} and summary.splits[0].images == 12
    (tmp_path / "pipe.csv").write_text("filename,category\npipe.jpg,a\n")
    with pytest.raises(DataError, match="'pipe.jpg'"):
        list_sources(photos, Table(tmp_path / "pipe.csv"))


def test_a_folder_under_an_image_s_name_is_a_folder(photos):
    draw(photos / "mug" / "album.jpg" / "inside.jpg", 70)
    (photos / "mug" / "empty.jpg").mkdir()
    summary, left_out = converted(photos)
    assert left_out == {} and summary.splits[0].images == 13


def test_what_may_not_be_read_is_named(photos):
    (photos / "mug" / "mug_000.jpg").chmod(0)
    if os.access(photos / "mug" / "mug_000.jpg", os.R_OK):
        pytest.skip("who runs this reads everything")
    _, left_out = converted(photos)
    assert left_out == {"mug/mug_000.jpg": "not readable: permission denied"}
    (photos / "mug").chmod(0)
    try:
        with pytest.raises(DataError, match="mug cannot be read"):
            list_sources(photos)
    finally:
        (photos / "mug").chmod(0o700)


def test_what_a_scraper_leaves_behind_is_left_out_and_each_is_told_why(photos):
    jpeg = ZOO["jpeg, baseline"].data
    things = {
        "blocked.jpg": (b"<!DOCTYPE html><html>", "HTML, not an image"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG, a drawing without pixels: save it as PNG"),
        "empty.png": (b"", "the file is empty"),
        "film.webp": (b"\0\0\0\x18ftypmp42", "a video, not an image"),
        "phone.jpg": (b"\0\0\0\x18ftypheic", "HEIC, which Pillow cannot read: save it as JPEG"),
        "zeros.gif": (bytes(4096), "zero bytes, not an image"),
    }
    for name, (data, _) in things.items():
        (photos / "mug" / name).write_bytes(data)
    with open(photos / "mug" / "huge.jpg", "wb") as file:
        file.truncate(5 * 2**30)  # of no size on the disk
    (photos / "mug" / "Thumbs.db").write_bytes(b"stray")
    summary, left_out = converted(photos)
    assert left_out == {
        **{f"mug/{name}": reason for name, (_, reason) in things.items()},
        "mug/huge.jpg": "the file has 5,368,709,120 bytes; the limit is 1,073,741,824",
        "mug/Thumbs.db": "not an image by its name",
    }
    assert summary.quarantined == len(things) + 1 and summary.ignored == 1


def test_every_kind_of_image_is_converted_whatever_its_suffix(tmp_path):
    for number, (name, kind) in enumerate(ZOO.items()):
        path = tmp_path / "photos" / "all" / f"{number:03d} {name.replace('/', ' ')}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(kind.data)
    summary, left_out = converted(tmp_path / "photos")
    assert set(left_out.values()) <= {reason for reason in left_out.values() if reason.startswith("same bytes as")}
    found = examples(tmp_path / "data")
    assert len(found) == summary.splits[0].images == len(ZOO) - summary.duplicates
    for name, example in found.items():
        kind = list(ZOO.values())[int(name.removeprefix("all/")[:3])]
        assert example["image/format"].decode() == kind.image_format
        assert (example["image/height"], example["image/width"]) == kind.shown.shape[:2]
        assert (example["image/encoded"] == kind.data) == kind.passes
