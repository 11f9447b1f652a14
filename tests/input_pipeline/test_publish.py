"""Where a conversion works: alone, in a folder of its own, and at a dataset that stays as it was found."""

import json
import os

import pytest

from convoy import cli
from convoy.core.errors import DataError, UsageError
from convoy.input_pipeline.convert import convert as conversion
from convoy.input_pipeline.convert import publish
from convoy.input_pipeline.convert.convert import Options, convert
from convoy.input_pipeline.dataset.open import open_dataset
from tests.input_pipeline.images import draw_classes

BUSY = "another conversion is writing it .* Wait for its end"


@pytest.fixture
def photos(tmp_path):
    return draw_classes(tmp_path / "photos", {"03": 6, "mug": 8})


@pytest.fixture
def data(tmp_path, photos):
    convert(Options(photos, tmp_path / "data", validation_fraction=0))
    return tmp_path / "data"


@pytest.fixture
def others(tmp_path):
    return draw_classes(tmp_path / "others", {"03": 5, "mug": 5}, first=700)


def test_two_conversions_do_not_make_one_dataset(tmp_path, photos):
    with publish.working_directory(tmp_path / "data", "train"), pytest.raises(UsageError, match=BUSY):
        convert(Options(photos, tmp_path / "data"))
    convert(Options(photos, tmp_path / "data"))


def test_two_conversions_do_not_add_splits_to_one_dataset_at_a_time(data, others):
    with publish.working_directory(data, "test"), pytest.raises(UsageError, match=BUSY):
        convert(Options(others, data, split="holdout"))
    assert not list(data.glob("*.partial"))
    convert(Options(others, data, split="holdout"))
    assert open_dataset(data).splits == ("holdout", "train")


def test_a_split_that_came_in_while_another_was_planned_is_not_lost(data, others, tmp_path, monkeypatch):
    more = draw_classes(tmp_path / "more", {"mug": 4}, first=900)
    plan = conversion._plan

    def overtaken(*arguments):
        monkeypatch.undo()
        convert(Options(more, data, split="test"))
        return plan(*arguments)

    monkeypatch.setattr(conversion, "_plan", overtaken)
    with pytest.raises(UsageError, match="has changed meanwhile: start the same command again"):
        convert(Options(others, data, split="holdout"))
    convert(Options(others, data, split="holdout"))
    assert open_dataset(data).splits == ("holdout", "test", "train")


def test_a_folder_of_the_working_folder_s_name_that_is_someone_s_is_not_touched(tmp_path, photos):
    own = tmp_path / "data.partial"
    own.mkdir()
    (own / "thesis.txt").write_text("all of it")
    with pytest.raises(UsageError, match=r"data\.partial is where the conversion would work, and holds what no"):
        convert(Options(photos, tmp_path / "data"))
    assert (own / "thesis.txt").read_text() == "all of it"


def test_an_output_that_is_an_empty_folder_is_used_and_a_link_to_one_is_named(tmp_path, photos):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with pytest.raises(UsageError, match=r"link is a link to .*/data: name that folder itself"):
        convert(Options(photos, tmp_path / "link"))
    convert(Options(photos, tmp_path / "data"))
    convert(Options(draw_classes(tmp_path / "test", {"mug": 3}, first=500), tmp_path / "link", split="test"))
    assert "test" in open_dataset(tmp_path / "data").splits


def test_what_other_splits_left_out_stays_listed_and_a_damaged_list_is_named(data, others, photos):
    listed = data / "quarantine.jsonl"
    line = {"split": "train", "path": "a", "category": "mug", "reason": "empty"}
    listed.write_text(json.dumps(line) + "\n" + json.dumps({**line, "split": "gone"}) + "\n")
    convert(Options(others, data, split="holdout"))
    assert listed.read_text() == json.dumps(line) + "\n"
    listed.write_text('{"split": "tr')
    with pytest.raises(DataError, match=r"quarantine\.jsonl cannot be read"):
        convert(Options(photos, data, split="again"))


def test_where_an_earlier_split_s_images_are_not_known_that_is_said(data, photos):
    os.truncate(data / "images-train.npz", 100)
    said = []
    convert(Options(photos, data, split="test"), say=said.append)
    (line,) = said
    assert "images-train.npz is missing or damaged: images that split 'train' has too are not found" in line
    assert open_dataset(data).split("test").num_images == 14


@pytest.mark.parametrize("flag", ["images", "output"])
def test_a_bucket_is_neither_read_nor_written(tmp_path, flag, capsys):
    flags = {"images": str(tmp_path), "output": str(tmp_path / "data"), flag: "gs://bucket/x"}
    assert cli.main(["convoy", "convert", *(f"--{name}={value}" for name, value in flags.items())]) == 2
    assert f"--{flag}=gs://bucket/x: convert reads and writes folders of this machine" in capsys.readouterr().err
