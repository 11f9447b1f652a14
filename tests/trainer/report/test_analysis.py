import numpy as np
import pytest

from convoy.trainer.evaluation.predictions import Predictions
from convoy.trainer.evaluation.report import analysis
from tests.trainer.report.made_runs import drawn_predictions


def predictions(rows):
    """Of (label, predicted, probability of the label, probability of the predicted class)."""
    label, predicted, of_label, of_predicted = zip(*rows, strict=True)
    names = [f"{i}.jpg" for i in range(len(rows))]
    arrays = (np.array(label, np.int32), np.array(predicted, np.int32))
    return Predictions(names, *arrays, np.array(of_label, np.float32), np.array(of_predicted, np.float32))


@pytest.fixture(scope="module")
def drawn():
    """300 images of 7 classes, of which the last does not occur; the probabilities of all."""
    return drawn_predictions(np.random.default_rng(1).integers(0, 6, 300), num_classes=7)


def test_the_quality_of_a_class_is_that_of_the_definitions(drawn):
    found, probabilities = drawn
    classes = analysis.by_class(found, 7)
    predicted = probabilities.argmax(1)
    for label in range(7):
        hits = np.sum((predicted == label) & (found.label == label))
        said, there = np.sum(predicted == label), np.sum(found.label == label)
        assert classes.support[label] == there
        np.testing.assert_allclose(classes.precision[label], hits / said if said else np.nan)
        np.testing.assert_allclose(classes.recall[label], hits / there if there else np.nan)
        np.testing.assert_allclose(classes.f1[label], 2 * hits / (said + there) if said + there else np.nan)


def test_classes_come_with_the_worst_first_and_without_those_that_do_not_occur():
    found = predictions([(0, 0, 1, 1), (0, 0, 1, 1), (1, 2, 0, 1), (2, 2, 1, 1), (4, 4, 1, 1)])
    assert analysis.by_class(found, 5).worst_first().tolist() == [1, 2, 0, 4]
    assert analysis.by_class(found, 5).most_errors_first().tolist() == [1, 2, 0, 4]


def test_pairs_are_counted_and_hold_their_images_the_surest_first(drawn):
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


def test_a_matrix_of_some_classes_counts_the_others_in_its_last_column(drawn):
    found, probabilities = drawn
    classes = np.array([4, 0, 2])
    counts = analysis.confusion_matrix(found, classes)
    predicted = probabilities.argmax(1)
    for row, label in enumerate(classes):
        for column, other in enumerate(classes):
            assert counts[row, column] == np.sum((found.label == label) & (predicted == other))
        assert counts[row].sum() == np.sum(found.label == label)


def test_the_calibration_error_of_the_bins_is_that_of_its_definition(drawn):
    found, probabilities = drawn
    confidence, right = probabilities.max(1), probabilities.argmax(1) == found.label
    bins = np.minimum((confidence * 15).astype(int), 14)
    expected = sum(abs(confidence[bins == i].sum() - right[bins == i].sum()) for i in range(15)) / len(right)
    calibration = analysis.reliability(found)
    error = np.nansum(calibration.images * np.abs(calibration.confidence - calibration.accuracy)) / len(right)
    assert error == pytest.approx(expected, abs=1e-6)
    assert calibration.overconfidence == pytest.approx(confidence.mean() - right.mean(), abs=1e-6)


def test_coverage_answers_the_surest_and_images_as_sure_as_each_other_together():
    found = predictions([(0, 0, 0.9, 0.9), (0, 1, 0.2, 0.7), (1, 1, 0.7, 0.7), (1, 0, 0.1, 0.5)])
    curve = analysis.risk_coverage(found)
    np.testing.assert_allclose(curve.coverage, [0.25, 0.75, 1.0])
    np.testing.assert_allclose(curve.accuracy, [1, 2 / 3, 0.5])
    assert curve.at_coverage(0.5) == pytest.approx((0.7, 0.75, 2 / 3))
    assert curve.at_accuracy(0.6) == pytest.approx((0.7, 0.75, 2 / 3))
    assert curve.at_accuracy(0.99) == pytest.approx((0.9, 0.25, 1.0))
    assert analysis.risk_coverage(predictions([(0, 1, 0.1, 0.9)])).at_accuracy(0.5) is None


def test_a_label_is_doubted_where_another_class_is_as_sure_as_its_own_images_are():
    rows = [(0, 0, 0.9, 0.9)] * 8 + [(1, 1, 0.6, 0.6)] * 8
    rows += [(0, 1, 0.3, 0.65)]  # surer of 1 than 1's own images are on average
    rows += [(1, 0, 0.2, 0.8)]  # less sure of 0 than 0's own are
    rows += [(1, 0, 0.01, 0.98)]
    assert analysis.likely_label_errors(predictions(rows), 3).tolist() == [18, 16]
    assert analysis.likely_label_errors(predictions([(0, 2, 0.1, 0.9)]), 3).tolist() == []  # 2 has no image


def test_planted_label_errors_are_found_among_many_honest_mistakes():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 8, 2000)
    found, probabilities = drawn_predictions(truth, num_classes=8, right=0.85)
    wrong = rng.choice(2000, 60, replace=False)
    label = found.label.copy()
    label[wrong] = (label[wrong] + 1 + rng.integers(0, 7, 60)) % 8
    of_label = probabilities[np.arange(2000), label]
    found = Predictions(found.filename, label, found.predicted, of_label, found.predicted_probability)
    doubted = analysis.likely_label_errors(found, 8)
    assert np.isin(doubted, wrong).sum() >= 25
    assert np.isin(doubted, wrong).mean() > 0.6
    assert np.isin(analysis.mistakes(found), wrong).mean() < 0.3


def test_a_model_that_says_nan_is_analysed_as_one_that_is_sure_of_nothing():
    found = predictions([(0, 0, np.nan, np.nan), (1, 0, np.nan, np.nan)])
    assert analysis.reliability(found).images[0] == 2
    assert analysis.risk_coverage(found).accuracy.tolist() == [0.5]
    assert analysis.likely_label_errors(found, 2).tolist() == []


def test_the_interval_of_a_share_holds_it_and_stays_within_0_and_1():
    assert analysis.interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    for hits in (0, 3):
        low, high = analysis.interval(hits, 3)
        assert -1e-12 <= low <= hits / 3 <= high + 1e-12 <= 1 + 1e-9
