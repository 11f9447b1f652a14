"""`open_run` and `list_runs` on run directories made without training."""

import json
import sys
import time

import numpy as np
import pytest

import convoy
from tests.trainer.report.made_runs import CLASSES, drawn_predictions, evaluated, made_run

METRICS = [
    {"step": 5, "split": "train", "quality/loss": 1.5},
    {"step": 10, "split": "train", "quality/loss": 1.25},
    {"step": 10, "split": "validation", "quality/loss": 1.5, "quality/top1": 0.5},
]


@pytest.fixture
def run(tmp_path):
    """A run in progress, whose last line of metrics is only half written."""
    made = made_run(tmp_path / "runs" / "first", metrics=METRICS, results=[("validation", 10, 0.5)])
    with open(made.metrics, "a") as file:
        file.write('{"step": 15, "spl')
    made.append_event("start", step=0)
    (made.checkpoints / "step-000000010.npz").touch()
    return made


def test_run_in_progress_is_read_anew_each_time(run):
    opened = convoy.open_run(run.path)
    assert opened.metrics() == METRICS
    assert [row["step"] for row in opened.metrics("train")] == [5, 10]
    assert (opened.state, opened.step, opened.best, opened.result) == ("stopped", 10, (10, 0.5), None)
    assert opened.checkpoints == [10]
    assert [row["event"] for row in opened.events()] == ["start"]
    assert time.strftime("%Y-%m-%d %H:%M", time.localtime(opened.events()[0]["time"])) in repr(opened.events())
    assert opened.config.batch_size == 16
    run.write_json(run.result, {"step": 20, "weights_sha256": "abc", "metrics": {}})
    run.append_event("done", step=20)
    assert (opened.state, opened.step) == ("done", 20)
    assert opened.result.weights_sha256 == "abc"
    assert opened.result.as_dict()["step"] == 20
    with pytest.raises(AttributeError, match="weights_sha256"):
        _ = opened.result.weights_sha


@pytest.mark.parametrize("wrong", [["a", "b"], ("a",), 3, None])
def test_what_is_no_path_is_refused(wrong):
    with pytest.raises(convoy.UsageError) as refused:
        convoy.open_run(wrong)
    assert f"workdir={wrong!r}" in str(refused.value)
    assert ("`convoy predict --workdir=" in str(refused.value)) == isinstance(wrong, list | tuple)
    with pytest.raises(convoy.UsageError, match="^folder="):
        convoy.list_runs(wrong)


@pytest.mark.parametrize("wrong", [3, ["mug", 3], [None]])
def test_classes_to_explain_that_are_no_names_are_refused(run, wrong):
    with pytest.raises(convoy.UsageError) as refused:
        convoy.open_run(run.path).explain("photos", classes=wrong)
    assert f"classes={wrong!r}" in str(refused.value)


def test_config_of_an_earlier_version_is_complete(run):
    content = json.loads(run.config.read_text())
    del content["divergence"]
    run.config.write_text(json.dumps({**content, "eval_flip": content.pop("flip_tta")}))
    config = convoy.open_run(run.path).config
    assert (config.flip_tta, config.divergence.rollbacks) == (False, 0)


def test_saved_evaluation_has_metrics_classes_and_images(run):
    labels = np.arange(40) % 4
    found = drawn_predictions(labels, num_classes=4)[0]
    evaluated(run, found, ece=0.25)
    evaluation = convoy.open_run(run.path).evaluation("test")
    assert (evaluation.top1, evaluation.ece, evaluation.images) == (found.correct.mean(), 0.25, 40)
    assert "top1" in dir(evaluation)
    np.testing.assert_array_equal(evaluation.confusion.sum(1), [10] * 4)
    assert np.trace(evaluation.confusion) == found.correct.sum()
    assert [row["class"] for row in evaluation.per_class()] == list(CLASSES)
    assert [row["recall"] for row in evaluation.per_class()] == list(np.diag(evaluation.confusion) / 10)
    rows = convoy.open_run(run.path).predictions("test")
    assert [row["correct"] for row in rows] == found.correct.tolist()
    assert {row["label"] for row in rows} == set(CLASSES)
    with pytest.raises(AttributeError, match="macro_f1"):
        _ = evaluation.top_1
    with pytest.raises(convoy.DataError, match="validation"):
        convoy.open_run(run.path).evaluation("validation")


def test_runs_are_listed_best_first_with_their_differences(run):
    better = made_run(run.path.parent / "second", metrics=METRICS, results=[("validation", 20, 0.75)])
    config = json.loads(better.config.read_text())
    better.config.write_text(json.dumps({**config, "batch_size": 32}))
    runs = convoy.list_runs(run.path.parent)
    assert [(found.name, found.best, found.differences) for found in runs] == [
        ("second", (20, 0.75), {"batch_size": 32}),
        ("first", (10, 0.5), {"batch_size": 16}),
    ]
    assert runs[0].path == better.path
    assert [row["batch_size"] for row in runs.to_dicts()] == [32, 16]
    assert "second" in repr(runs)


@pytest.mark.parametrize("opening", [convoy.open_run, convoy.list_runs])
def test_missing_folder_is_named(opening, tmp_path):
    with pytest.raises(convoy.ConvoyError, match="runz"):
        opening(tmp_path / "runz")


def test_rows_become_a_data_frame(run):
    frame = convoy.open_run(run.path).metrics().to_pandas()
    assert frame["step"].tolist() == [5, 10, 10]
    assert frame["quality/top1"].isna().tolist() == [True, True, False]


def test_missing_pandas_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(convoy.UsageError, match="pip install pandas"):
        convoy.open_run(run.path).metrics().to_pandas()


def test_names_are_escaped_in_notebooks_and_terminals(tmp_path):
    name = "<b>\u202ebag\x1b[31m"
    run = made_run(tmp_path / "run", class_names=(name, "mug"))
    evaluated(run, drawn_predictions([0, 1], num_classes=2)[0], class_names=(name, "mug"))
    evaluation = convoy.open_run(run.path).evaluation("test")
    assert "<b>" not in evaluation._repr_html_()
    for text in (repr(evaluation), evaluation._repr_html_(), repr(evaluation.predictions())):
        assert "\u202e" not in text and "\x1b" not in text
