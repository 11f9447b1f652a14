"""Working folder, locking and publishing of a conversion."""

import json
import os

import pytest

from convoy.core.errors import DataError, UsageError
from convoy.input_pipeline.convert import plan, publish
from convoy.input_pipeline.convert.convert import Options, convert
from convoy.input_pipeline.dataset.open import open_dataset
from tests.input_pipeline.images import draw_classes

BUSY = "--output=.*another conversion"


@pytest.fixture
def photos(tmp_path):
    return draw_classes(tmp_path / "photos", {"03": 6, "mug": 8})


@pytest.fixture
def data(tmp_path, photos):
    convert(Options(photos, tmp_path / "data", validation_fraction=0))
    return tmp_path / "data"


@pytest.fixture
def more_photos(tmp_path):
    return draw_classes(tmp_path / "more_photos", {"03": 5, "mug": 5}, first=700)


def test_two_conversions_cannot_write_one_new_dataset(tmp_path, photos):
    with publish.working_directory(tmp_path / "data", "train"), pytest.raises(UsageError, match=BUSY):
        convert(Options(photos, tmp_path / "data"))
    convert(Options(photos, tmp_path / "data"))


def test_two_conversions_cannot_add_splits_at_the_same_time(data, more_photos):
    with publish.working_directory(data, "test"), pytest.raises(UsageError, match=BUSY):
        convert(Options(more_photos, data, split="holdout"))
    assert not list(data.glob("*.partial"))
    convert(Options(more_photos, data, split="holdout"))
    assert open_dataset(data).splits == ("holdout", "train")


def test_split_added_while_another_is_planned_is_not_lost(data, more_photos, tmp_path, monkeypatch):
    more = draw_classes(tmp_path / "more", {"mug": 4}, first=900)
    find_known = plan.find_known

    def find_after_another(*arguments):
        monkeypatch.undo()
        convert(Options(more, data, split="test"))
        return find_known(*arguments)

    monkeypatch.setattr(plan, "find_known", find_after_another)
    with pytest.raises(UsageError, match="--output=.*changed"):
        convert(Options(more_photos, data, split="holdout"))
    convert(Options(more_photos, data, split="holdout"))
    assert open_dataset(data).splits == ("holdout", "test", "train")


def test_user_folder_with_the_name_of_the_working_folder_is_not_touched(tmp_path, photos):
    own = tmp_path / "data.partial"
    own.mkdir()
    (own / "notes.txt").write_text("text")
    with pytest.raises(UsageError, match=r"data\.partial"):
        convert(Options(photos, tmp_path / "data"))
    assert (own / "notes.txt").read_text() == "text"


def test_empty_output_folder_is_used_and_a_link_is_rejected(tmp_path, photos):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with pytest.raises(UsageError, match=r"--output=.*/link .*--output=.*/data"):
        convert(Options(photos, tmp_path / "link"))
    convert(Options(photos, tmp_path / "data"))
    convert(Options(draw_classes(tmp_path / "test", {"mug": 3}, first=500), tmp_path / "link", split="test"))
    assert "test" in open_dataset(tmp_path / "data").splits


def test_quarantine_of_other_splits_is_kept_and_a_damaged_file_is_an_error(data, more_photos, photos):
    listed = data / "quarantine.jsonl"
    line = {"split": "train", "path": "a", "category": "mug", "reason": "empty"}
    listed.write_text(json.dumps(line) + "\n" + json.dumps({**line, "split": "gone"}) + "\n")
    convert(Options(more_photos, data, split="holdout"))
    assert listed.read_text() == json.dumps(line) + "\n"
    listed.write_text('{"split": "tr')
    with pytest.raises(DataError, match=r"quarantine\.jsonl"):
        convert(Options(photos, data, split="again"))


def test_missing_sidecar_of_an_earlier_split_is_logged(data, photos):
    os.truncate(data / "images-train.npz", 100)
    logged = []
    convert(Options(photos, data, split="test"), log=logged.append)
    (line,) = logged
    assert "images-train.npz" in line and "'train'" in line
    assert open_dataset(data).split("test").num_images == 14
