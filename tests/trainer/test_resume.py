import ml_collections
import pytest

from convoy.core.errors import DataError
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
def resumed_on(tmp_path):
    """Checks whether a run that was on one dataset, by its identity, may go on with another."""
    config = ml_collections.ConfigDict(configs.default_config())

    def check(before, dataset):
        metadata = {"config": configs.to_json(config), "dataset": before, "step": 3}
        check_same_run(metadata, config, dataset, RunDirectory(tmp_path / "run"))

    return check


def test_a_dataset_of_others_may_be_moved_and_renamed(shards, resumed_on):
    before = dataset_identity(open_dataset(shards))
    moved = open_dataset(shards.rename(shards.with_name("imagenet")))
    assert dataset_identity(moved) == before
    resumed_on(before, moved)
    # As earlier versions wrote it.
    resumed_on({"name": "shards", **before}, moved)


def test_another_dataset_of_others_is_refused(shards, resumed_on):
    before = dataset_identity(open_dataset(shards))
    frames = [records.frame(records.example({"image": b"y", "label": label})) for label in (0, 1, 1)]
    (shards / "train.tfrecord").write_bytes(b"".join(frames))
    for was in (before, {"name": "shards", **before}):
        with pytest.raises(DataError, match="train_digest: .* -> .*Give the same --data"):
            resumed_on(was, open_dataset(shards))


def test_a_converted_dataset_keeps_its_name_wherever_it_lies(tmp_path, resumed_on):
    folder = write_dataset(tmp_path / "data", {"train": [pixels(0), pixels(1)]}, ("cup", "jar"))
    before = dataset_identity(open_dataset(folder))
    assert before["name"] == "made"
    resumed_on(before, open_dataset(folder.rename(tmp_path / "moved")))
    with pytest.raises(DataError, match="name: photos -> made"):
        resumed_on({**before, "name": "photos"}, open_dataset(tmp_path / "moved"))
