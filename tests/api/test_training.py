"""`load_config` and the result of a training."""

import pytest

import convoy
from convoy.api.training import CrossValidation, TrainingResult
from convoy.trainer.config import fields, load_recipe


def test_config_is_that_of_the_recipe_with_the_given_fields():
    config = convoy.load_config("convnet", batch_size=128, optimizer={"learning_rate": 1}, **{"ema.decay": 0.5})
    expected = load_recipe("convnet")
    expected.batch_size, expected.optimizer.learning_rate, expected.ema.decay = 128, 1.0, 0.5
    assert dict(fields(config)) == dict(fields(expected))
    assert isinstance(config.optimizer.learning_rate, float)


def test_length_and_durations_override_those_of_the_recipe_in_other_units():
    config = convoy.load_config("smoke", epochs=3, eval_every_epochs=1)
    assert (config.steps, config.epochs, config.eval_every_steps) == (0, 3, 0)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"batch_sise": 64}, "batch_size"),
        ({"optimizer": {"learning_rat": 1.0}}, "learning_rate"),
        ({"batch_size": "many"}, "config.batch_size='many'"),
        ({"batch_size": 0}, "config.batch_size=0"),
        ({"optimizer": "adam"}, "config.optimizer.name"),
        ({"steps": 5, "epochs": 2}, "config.epochs=2"),
    ],
)
def test_wrong_field_is_named(given, named):
    with pytest.raises(convoy.UsageError, match=named) as caught:
        convoy.load_config("convnet", **given)
    assert "--" not in str(caught.value).split("`")[0]


def test_unknown_recipe_suggests_another():
    with pytest.raises(convoy.UsageError, match="convnet") as caught:
        convoy.load_config("convent")
    assert "--config" not in str(caught.value)


def test_errors_name_parameters_and_keep_commands(tmp_path):
    with pytest.raises(convoy.DataError) as caught:
        convoy.open_dataset(tmp_path / "none")
    assert "`convoy convert --images=" in str(caught.value)
    with pytest.raises(convoy.UsageError, match="^devices=gpo") as caught:
        convoy.train("smoke", data="none", workdir=tmp_path / "run", devices="gpo")


def test_a_result_says_why_the_run_stopped(tmp_path):
    stop = {"reason": "enough is enough", "by": "Mine", "resumable": False}
    result = TrainingResult(tmp_path, {"step": 4, "metrics": {}, "stop": stop})
    assert "enough is enough" in repr(result) and "enough is enough" in result._repr_html_()
    assert "stopped" not in repr(TrainingResult(tmp_path, {"step": 4, "metrics": {}, "stop": None}))


def test_a_metric_that_a_fold_does_not_have_is_shown_as_missing(tmp_path):
    content = {"folds": [], "mean": {"loss": None, "top1": 0.5}, "sd": {"loss": None, "top1": 0.1}, "stop": None}
    assert [line.split() for line in repr(CrossValidation(tmp_path, content)).splitlines()[1:]] == [
        ["loss", "-"],
        ["top1", "0.5", "±", "0.1"],
    ]


@pytest.mark.parametrize(
    ("argument", "value"),
    [("config", None), ("config", {"steps": 4}), ("devices", 2), ("max_hours", -1), ("max_hours", "2"), ("folds", 1)]
    + [("virtual_replicas", number) for number in (0, "8")]
    + [("cache_dir", "cache"), ("cache_gib", -1), ("cache_gib", "2")]
    + [("profile_steps", steps) for steps in (3, (4, 2), ("4", "8"))],
)
def test_wrong_argument_is_named(tmp_path, argument, value):
    arguments = {"config": "smoke", "data": "none", "workdir": tmp_path / "run", argument: value}
    with pytest.raises(convoy.UsageError, match=f"^{argument}="):
        convoy.train(**arguments)
    assert not (tmp_path / "run").exists()


def test_cluster_of_the_environment_is_refused(monkeypatch, tmp_path):
    cluster = '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}'
    monkeypatch.setenv("TF_CONFIG", cluster)
    with pytest.raises(convoy.UsageError, match="TF_CONFIG"):
        convoy.train("smoke", data="none", workdir=tmp_path / "run")
