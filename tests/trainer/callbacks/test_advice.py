from types import SimpleNamespace

import numpy as np
import pytest

from convoy.core.finding import Severity
from convoy.input_pipeline.dataset.folds import make_folds
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.trainer.callbacks.advice import Advice
from convoy.trainer.callbacks.callback import Evaluation, Log
from convoy.trainer.config import default_config, resolve
from convoy.trainer.run.task import SINGLE_LABEL
from tests.input_pipeline.datasets import write_dataset
from tests.input_pipeline.images import pixels

NAMES = ("cups", "jugs", "pots")
LATE = 10_000  # a step far beyond the first epochs


@pytest.fixture
def shown():
    """Findings in the order in which they were shown."""
    return []


@pytest.fixture
def advice_on(shown):
    """Starts the advice on a run; `labels` are the labels of each split's images."""

    def make(labels=None, *, dataset=None, num_images=100, settings=None, is_converted=True, **changed):
        config = default_config()
        config.update(changed)
        labels = labels or {"train": [0, 1, 2]}
        dataset = dataset or SimpleNamespace(
            num_classes=len(NAMES),
            class_names=NAMES,
            splits=tuple(labels),
            manifest={"name": "cups", "settings": settings or {}} if is_converted else {},
            split=lambda name: SimpleNamespace(
                class_counts=lambda classes: np.bincount(labels[name], minlength=classes)
            ),
        )
        plan = resolve(config, num_images=num_images, replicas=1)
        advice = Advice()
        session = SimpleNamespace(
            config=config, plan=plan, dataset=dataset, objective=SimpleNamespace(task=SINGLE_LABEL)
        )
        advice.on_start(SimpleNamespace(session=session, say=shown.append))
        return advice

    return make


def codes(findings):
    return [finding.code for finding in findings]


def log(advice, input_wait_pct, fixes=(), *, train_top1=0.0):
    values = {"quality/top1": train_top1, "perf/input_wait_pct": input_wait_pct}
    advice.on_log(None, Log(0, 0.0, values, fixes))


def evaluate(advice, *, train_top1, top1, best_top1=None, step=LATE):
    if train_top1 is not None:
        log(advice, 0.0, train_top1=train_top1)
    is_best = best_top1 is None or top1 > best_top1
    best = top1 if is_best else best_top1
    advice.on_evaluation(None, Evaluation(step, 0.0, "validation", {"top1": top1}, {}, is_best, best))


def test_healthy_run_gets_no_advice(advice_on, shown):
    advice = advice_on({"train": [0, 1, 2], "validation": [0, 1, 2]})
    for top1 in (0.1, 0.2, 0.3):
        log(advice, 5.0, ["anything"])
        evaluate(advice, train_top1=top1 + 0.1, top1=top1, best_top1=top1 - 0.1)
    assert shown == []


def test_nobody_is_told_to_convert_again_what_they_did_not_convert(advice_on, shown):
    labels = {"train": [0, 0, 2], "validation": [1]}
    advice_on(labels, is_converted=False)
    assert codes(shown) == ["missing-classes-train", "missing-classes-validation"]
    assert not any("onvert" in finding.fix for finding in shown)
    advice_on(labels)
    assert all("onvert" in finding.fix for finding in shown[2:])


def test_classes_without_images_are_named_per_split(advice_on, shown):
    advice_on({"train": [0, 0, 2], "validation": [1]})
    train, validation = shown
    assert codes(shown) == ["missing-classes-train", "missing-classes-validation"]
    assert train.severity == validation.severity == Severity.WARNING
    assert "'jugs'" in train.text and "'cups'" not in train.text
    assert "'cups', 'pots'" in validation.text and "--validation_fraction" in validation.fix


def test_a_fold_without_images_of_a_class_calls_for_fewer_folds(advice_on, shown, tmp_path):
    path = write_dataset(tmp_path / "data", {"train": [pixels(i, 8) for i in range(6)]}, NAMES)
    advice_on(dataset=make_folds(open_dataset(path), 6).without(1))
    assert codes(shown) == ["missing-classes-validation"]
    assert "--folds" in shown[0].fix and "--validation_fraction" not in shown[0].fix


def test_resizing_without_effect_on_images_that_were_converted_to_squares_is_reported(advice_on, shown):
    advice_on(settings={"image_size": 128})
    advice_on(settings={"image_size": 0}, resize="pad")
    assert shown == []
    advice_on(settings={"image_size": 128}, resize="pad")
    assert codes(shown) == ["resize-has-no-effect"]
    assert "config.resize=pad" in shown[0].text and "--image_size=128" in shown[0].text


def test_scaled_learning_rate_is_reported(advice_on, shown):
    advice_on(num_images=1000, batch_size=256, schedule={"scaling": "linear"})
    (finding,) = shown
    assert (finding.code, finding.severity) == ("scaled-learning-rate", Severity.NOTE)
    assert all(value in finding.text for value in ("0.001", "0.004", "linear", "256", "64"))
    assert "--config.schedule.scaling=none" in finding.fix


def test_a_batch_larger_than_the_data_set_is_reported(advice_on, shown):
    advice_on(num_images=100, batch_size=128, schedule={"scaling": "none"})
    (finding,) = shown
    assert (finding.code, finding.severity) == ("batch-larger-than-data", Severity.WARNING)
    assert "128" in finding.text and "100" in finding.text and "--config.batch_size=32" in finding.fix


def test_input_wait_is_reported_when_it_begins(advice_on, shown):
    advice = advice_on()
    for share in (30.0, 5.0, 30.0):  # a single slow log line may be noise
        log(advice, share, ["this"])
    assert shown == []
    for share in (31.0, 40.0, 50.0):
        log(advice, share, ["this", "that"])
    (finding,) = shown
    assert (finding.code, finding.severity) == ("input-bound", Severity.WARNING)
    assert "31 %" in finding.text and "this or that" in finding.fix
    for share in (5.0, 25.0, 26.0):
        log(advice, share, ["this"])
    assert codes(shown) == ["input-bound"] * 2


def test_overfitting_is_reported_once_with_fixes_not_in_use_yet(advice_on, shown):
    advice = advice_on()
    for train_top1 in (0.60, 0.66, 0.70, 0.64, 0.66):
        evaluate(advice, train_top1=train_top1, top1=0.50)
    (finding,) = shown
    assert (finding.code, finding.severity) == ("overfitting", Severity.WARNING)
    assert all(value in finding.text for value in ("66.0%", "50.0%", "16 points"))
    assert "--config.augment.ops=" in finding.fix and "--config.optimizer.weight_decay" in finding.fix
    evaluate(advice, train_top1=0.51, top1=0.51)
    evaluate(advice, train_top1=0.81, top1=0.51)
    assert codes(shown) == ["overfitting"] * 2


@pytest.mark.parametrize(
    ("steps", "first"),
    [
        (100, 30),  # three epochs of 10 steps are later than a tenth of the run
        (1000, 100),  # a tenth of the run is later
    ],
)
def test_overfitting_is_not_reported_in_the_first_epochs(advice_on, shown, steps, first):
    advice = advice_on(num_images=640, batch_size=64, steps=steps)
    evaluate(advice, train_top1=0.9, top1=0.1, step=first - 1)
    assert shown == []
    evaluate(advice, train_top1=0.9, top1=0.1, step=first)
    assert codes(shown) == ["overfitting"]


def test_overfitting_is_not_reported_while_training_images_are_smaller(advice_on, shown):
    progressive = {"sizes": (16, 24), "ends": (0.3, 0.6)}
    advice = advice_on(num_images=64, batch_size=64, steps=1000, image_size=32, progressive=progressive)
    for step in (200, 400, 600):
        evaluate(advice, train_top1=0.9, top1=0.1, step=step)
    assert shown == []
    evaluate(advice, train_top1=0.9, top1=0.1, step=601)
    assert codes(shown) == ["overfitting"]


def test_overfitting_is_reported_where_evaluation_alone_uses_larger_images(advice_on, shown):
    advice = advice_on(num_images=64, batch_size=64, steps=1000, image_size=32, eval_image_size=40)
    evaluate(advice, train_top1=0.9, top1=0.1, step=500)
    assert codes(shown) == ["overfitting"]


def test_no_improvement_is_reported_after_five_evaluations(advice_on, shown):
    advice = advice_on()
    evaluate(advice, train_top1=None, top1=0.40)
    for _ in range(4):
        evaluate(advice, train_top1=None, top1=0.39, best_top1=0.40)
    assert shown == []
    for _ in range(3):
        evaluate(advice, train_top1=None, top1=0.38, best_top1=0.40)
    (finding,) = shown
    assert (finding.code, finding.severity) == ("no-improvement", Severity.WARNING)
    assert "40.00%" in finding.text
    evaluate(advice, train_top1=None, top1=0.41, best_top1=0.40)
    for _ in range(5):
        evaluate(advice, train_top1=None, top1=0.41, best_top1=0.41)
    assert codes(shown) == ["no-improvement"] * 2
