import math

import numpy as np
import pytest
import tensorflow as tf
from sklearn import metrics as sklearn_metrics

from convoy.trainer.evaluation.inference import evaluation_batch_size
from convoy.trainer.step.metrics import CALIBRATION_BINS, MetricSet, batch_sums, image_count, summarize, sums_size
from convoy.trainer.step.more_metrics import METRICS

CLASSES = 9


def batch(seed: int, images: int = 64, num_classes: int = CLASSES):
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_classes, images).astype(np.int32)
    logits = random.normal(0, 2, (images, num_classes)).astype(np.float32)
    logits[np.arange(images), labels] += random.choice([0.0, 4.0], images)  # some are clearly correct
    losses = random.random(images).astype(np.float32)
    return logits, labels, losses


def summed(logits, labels, losses, weights=None) -> np.ndarray:
    weights = None if weights is None else tf.constant(weights, tf.float32)
    sums = batch_sums(tf.constant(logits), tf.constant(labels), tf.constant(losses), weights)
    return sums.numpy().astype(np.float64)


def softmax(logits):
    exponentials = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def expected_metrics(logits, labels, losses) -> dict[str, float]:
    """Computes the metrics by their definitions, image by image."""
    predicted = [int(np.argmax(row)) for row in logits]
    # Sorted by score; ties go to the lower class number.
    ranked = [sorted(range(len(row)), key=lambda c, row=row: (-row[c], c)) for row in logits]
    f1 = []
    for c in range(logits.shape[1]):
        true_positives = sum(p == c and y == c for p, y in zip(predicted, labels, strict=True))
        false_positives = sum(p == c and y != c for p, y in zip(predicted, labels, strict=True))
        false_negatives = sum(p != c and y == c for p, y in zip(predicted, labels, strict=True))
        if true_positives + false_positives + false_negatives:
            f1.append(2 * true_positives / (2 * true_positives + false_positives + false_negatives))
    confidence = softmax(logits).max(-1)
    bins = [min(int(value * CALIBRATION_BINS), CALIBRATION_BINS - 1) for value in confidence]
    ece = 0.0
    for b in range(CALIBRATION_BINS):
        members = [i for i, image_bin in enumerate(bins) if image_bin == b]
        if members:
            accuracy = np.mean([predicted[i] == labels[i] for i in members])
            ece += len(members) / len(labels) * abs(accuracy - np.mean([confidence[i] for i in members]))
    return {
        "loss": float(np.mean(losses)),
        "top1": float(np.mean([p == y for p, y in zip(predicted, labels, strict=True)])),
        "top5": float(np.mean([y in best[:5] for best, y in zip(ranked, labels, strict=True)])),
        "macro_f1": float(np.mean(f1)),
        "ece": ece,
    }


@pytest.mark.parametrize("seed", range(5))
def test_metrics_match_their_definitions(seed):
    data = batch(seed)
    assert summarize(summed(*data)) == pytest.approx(expected_metrics(*data), rel=1e-5)


def test_macro_f1_ignores_classes_without_images_and_predictions():
    logits = np.eye(12, dtype=np.float32)[[0, 0, 1]] * 5
    labels = np.array([0, 1, 1], np.int32)
    metrics = summarize(summed(logits, labels, np.zeros(3, np.float32)))
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)  # mean of two classes, not of twelve


def test_a_class_with_predictions_but_no_images_counts_as_zero():
    logits = np.eye(3, dtype=np.float32)[[0, 2]] * 5
    metrics = summarize(summed(logits, np.array([0, 0], np.int32), np.zeros(2, np.float32)))
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_top1_and_top5_break_ties_towards_the_lower_class():
    logits = np.zeros((8, 8), np.float32)  # every class scores the same
    labels = np.arange(8, dtype=np.int32)
    metrics = summarize(summed(logits, labels, np.zeros(8, np.float32)))
    assert metrics["top1"] == pytest.approx(1 / 8)
    assert metrics["top5"] == pytest.approx(5 / 8)
    data = (np.round(batch(7)[0]), *batch(7)[1:])  # many partial ties
    assert len(set(data[0][0])) < CLASSES
    assert summarize(summed(*data)) == pytest.approx(expected_metrics(*data), rel=1e-5)


def test_top5_is_1_with_fewer_than_five_classes():
    logits, labels, losses = batch(1, num_classes=3)
    assert summarize(summed(logits, labels, losses))["top5"] == 1.0


def test_padding_is_ignored_even_with_nan():
    logits, labels, losses = batch(2, images=10)
    padded_logits = np.concatenate([logits, np.full((3, CLASSES), np.nan, np.float32), logits[:1]])
    padded_labels = np.concatenate([labels, [0, 1, 2, 3]]).astype(np.int32)
    padded_losses = np.concatenate([losses, [np.nan, np.inf, -np.inf, 1e30]]).astype(np.float32)
    padded = summed(padded_logits, padded_labels, padded_losses, [1] * 10 + [0] * 4)
    np.testing.assert_allclose(padded, summed(logits, labels, losses), rtol=1e-6)


def test_a_nan_loss_leaves_the_other_metrics_finite():
    logits, labels, losses = batch(2, images=10)
    logits[3], losses[3] = np.nan, np.nan
    metrics = summarize(summed(logits, labels, losses))
    assert math.isnan(metrics.pop("loss"))
    assert all(math.isfinite(value) for value in metrics.values())


def test_sums_of_parts_add_up_to_the_total():
    logits, labels, losses = batch(3, images=60)
    parts = sum(summed(logits[i : i + 7], labels[i : i + 7], losses[i : i + 7]) for i in range(0, 60, 7))
    np.testing.assert_allclose(parts, summed(logits, labels, losses), rtol=1e-5)
    counts = np.r_[1 : 4 + 3 * CLASSES + CALIBRATION_BINS, sums_size(CLASSES) - CALIBRATION_BINS : sums_size(CLASSES)]
    assert np.array_equal(parts[counts], summed(logits, labels, losses)[counts])  # counts are exact


@pytest.mark.parametrize("num_classes", [2, 5, 42])
def test_sums_have_the_documented_size_and_count_images(num_classes):
    sums = summed(*batch(4, images=13, num_classes=num_classes))
    assert sums.shape == (sums_size(num_classes),)
    assert image_count(sums) == 13


def test_a_perfect_model_has_perfect_metrics():
    labels = np.arange(CLASSES, dtype=np.int32)
    logits = np.eye(CLASSES, dtype=np.float32) * 1000
    metrics = summarize(summed(logits, labels, np.zeros(CLASSES, np.float32)))
    assert metrics == pytest.approx({"loss": 0, "top1": 1, "top5": 1, "macro_f1": 1, "ece": 0})


def test_a_confidence_of_one_is_in_the_last_bin():
    sums = summed(np.array([[1000.0, 0.0]], np.float32), np.array([1], np.int32), np.zeros(1, np.float32))
    images_per_bin = sums[4 + 3 * 2 :].reshape(3, CALIBRATION_BINS)[0]
    assert images_per_bin.tolist() == [0] * (CALIBRATION_BINS - 1) + [1]


def test_summarizing_no_images_is_an_error():
    with pytest.raises(ValueError, match="image"):
        summarize(np.zeros(sums_size(3)))


class TestMoreMetrics:
    @pytest.fixture
    def found(self):
        names = ("balanced_accuracy", "mcc", "brier", "nll")
        return MetricSet({name: METRICS.find(name).value(CLASSES) for name in names})

    def test_they_match_their_definitions(self, found):
        logits, labels, losses = batch(3)
        predicted, one_hot = logits.argmax(-1), np.eye(CLASSES)[labels]
        sums = found.batch_sums(tf.constant(logits), tf.constant(labels), tf.constant(losses)).numpy()
        assert len(sums) == found.sums_size(CLASSES)
        quality = found.summarize(sums)
        assert {name: quality[name] for name in found.names} == pytest.approx(
            {
                "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, predicted),
                "mcc": sklearn_metrics.matthews_corrcoef(labels, predicted),
                "brier": np.square(softmax(logits) - one_hot).sum(-1).mean(),
                "nll": sklearn_metrics.log_loss(labels, softmax(logits), labels=range(CLASSES)),
            },
            rel=1e-4,
        )
        assert {name: quality[name] for name in quality if name not in found.names} == summarize(
            summed(logits, labels, losses)
        )

    def test_they_add_up_and_leave_out_padding(self, found):
        logits, labels, losses = batch(4)
        weights, losses[60:] = np.repeat([1.0, 0.0], [60, 4]).astype(np.float32), np.nan
        columns = [tf.constant(column) for column in (logits, labels, losses, weights)]
        parts = sum(found.batch_sums(*(column[part] for column in columns)) for part in (slice(0, 20), slice(20, 64)))
        expected = found.batch_sums(*(column[:60] for column in columns))
        np.testing.assert_allclose(parts, expected, rtol=1e-4, atol=1e-4)

    def test_mcc_of_one_class_is_0(self, found):
        logits, labels, losses = batch(5)
        labels[:] = 2
        assert found.summarize(found.batch_sums(logits, labels, losses).numpy())["mcc"] == 0.0

    def test_sums_of_a_checkpoint_with_other_metrics_keep_the_usual_ones(self, found):
        usual, size = list(range(sums_size(CLASSES))), found.sums_size(CLASSES)
        restored = found.restored(usual, CLASSES, same_metrics=False)
        assert restored.tolist() == [*usual, *[0.0] * (size - len(usual))]
        assert MetricSet().restored(range(size), CLASSES, same_metrics=False).tolist() == usual
        assert found.restored(range(size), CLASSES, same_metrics=True).tolist() == list(range(size))
        assert not found.restored((), CLASSES, same_metrics=True).any()


@pytest.mark.parametrize("num_images", [10, 64, 1000])
def test_the_batch_of_a_device_in_a_deterministic_evaluation_does_not_depend_on_their_number(num_images):
    sizes = {evaluation_batch_size(num_images, devices, deterministic=True) / devices for devices in (1, 2, 3, 8)}
    assert len(sizes) == 1 and 1 <= max(sizes) <= num_images


@pytest.mark.parametrize(("images", "devices", "steps"), [(50_000, 64, 4), (50_000, 1, 196), (99, 8, 1), (1, 4, 1)])
def test_more_devices_evaluate_in_fewer_steps(images, devices, steps):
    batch = evaluation_batch_size(images, devices, deterministic=False)
    assert batch % devices == 0 and -(-images // batch) == steps
