"""Conversion of unusual files: odd names, dangling links, pipes, and other contents with image extensions."""

import json
import os
import socket
from pathlib import Path

import pytest

from convoy.core.errors import DataError
from convoy.input_pipeline.convert.convert import Options, convert
from convoy.input_pipeline.convert.sources import Table, list_sources
from convoy.input_pipeline.dataset.open import open_dataset
from tests.input_pipeline.conversions import examples
from tests.input_pipeline.images import draw, draw_classes
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
    """Converts without a validation split and without a limit of bad images; returns the summary and {path: reason}."""
    output = photos.parent / "data"
    summary = convert(Options(photos, output, validation_fraction=0, max_bad_fraction=1, workers=1, **options))
    lines = (output / "quarantine.jsonl").read_text().splitlines()
    return summary, {entry["path"]: entry["reason"] for entry in map(json.loads, lines)}


def test_any_file_name(photos, tmp_path):
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


def test_any_file_name_in_a_csv(photos, tmp_path):
    quoted = [name.replace('"', '""') for name in ODD_NAMES]
    for number, name in enumerate(ODD_NAMES):
        draw(photos / "mug" / name, 100 + number)
    rows = "".join(f'"{name}",odd\r\n' for name in quoted)
    (tmp_path / "odd.csv").write_bytes(f"filename,category\r\n{rows}".encode())
    summary, left_out = converted(photos, table=Table(tmp_path / "odd.csv"))
    assert len(left_out) == 12 and all("odd.csv" in reason for reason in left_out.values())
    assert summary.splits[0].images == len(ODD_NAMES) and summary.ignored == 12


def test_any_one_line_class_name(tmp_path):
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


def test_dangling_links_are_left_out_with_a_reason(photos):
    (photos / "mug" / "dangling.jpg").symlink_to(photos / "gone.jpg")
    (photos / "mug" / "itself.jpg").symlink_to("itself.jpg")
    (photos / "mug" / "one.jpg").symlink_to("two.jpg")
    (photos / "mug" / "two.jpg").symlink_to("one.jpg")
    (photos / "round").symlink_to("round")
    summary, left_out = converted(photos)
    assert left_out.keys() == {f"mug/{name}.jpg" for name in ("dangling", "itself", "one", "two")}
    assert "no such file" in left_out.pop("mug/dangling.jpg")
    assert all("symbolic links" in reason for reason in left_out.values())
    assert summary.splits[0].images == 12 and summary.ignored == 1


def test_folder_that_contains_itself_is_read_once(photos):
    (photos / "mug" / "again").symlink_to(photos / "mug", target_is_directory=True)
    (photos / "mug" / "up").symlink_to("..", target_is_directory=True)
    summary, left_out = converted(photos)
    assert left_out == {} and summary.splits[0].images == 12


@pytest.mark.timeout(120)
def test_pipes_and_sockets_with_image_extensions_are_not_opened(photos, tmp_path, monkeypatch):
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


def test_folder_with_an_image_extension_is_a_folder(photos):
    draw(photos / "mug" / "album.jpg" / "inside.jpg", 70)
    (photos / "mug" / "empty.jpg").mkdir()
    summary, left_out = converted(photos)
    assert left_out == {} and summary.splits[0].images == 13


def test_unreadable_files_are_named(photos):
    (photos / "mug" / "mug_000.jpg").chmod(0)
    if os.access(photos / "mug" / "mug_000.jpg", os.R_OK):
        pytest.skip("this user can read everything")
    _, left_out = converted(photos)
    assert left_out.keys() == {"mug/mug_000.jpg"} and "permission" in left_out["mug/mug_000.jpg"]
    (photos / "mug").chmod(0)
    try:
        with pytest.raises(DataError, match="mug"):
            list_sources(photos)
    finally:
        (photos / "mug").chmod(0o700)


def test_other_contents_are_left_out_with_a_reason(photos):
    jpeg = ZOO["jpeg, baseline"].data
    files = {
        "blocked.jpg": (b"<!DOCTYPE html><html>", "HTML"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        "empty.png": (b"", "empty"),
        "film.webp": (b"\0\0\0\x18ftypmp42", "video"),
        "phone.jpg": (b"\0\0\0\x18ftypheic", "HEIC"),
        "zeros.gif": (bytes(4096), "zero bytes"),
    }
    for name, (data, _) in files.items():
        (photos / "mug" / name).write_bytes(data)
    with open(photos / "mug" / "huge.jpg", "wb") as file:
        file.truncate(5 * 2**30)  # sparse
    (photos / "mug" / "Thumbs.db").write_bytes(b"stray")
    summary, left_out = converted(photos)
    nouns = {f"mug/{name}": noun for name, (_, noun) in files.items()}
    nouns |= {"mug/huge.jpg": "5,368,709,120", "mug/Thumbs.db": "name"}
    assert left_out.keys() == nouns.keys()
    assert all(noun in left_out[path] for path, noun in nouns.items()), left_out
    assert summary.quarantined == len(files) + 1 and summary.ignored == 1


def test_every_kind_of_image_is_converted_with_any_suffix(tmp_path):
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
