import numpy as np
import pytest

from convoy.trainer.evaluation.predictions import Predictions
from convoy.trainer.evaluation.report import analysis
from tests.trainer.report.made_runs import drawn_predictions


def predictions(rows):
    """From rows of (label, predicted, probability of the label, probability of the predicted class)."""
    label, predicted, of_label, of_predicted = zip(*rows, strict=True)
    names = [f"{i}.jpg" for i in range(len(rows))]
    arrays = (np.array(label, np.int32), np.array(predicted, np.int32))
    return Predictions(names, *arrays, np.array(of_label, np.float32), np.array(of_predicted, np.float32))


@pytest.fixture(scope="module")
def drawn():
    """Predictions and probabilities for 300 images of 7 classes; the last class has no images."""
    return drawn_predictions(np.random.default_rng(1).integers(0, 6, 300), num_classes=7)


def test_class_metrics_follow_their_definitions(drawn):
    found, probabilities = drawn
    classes = analysis.by_class(found, 7)
    predicted = probabilities.argmax(1)
    for label in range(7):
        hits = np.sum((predicted == label) & (found.label == label))
        num_predicted, num_labeled = np.sum(predicted == label), np.sum(found.label == label)
        total = num_predicted + num_labeled
        assert classes.support[label] == num_labeled
        np.testing.assert_allclose(classes.precision[label], hits / num_predicted if num_predicted else np.nan)
        np.testing.assert_allclose(classes.recall[label], hits / num_labeled if num_labeled else np.nan)
        np.testing.assert_allclose(classes.f1[label], 2 * hits / total if total else np.nan)


def test_classes_are_sorted_by_f1_without_those_that_do_not_occur():
    found = predictions([(0, 0, 1, 1), (0, 0, 1, 1), (1, 2, 0, 1), (2, 2, 1, 1), (4, 4, 1, 1)])
    assert analysis.by_class(found, 5).worst_first().tolist() == [1, 2, 0, 4]
    assert analysis.by_class(found, 5).most_errors_first().tolist() == [1, 2, 0, 4]


def test_pairs_list_their_images_by_confidence(drawn):
    found, _ = drawn
    pairs = analysis.confused_pairs(found)
    assert sum(pair.images for pair in pairs) == np.sum(~found.correct)
    assert [pair.images for pair in pairs] == sorted((pair.images for pair in pairs), reverse=True)
    for pair in pairs:
        assert np.all(found.label[pair.members] == pair.label) and np.all(
            found.predicted[pair.members] == pair.predicted
        )
        assert np.all(np.diff(found.predicted_probability[pair.members]) <= 0)
    assert analysis.confused_pairs(predictions([(1, 1, 1, 1)])) == []


def test_matrix_of_some_classes_counts_others_in_its_last_column(drawn):
    found, probabilities = drawn
    classes = np.array([4, 0, 2])
    counts = analysis.confusion_matrix(found, classes)
    predicted = probabilities.argmax(1)
    for row, label in enumerate(classes):
        for column, other in enumerate(classes):
            assert counts[row, column] == np.sum((found.label == label) & (predicted == other))
        assert counts[row].sum() == np.sum(found.label == label)


def test_calibration_error_follows_its_definition(drawn):
    found, probabilities = drawn
    confidence, right = probabilities.max(1), probabilities.argmax(1) == found.label
    bins = np.minimum((confidence * 15).astype(int), 14)
    expected = sum(abs(confidence[bins == i].sum() - right[bins == i].sum()) for i in range(15)) / len(right)
    calibration = analysis.reliability(found)
    error = np.nansum(calibration.images * np.abs(calibration.confidence - calibration.accuracy)) / len(right)
    assert error == pytest.approx(expected, abs=1e-6)
    assert calibration.overconfidence == pytest.approx(confidence.mean() - right.mean(), abs=1e-6)


def test_coverage_keeps_images_of_equal_confidence_together():
    found = predictions([(0, 0, 0.9, 0.9), (0, 1, 0.2, 0.7), (1, 1, 0.7, 0.7), (1, 0, 0.1, 0.5)])
    curve = analysis.risk_coverage(found)
    np.testing.assert_allclose(curve.coverage, [0.25, 0.75, 1.0])
    np.testing.assert_allclose(curve.accuracy, [1, 2 / 3, 0.5])
    assert curve.at_coverage(0.5) == pytest.approx((0.7, 0.75, 2 / 3))
    assert curve.at_accuracy(0.6) == pytest.approx((0.7, 0.75, 2 / 3))
    assert curve.at_accuracy(0.99) == pytest.approx((0.9, 0.25, 1.0))
    assert analysis.risk_coverage(predictions([(0, 1, 0.1, 0.9)])).at_accuracy(0.5) is None


def test_label_error_needs_the_mean_confidence_of_the_predicted_class():
    rows = [(0, 0, 0.9, 0.9)] * 80 + [(1, 1, 0.6, 0.6)] * 80
    rows += [(0, 1, 0.3, 0.65)]  # above the mean confidence of class 1
    rows += [(1, 0, 0.2, 0.8)]  # below the mean confidence of class 0
    rows += [(1, 0, 0.01, 0.98)]
    assert analysis.likely_label_errors(predictions(rows), 3).tolist() == [162, 160]
    assert analysis.likely_label_errors(predictions([(0, 2, 0.1, 0.9)]), 3).tolist() == []  # class 2 has no images


def test_planted_label_errors_are_found_among_model_errors():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 8, 2000)
    found, probabilities = drawn_predictions(truth, num_classes=8, right=0.85)
    wrong = rng.choice(2000, 60, replace=False)
    label = found.label.copy()
    label[wrong] = (label[wrong] + 1 + rng.integers(0, 7, 60)) % 8
    of_label = probabilities[np.arange(2000), label]
    found = Predictions(found.filename, label, found.predicted, of_label, found.predicted_probability)
    found_errors = analysis.likely_label_errors(found, 8)
    assert np.isin(found_errors, wrong).sum() >= 25
    assert np.isin(found_errors, wrong).mean() > 0.6
    assert np.isin(found.mistakes(), wrong).mean() < 0.3


def test_a_model_that_is_often_sure_and_wrong_says_nothing_about_labels():
    found, _ = drawn_predictions(np.random.default_rng(0).integers(0, 4, 100), num_classes=4, right=0.6)
    assert len(found.mistakes()) > 25
    assert len(analysis.likely_label_errors(found, 4)) < len(found.mistakes()) / 4


def test_interval_of_a_difference_is_newcombes():
    # Newcombe 1998, "Interval estimation for the difference between independent proportions", table II, 10.
    low, high = analysis.difference_interval((56 / 70, 70), (48 / 80, 80))
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_nan_counts_as_zero_confidence():
    found = predictions([(0, 0, np.nan, np.nan), (1, 0, np.nan, np.nan)])
    assert analysis.reliability(found).images[0] == 2
    assert analysis.risk_coverage(found).accuracy.tolist() == [0.5]
    assert analysis.likely_label_errors(found, 2).tolist() == []


def test_confidence_interval_contains_the_share():
    assert analysis.interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    for hits in (0, 3):
        low, high = analysis.interval(hits, 3)
        assert -1e-12 <= low <= hits / 3 <= high + 1e-12 <= 1 + 1e-9
