"""Conversion of an iterable of (bytes, category): the records of files with the same bytes."""

import json
from pathlib import Path

import pytest

from convoy.core.errors import DataError, UsageError
from convoy.input_pipeline.convert import convert as conversion
from convoy.input_pipeline.convert.options import Options
from convoy.input_pipeline.convert.sources import Table
from convoy.input_pipeline.convert.stream import spooled
from convoy.input_pipeline.dataset.open import open_dataset
from tests.input_pipeline.conversions import assert_rejected, contents, examples, quarantined
from tests.input_pipeline.datasets import encode
from tests.input_pipeline.images import pixels

KINDS = ("cup", "jar")


def photos(number=20):
    for i in range(number):
        yield encode(pixels(i), "png" if i % 3 else "jpeg"), KINDS[i % 2]


def listing_of(images, output):
    return lambda: spooled(images, name="photos", output=output)


def convert(output, images, workers=1, **options):
    return conversion.convert(
        Options(Path("photos"), output, listing=listing_of(images, output), workers=workers, **options)
    )


def test_records_are_those_of_files_named_after_their_position(tmp_path):
    folder, rows = tmp_path / "files", ["filename,category"]
    folder.mkdir()
    for i, (data, category) in enumerate(photos()):
        (folder / f"{i:08d}").write_bytes(data)
        rows.append(f"{i:08d},{category}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    shares = {"splits": {"train": 0.6, "test": 0.4}}
    conversion.convert(Options(folder, tmp_path / "a" / "data", Table(tmp_path / "table.csv"), workers=1, **shares))
    summary = convert(tmp_path / "b" / "data", photos(), workers=2, **shares)
    assert contents(tmp_path / "a" / "data") == contents(tmp_path / "b" / "data")
    assert [(split.name, split.images) for split in summary.splits] == [("train", 12), ("test", 8)]
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["data"]


def test_a_generator_is_read_once(tmp_path):
    taken = []

    def images():
        for i, image in enumerate(photos(12)):
            taken.append(i)
            yield image

    convert(tmp_path / "data", images(), validation_fraction=0)
    assert taken == list(range(12))
    assert sorted(examples(tmp_path / "data")) == [f"{i:08d}" for i in range(12)]


def test_corrupt_and_repeated_images_are_left_out_by_position(tmp_path):
    images = [*photos(8), (b"no image", "cup"), next(photos()), (b"", "jar")]
    summary = convert(tmp_path / "data", images, validation_fraction=0, max_bad_fraction=0.5)
    assert (summary.quarantined, summary.duplicates) == (2, 1)
    assert {path for path, _ in quarantined(tmp_path / "data")} == {"00000008", "00000009", "00000010"}
    assert ("00000009", "same bytes as 00000000") in quarantined(tmp_path / "data")


def test_a_later_split_leaves_out_images_of_the_first(tmp_path):
    convert(tmp_path / "data", photos(8), validation_fraction=0)
    summary = convert(tmp_path / "data", list(photos(12)), split="test")
    assert summary.leaked == 8 and open_dataset(tmp_path / "data").split("test").num_images == 4


def failing(number=3):
    yield from photos(number)
    raise ValueError("no more film")


@pytest.mark.parametrize(
    ("images", "named"),
    [
        ([], "no images"),
        ([*photos(2), (b"x", 3)], "image 2 is bytes, int"),
        ([b"x"], "image 0 is bytes"),
        ([(1,)], "image 0 is int"),
        ([*photos(2), ("name.jpg", "cup")], "image 2 is str, str"),
        (failing(), "image 3: ValueError: no more film"),
        ([*photos(2), (b"x", "a\nb")], "line break"),
    ],
)
def test_iterables_that_cannot_be_converted_leave_nothing(tmp_path, images, named):
    with pytest.raises(DataError) as caught:
        convert(tmp_path / "data", images)
    assert named in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_options_are_checked_before_the_first_image(tmp_path):
    def images():
        raise AssertionError
        yield

    with pytest.raises(UsageError):
        convert(tmp_path / "data", images(), image_size=-1)


def test_a_failed_conversion_resumes_with_the_same_images_only(tmp_path, monkeypatch):
    lines = []

    def attempt(images):
        listing = listing_of(images, tmp_path / "data")
        options = Options(
            Path("photos"), tmp_path / "data", listing=listing, workers=1, validation_fraction=0, shards=2
        )
        return conversion.convert(options, log=lines.append)

    with monkeypatch.context() as patch:
        patch.setattr(conversion.publish, "publish", lambda *_: 1 / 0)
        for images in (photos(8), [*photos(7), (encode(pixels(99), "png"), "jar")]):
            with pytest.raises(ZeroDivisionError):
                attempt(images)
    attempt(photos(8))
    reused = [line for line in lines if "reusing" in line]
    assert len(reused) == 2 and all("outdated" in line for line in reused)
    attempt_again = {name: data for name, data in contents(tmp_path / "data").items() if ".tfrecord" in name}
    convert(tmp_path / "b" / "data", photos(8), validation_fraction=0, shards=2)
    assert attempt_again.items() <= contents(tmp_path / "b" / "data").items()


def test_the_command_takes_a_function_of_a_file(tmp_path, capsys, monkeypatch):
    file = tmp_path / "camera.py"
    file.write_text("from tests.input_pipeline.test_convert_stream import photos\nnumber = 3\n")
    flags = (f"--output={tmp_path / 'data'}", "--workers=1", "--validation_fraction=0")
    from convoy import cli

    assert cli.main(["convoy", "convert", f"--images={file}:photos", *flags]) == 0
    assert "20 images" in capsys.readouterr().out
    assert json.loads((tmp_path / "data" / "manifest.json").read_text())["class_names"] == list(KINDS)
    assert_rejected(capsys, "'photos'", f"--images={file}:fotos", *flags, code=2)
    assert_rejected(capsys, "iterable", f"--images={file}:number", *flags, code=2)
    assert_rejected(capsys, "--manifest=x.csv", f"--images={file}:photos", "--manifest=x.csv", *flags, code=2)
