"""Where the recipe of `--config=auto` comes from: examined once, with a measured speed, and then from RUN/recipe.py."""

import dataclasses
import os

import pytest

from convoy.core.cluster import Cluster
from convoy.core.errors import DataError, UsageError
from convoy.trainer import config as configs
from convoy.trainer.auto import choosing
from convoy.trainer.auto.choosing import Request, auto_config
from convoy.trainer.finders.batch_size import Attempt, Scale


@pytest.fixture
def request_for(dataset, tmp_path, monkeypatch):
    """Makes the request of a run in tmp_path/run on one CPU, without TensorFlow."""
    monkeypatch.setattr(choosing, "count_devices", lambda devices: ("CPU", 1))
    return lambda **options: Request(**{"data": str(dataset.data), "workdir": str(tmp_path / "run"), **options})


@pytest.fixture
def speed(monkeypatch):
    """Sets the measured speed in images per second at 32 pixels; returns the configs that were measured."""
    tried = []

    def set_speed(images_per_second, fits=True):
        def try_batch(config, data, **options):
            tried.append(config)
            seconds = config.batch_size / images_per_second * (config.image_size / 32) ** 2
            scale = Scale(1, 1, 91, on_gpu=False, first_size=config.batch_size)
            return Attempt(config.batch_size, fits, seconds), scale

        monkeypatch.setattr(choosing, "try_batch", try_batch)
        return tried

    return set_speed


def ignore(headline, choices):
    pass


def of_two(index):
    jobs = (("worker", 0), ("worker", 1))
    return Cluster(("127.0.0.1:1", "127.0.0.1:2"), index, "TF_CONFIG", jobs)


def test_the_choice_is_shown_and_is_that_of_the_file(request_for, tmp_path):
    shown = []
    config, recipe = auto_config(request_for(given={"seed": 5}), lambda headline, choices: shown.extend(choices))
    assert recipe.path == tmp_path / "run/recipe.py"
    assert configs.load_recipe(str(recipe.path)).to_dict() == config.to_dict()
    assert dict(configs.fields(config)).items() >= {choice.field: choice.value for choice in shown}.items()
    assert config.seed == 5


def test_the_same_data_and_speed_give_the_same_recipe(request_for, speed, tmp_path):
    texts = []
    for folder, measured in (("a", 500.0), ("b", 560.0)):  # as a machine's measurements differ
        speed(measured)
        auto_config(request_for(max_hours=0.02, workdir=str(tmp_path / folder)), ignore)
        lines = (tmp_path / folder / "recipe.py").read_text().splitlines()
        texts.append(lines[1:])  # the first one has the measured value
    assert texts[0] == texts[1]


def test_speed_is_measured_only_for_a_time_budget(request_for, speed):
    tried = speed(500.0)
    unlimited, _ = auto_config(request_for(workdir=None), ignore)
    auto_config(request_for(workdir=None, max_hours=1.0, given={"epochs": 3.0}), ignore)
    assert not tried
    config, _ = auto_config(request_for(workdir=None, max_hours=0.01), ignore)
    assert [each.image_size for each in tried] == [32]
    assert config.epochs < unlimited.epochs


def test_folds_share_the_time(request_for, speed):
    speed(64.0)
    alone, _ = auto_config(request_for(workdir=None, max_hours=0.1), ignore)
    divided, _ = auto_config(request_for(workdir=None, max_hours=0.1, folds=3), ignore)
    assert divided.epochs < alone.epochs / 2


def test_without_a_run_directory_nothing_is_written(request_for, tmp_path):
    _, recipe = auto_config(request_for(workdir=None), ignore)
    assert recipe is None
    assert not list(tmp_path.iterdir())


def test_later_starts_use_the_file_without_looking_at_the_data(request_for, monkeypatch, tmp_path):
    first, _ = auto_config(request_for(), ignore)
    monkeypatch.setattr(choosing, "examine", lambda dataset: pytest.fail("examined again"))
    again, recipe = auto_config(request_for(), ignore)
    assert again.to_dict() == first.to_dict() and recipe
    longer, _ = auto_config(request_for(given={"epochs": 7.0}), ignore)
    assert longer.epochs == 7.0
    for_worker, _ = auto_config(request_for(cluster=of_two(1)), ignore)
    assert for_worker.to_dict() == first.to_dict()


def test_an_edited_file_counts(request_for, tmp_path):
    auto_config(request_for(), ignore)
    file = tmp_path / "run/recipe.py"
    file.write_text(file.read_text().replace("    return config\n", "    config.seed = 9\n    return config\n"))
    assert auto_config(request_for(), ignore)[0].seed == 9


def test_a_worker_without_the_file_of_the_chief_ends(request_for, tmp_path):
    with pytest.raises(DataError, match="share one --workdir"):
        auto_config(request_for(cluster=of_two(1), startup_seconds=0.0), ignore)
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_chosen_is_refused(request_for, speed, finished_run, tmp_path):
    speed(100.0, fits=False)
    request = request_for()
    for wrong, fix in (
        ({"workdir": str(finished_run.workdir)}, "another --workdir"),
        ({"max_hours": 1.0}, "--config.batch_size"),
        ({"max_hours": 1.0, "cluster": of_two(0)}, "--config.epochs"),
        ({"max_hours": 1.0, "data": {"train": object()}}, ""),
    ):
        with pytest.raises((UsageError, DataError)) as caught:
            auto_config(dataclasses.replace(request, **wrong), ignore)
        assert fix in str(caught.value)
    assert not (finished_run.workdir / "recipe.py").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
def test_a_file_of_another_user_is_not_run(request_for, tmp_path):
    auto_config(request_for(), ignore)
    os.chown(tmp_path / "run/recipe.py", 12345, 12345)
    with pytest.raises(UsageError, match="another user"):
        auto_config(request_for(), ignore)
