from dataclasses import replace

import ml_collections
import pytest

from convoy.core.errors import DataError
from convoy.input_pipeline.dataset import records
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.trainer import config as configs
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.session.description import dataset_identity
from convoy.trainer.session.resume import check_same_run
from tests.input_pipeline.datasets import write_dataset
from tests.input_pipeline.images import pixels


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    frames = [records.frame(records.example({"image": b"x", "label": label})) for label in (0, 1, 1)]
    (folder / "train.tfrecord").write_bytes(b"".join(frames))
    return folder


@pytest.fixture
def resume_on(tmp_path):
    """Returns a function that resumes, on a dataset, a run that was started on the dataset with another identity."""
    config = ml_collections.ConfigDict(configs.default_config())

    def check(before, dataset):
        metadata = {"config": configs.to_json(config), "dataset": before, "step": 3}
        check_same_run(metadata, config, dataset, RunDirectory(tmp_path / "run"))

    return check


def test_external_dataset_may_be_moved_and_renamed(shards, resume_on):
    before = dataset_identity(open_dataset(shards))
    moved = open_dataset(shards.rename(shards.with_name("imagenet")))
    assert dataset_identity(moved) == before
    resume_on(before, moved)
    # Earlier versions also recorded a name.
    resume_on({"name": "shards", **before}, moved)


def test_another_external_dataset_is_refused(shards, resume_on):
    before = dataset_identity(open_dataset(shards))
    frames = [records.frame(records.example({"image": b"y", "label": label})) for label in (0, 1, 1)]
    (shards / "train.tfrecord").write_bytes(b"".join(frames))
    for recorded in (before, {"name": "shards", **before}):
        with pytest.raises(DataError, match="train_digest: .* -> .*--data"):
            resume_on(recorded, open_dataset(shards))


def test_converted_dataset_keeps_its_name_when_moved(tmp_path, resume_on):
    folder = write_dataset(tmp_path / "data", {"train": [pixels(0), pixels(1)]}, ("cup", "jar"))
    before = dataset_identity(open_dataset(folder))
    assert before["name"] == "made"
    resume_on(before, open_dataset(folder.rename(tmp_path / "moved")))
    with pytest.raises(DataError, match="name: photos -> made"):
        resume_on({**before, "name": "photos"}, open_dataset(tmp_path / "moved"))


def test_a_run_remembers_how_its_records_were_read(shards, tmp_path, resume_on):
    run = RunDirectory(tmp_path / "run")
    given = RecordFormat(label_key="class")
    assert run.record_format(given) == given  # a new one
    run.checkpoints.mkdir(parents=True)
    (run.checkpoints / "step-00000003.npz").touch()
    dataset = open_dataset(shards, RecordFormat("image", "label", ("cup", "jar")))
    run.write_json(run.dataset, {"record_format": dataset.record_format.as_dict()})
    assert run.record_format(RecordFormat()) == dataset.record_format
    assert run.record_format(given) == replace(dataset.record_format, label_key="class")
    before = dataset_identity(dataset)
    with pytest.raises(DataError, match="image_key: other -> image"):
        resume_on({**before, "image_key": "other"}, dataset)


def test_a_run_of_an_earlier_version_keeps_its_class_without_images(tmp_path, resume_on):
    folder = tmp_path / "shards"
    folder.mkdir()
    frames = [records.frame(records.example({"image": b"x", "label": label})) for label in (1, 2, 2)]
    (folder / "train.tfrecord").write_bytes(b"".join(frames))
    run = RunDirectory(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    (run.checkpoints / "step-00000003.npz").touch()
    run.write_json(run.dataset, {"class_names": ["0", "1", "2"]})
    assert open_dataset(folder).class_names == ("1", "2")
    dataset = open_dataset(folder, run.record_format(RecordFormat()))
    assert dataset.class_names == ("0", "1", "2")
    new = ("image_key", "label_key", "first_label")
    resume_on({name: value for name, value in dataset_identity(dataset).items() if name not in new}, dataset)
