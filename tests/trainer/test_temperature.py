"""Temperature scaling: the fitted temperature, what it does to probabilities, and the calibration errors."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.evaluation.calibration import CalibrationErrors
from convoy.trainer.run.task import MULTI_LABEL, SINGLE_LABEL
from convoy.trainer.run.temperature import SCORE_UNIT, best_temperature, softened
from convoy.trainer.step.metrics import batch_sums, summarize
from convoy.trainer.step.outputs import calibrated, probabilities, temperature_scores

IMAGES, CLASSES = 4000, 5
TASKS = {False: SINGLE_LABEL, True: MULTI_LABEL}
RANDOM = np.random.default_rng(0)
TRUE_LOGITS = RANDOM.normal(size=(IMAGES, CLASSES)) * 2
LABELS = {
    False: (TRUE_LOGITS + RANDOM.gumbel(size=TRUE_LOGITS.shape)).argmax(1).astype(np.int32),
    True: np.float32(RANDOM.random(TRUE_LOGITS.shape) < 1 / (1 + np.exp(-TRUE_LOGITS))),
}


def scores_of(logits, multi_label, part=slice(None), weights=None):
    labels = tf.constant(LABELS[multi_label][part])
    weights = tf.ones(len(labels)) if weights is None else weights
    return temperature_scores(tf.constant(np.float32(logits)[part]), labels, weights, TASKS[multi_label]).numpy()


@pytest.mark.parametrize(("multi_label", "scale"), [*itertools.product([False, True], [0.4, 1.0, 2.5])])
def test_restores_the_scale_of_the_logits(multi_label, scale):
    assert best_temperature(scores_of(scale * TRUE_LOGITS, multi_label)) == pytest.approx(scale, rel=0.05)


def test_is_the_minimum_of_the_brier_score():
    logits = 1.7 * TRUE_LOGITS

    def score(log_temperature):
        probability = softmax(logits / np.exp(log_temperature), axis=1)
        return ((probability - np.eye(CLASSES)[LABELS[False]]) ** 2).sum()

    exact = np.exp(minimize_scalar(score, bounds=(-2, 2), method="bounded").x)
    assert best_temperature(scores_of(logits, False)) == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("multi_label", [False, True])
def test_scores_are_the_same_in_any_order_and_without_padding(multi_label):
    whole = scores_of(TRUE_LOGITS, multi_label)
    parts = [scores_of(TRUE_LOGITS, multi_label, slice(start, start + 1000)) for start in (2000, 0, 3000, 1000)]
    np.testing.assert_array_equal(np.sum(parts, 0), whole)
    first = tf.concat([tf.ones(1000), tf.zeros(IMAGES - 1000)], 0)
    np.testing.assert_array_equal(scores_of(TRUE_LOGITS, multi_label, weights=first), parts[1])


def test_a_few_images_that_are_all_correct_do_not_decide():
    logits = np.float32([[4, 0], [0, 4], [5, 0]])
    sums = temperature_scores(tf.constant(logits), tf.constant([0, 1, 0]), tf.ones(3), SINGLE_LABEL).numpy()
    assert sums.argmin() == 0  # the score alone asks for the lowest of all
    assert 0.8 < best_temperature(sums) < 1


def test_wrong_labels_do_not_make_a_sure_model_less_sure():
    sure = 4 * TRUE_LOGITS
    labels = (sure + RANDOM.gumbel(size=sure.shape)).argmax(1).astype(np.int32)
    wrong = RANDOM.random(IMAGES) < 0.03
    labels[wrong] = RANDOM.integers(0, CLASSES, wrong.sum())
    sums = temperature_scores(tf.constant(np.float32(2 * sure)), tf.constant(labels), tf.ones(IMAGES), SINGLE_LABEL)
    assert best_temperature(sums.numpy()) == pytest.approx(2, rel=0.2)  # with the cross-entropy 3.7


def test_logits_that_are_not_finite_do_not_count_as_good():
    logits = TRUE_LOGITS.copy()
    logits[:50] = np.nan
    sums = scores_of(logits, False)
    assert (sums * SCORE_UNIT >= 50 * 2).all()
    assert best_temperature(sums) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_softened_probabilities_are_those_of_divided_logits(multi_label, temperature):
    logits, task = tf.constant(np.float32(TRUE_LOGITS[:100])), TASKS[multi_label]
    plain = probabilities(logits, task).numpy()
    expected = probabilities(calibrated(logits, temperature), task).numpy()
    found = softened(plain, temperature, multi_label=multi_label)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(softened(found, 1 / temperature, multi_label=multi_label), plain, atol=1e-6)


def test_calibration_errors_are_those_of_the_metric_before_and_after():
    logits, labels = tf.constant(np.float32(3 * TRUE_LOGITS)), tf.constant(LABELS[False])
    temperature, batches = 3.0, np.array_split(np.arange(IMAGES), 7)
    errors = CalibrationErrors(temperature, multi_label=False)
    scaled = calibrated(logits, temperature)
    for batch in batches:
        errors.add(batch, LABELS[False][batch], probabilities(scaled, SINGLE_LABEL).numpy()[batch])
    before, after = errors.gather(WorkerGroup(None))
    of = {name: summarize(batch_sums(values, labels, tf.zeros(IMAGES)).numpy())["ece"] for name, values in
          {"before": logits, "after": scaled}.items()}  # fmt: skip
    assert (before, after) == pytest.approx((of["before"], of["after"]), abs=1e-3)
    assert after < 0.02 < 0.1 < before


def test_calibration_errors_of_several_labels_are_over_every_class():
    errors = CalibrationErrors(1.0, multi_label=True)
    errors.add(np.arange(2), np.float32([[1, 0], [0, 0]]), np.float32([[0.9, 0.1], [0.9, 0.1]]))
    # 0.9 twice, right once; 0.1 twice, never.
    assert errors.gather(WorkerGroup(None)) == pytest.approx(((0.8 + 0.2) / 4, (0.8 + 0.2) / 4))
