from types import SimpleNamespace

import numpy as np
import pytest

from convoy.trainer.callbacks.advice import Advice
from convoy.trainer.config import default_config, resolve

NAMES = ("cups", "jugs", "pots")


@pytest.fixture
def said():
    return []


@pytest.fixture
def advice_on(said):
    """Makes the advice on a run; `labels` are the images of each split."""

    def make(labels=None, **changed):
        config = default_config()
        config.update(changed)
        labels = labels or {"train": [0, 1, 2]}
        dataset = SimpleNamespace(
            num_classes=len(NAMES),
            class_names=NAMES,
            splits=tuple(labels),
            split=lambda name: SimpleNamespace(label=np.array(labels[name])),
        )
        advice = Advice(config, dataset, say=said.append)
        advice.start(resolve(config, num_images=100, replicas=1))
        return advice

    return make


def test_a_run_with_nothing_amiss_gets_no_advice(advice_on, said):
    advice = advice_on({"train": [0, 1, 2], "validation": [0, 1, 2]})
    for top1 in (0.1, 0.2, 0.3):
        advice.logged(5.0, ["anything"])
        advice.evaluated(train_top1=top1 + 0.1, top1=top1, best_top1=top1 - 0.1)
    assert said == []


def test_classes_without_images_are_named_for_each_split(advice_on, said):
    advice_on({"train": [0, 0, 2], "validation": [1]})
    assert said[0].startswith("Warning: 1 of 3 classes have no images in train ('jugs'): they can never be learnt.")
    assert said[1].startswith("Warning: 2 of 3 classes have no images in validation ('cups', 'pots'):")
    assert "--validation_fraction" in said[1]


def test_a_scaled_learning_rate_is_told_with_from_to_and_why(advice_on, said):
    advice_on(batch_size=256, schedule={"scaling": "linear"})
    (line,) = said
    assert "from 0.001 to 0.004 (linear): the batch is 256, and it was given for 64" in line
    assert "--config.schedule.scaling=none" in line


def test_waiting_for_input_is_told_when_it_begins_and_again_after_it_had_ended(advice_on, said):
    advice = advice_on()
    for share in (30.0, 5.0, 30.0):  # one line alone is no news
        advice.logged(share, ["this"])
    assert said == []
    for share in (31.0, 40.0, 50.0):
        advice.logged(share, ["this", "that"])
    assert said == ["Warning: training waits for images for 31 % of the time (over 20 %). Try this or that."]
    for share in (5.0, 25.0, 26.0):
        advice.logged(share, ["this"])
    assert len(said) == 2


def test_a_gap_is_told_once_with_what_is_not_done_yet(advice_on, said):
    advice = advice_on()
    for train_top1 in (0.60, 0.66, 0.70, 0.64, 0.66):
        advice.evaluated(train_top1=train_top1, top1=0.50, best_top1=None)
    (line,) = said
    assert "66.0% on training images and 50.0% on validation images, 16 points apart (over 15)" in line
    assert "Try --config.augment.ops='crop(scale=0.7..1) | flip | contrast(0.5) | saturation(0.7)', --config" in line
    advice.evaluated(train_top1=0.50, top1=0.50, best_top1=None)
    advice.evaluated(train_top1=0.80, top1=0.50, best_top1=None)
    assert len(said) == 2


def test_validation_that_gets_no_better_is_told_after_five_evaluations(advice_on, said):
    advice = advice_on()
    advice.evaluated(train_top1=None, top1=0.40, best_top1=None)
    for _ in range(4):
        advice.evaluated(train_top1=None, top1=0.39, best_top1=0.40)
    assert said == []
    for _ in range(3):
        advice.evaluated(train_top1=None, top1=0.38, best_top1=0.40)
    (line,) = said
    assert "no better than its best, 40.00%, for 5 evaluations" in line
    advice.evaluated(train_top1=None, top1=0.41, best_top1=0.40)
    for _ in range(5):
        advice.evaluated(train_top1=None, top1=0.41, best_top1=0.41)
    assert len(said) == 2
