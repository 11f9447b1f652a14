import json

import ml_collections
import pytest

from convoy.core.errors import DataError, UsageError
from convoy.input_pipeline.dataset import records
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


def test_identical_dataset_converted_under_another_name_is_accepted(tmp_path, resume_on):
    images = {"train": [pixels(0), pixels(1)]}
    first = open_dataset(write_dataset(tmp_path / "data", images, ("cup", "jar")))
    again = write_dataset(tmp_path / "again", images, ("cup", "jar"))
    manifest = json.loads((again / "manifest.json").read_text())
    (again / "manifest.json").write_text(json.dumps({**manifest, "name": "photos"}))
    assert (first.name, open_dataset(again).name) == ("made", "photos")
    resume_on({"name": "made", **dataset_identity(first)}, open_dataset(again))  # the name is of earlier versions
    other = write_dataset(tmp_path / "other", {"train": [pixels(0), pixels(2)]}, ("cup", "jar"))
    with pytest.raises(DataError, match="train_digest"):
        resume_on(dataset_identity(first), open_dataset(other))


def test_model_of_a_file_is_compared_by_its_content_not_its_folder(shards, tmp_path):
    dataset, run = open_dataset(shards), RunDirectory(tmp_path / "run")
    config = ml_collections.ConfigDict(configs.default_config())
    config.model.name = "models.py:small"
    metadata = {"config": configs.to_json(config), "dataset": dataset_identity(dataset), "step": 3, "model": {}}
    config.model.name = "elsewhere/models.py:small"
    check_same_run(metadata, config, dataset, run)
    del metadata["model"]  # of an earlier version, which has nothing to compare
    with pytest.raises(UsageError, match="model.name"):
        check_same_run(metadata, config, dataset, run)
    config.model.name = "models.py:large"
    with pytest.raises(UsageError, match="model.name"):
        check_same_run({**metadata, "model": {}}, config, dataset, run)
