"""Losses by name: their formulas, class weights, and training with them."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from convoy.core.errors import UsageError
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.trainer.session.objective import class_weights
from convoy.trainer.step import metrics
from convoy.trainer.step.losses import LOSSES, binary_cross_entropy, cross_entropy, focal, make_loss
from convoy.trainer.step.mixing import Mixing, draw, mix
from tests.input_pipeline.datasets import write_dataset
from tests.trainer.step_program import CLASSES, distribute, make_batch, make_step


@pytest.fixture
def logits():
    return tf.constant(3 * np.random.default_rng(0).normal(size=(6, 4)), tf.float32)


LABELS = np.array([0, 3, 1, 3, 1, 2], np.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_bce_is_that_of_keras(logits, smoothing):
    targets = tf.one_hot(LABELS, 4) * (1 - smoothing) + smoothing / 4
    expected = keras.losses.binary_crossentropy(targets, logits, from_logits=True)
    np.testing.assert_allclose(binary_cross_entropy(logits, LABELS, smoothing), expected, rtol=1e-5)


@pytest.mark.parametrize(("gamma", "smoothing"), [(2.0, 0.0), (0.5, 0.1)])
def test_focal_is_that_of_keras(logits, gamma, smoothing):
    targets = tf.one_hot(LABELS, 4)
    expected = keras.losses.categorical_focal_crossentropy(
        targets, logits, alpha=1.0, gamma=gamma, from_logits=True, label_smoothing=smoothing
    )
    np.testing.assert_allclose(focal(logits, LABELS, gamma, smoothing), expected, rtol=1e-4)


def test_focal_with_gamma_0_is_cross_entropy(logits):
    np.testing.assert_allclose(focal(logits, LABELS, 0.0, 0.1), cross_entropy(logits, LABELS, 0.1), rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES.names)
def test_gradients_of_certain_predictions_are_finite(name):
    logits = tf.constant([[200.0, -200.0, 0.0], [-200.0, 200.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = make_loss(LOSSES.find(name), {"gamma": 0.3})(logits, tf.constant([0, 0]))
    assert np.isfinite(losses).all() and np.isfinite(tape.gradient(losses, logits)).all()


def test_a_loss_gets_the_fields_that_it_names(logits, tmp_path):
    (tmp_path / "losses.py").write_text("def mine(logits, labels, power): return logits[:, 0] ** power")
    found = LOSSES.find(f"{tmp_path}/losses.py:mine")
    np.testing.assert_allclose(make_loss(found, {"power": 2.0, "gamma": 1.0})(logits, LABELS), logits[:, 0] ** 2)
    with pytest.raises(UsageError, match="config.label_smoothing=0.1.*'.*losses.py:mine'"):
        make_loss(found, {"power": 2.0}, label_smoothing=0.1)


class TestClassWeights:
    @pytest.fixture
    def data(self, tmp_path):
        """Four, three and three images of the classes."""
        images = [np.zeros((4, 4, 3), np.uint8)] * 10
        return open_dataset(write_dataset(tmp_path / "data", {"train": images}, ["a", "b,c", "d=1"]))

    def test_balanced_and_its_square_root_have_the_mean_1_over_the_images(self, data):
        counts = np.array([4, 3, 3])
        balanced, root = (np.array(class_weights(text, data)) for text in ("balanced", "inverse_sqrt"))
        np.testing.assert_allclose(balanced, 10 / (3 * counts))
        np.testing.assert_allclose(root / root[0], np.sqrt(counts[0] / counts))
        assert root @ counts == pytest.approx(10)

    def test_by_class_name(self, data):
        assert class_weights(json.dumps({"b,c": 2.5, "a": 0}), data) == (0.0, 2.5, 1.0)
        assert class_weights("none", data) == ()

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("balance", "'balanced'"),
            ('{"d=2": 1}', "'d=1'"),
            ('{"a": -1}', "-1"),
            ('{"a": "1"}', "'1'"),
            ('{"a": true}', "True"),
            ('{"a": NaN}', "nan"),
            ('{"a": 0, "b,c": 0, "d=1": 0}', "all"),
            ("[1, 2, 3]", "JSON object"),
        ],
    )
    def test_what_they_cannot_be(self, data, text, named):
        with pytest.raises(UsageError, match="config.loss.class_weights=") as caught:
            class_weights(text, data)
        assert named in str(caught.value)

    @pytest.mark.parametrize("mixing", [Mixing(), Mixing(mixup=1.0)])
    def test_training_is_weighted_and_the_reported_loss_is_not(self, mixing):
        weights = [0.5 + label for label in range(CLASSES)]
        step, state, built = make_step("plain", global_batch_size=8, class_weights=weights, mixing=mixing)
        batch = make_batch(8)
        pixels, labels = tf.constant(batch["image"], tf.float32), batch["label"]
        shares, partners = np.ones(8, np.float32), labels
        if mixing.is_on:
            stream = tf.constant(0, tf.int64)
            mixed = mix(pixels, tf.constant(labels), draw(mixing, 8, seed=1, step=stream, stream=stream))
            pixels, shares, partners = mixed.pixels, mixed.shares, mixed.partners
        with tf.GradientTape() as tape:
            logits = built.model(pixels / 255.0, training=True)
            own, of_partners = cross_entropy(logits, labels), cross_entropy(logits, partners)
            by_class = tf.constant(weights)
            weighted = shares * tf.gather(by_class, labels) * own
            weighted += (1 - shares) * tf.gather(by_class, partners) * of_partners
            loss = tf.reduce_mean(weighted)
        expected = tape.gradient(loss, [w.value for w in state.weights])
        for gradient, other in zip(step.gradients(distribute(state.strategy, batch)), expected, strict=True):
            np.testing.assert_allclose(gradient, other, rtol=1e-4, atol=1e-6)
        reported = metrics.summarize(step(distribute(state.strategy, batch), 0.1).sums)["loss"]
        assert reported == pytest.approx(float(tf.reduce_mean(shares * own + (1 - shares) * of_partners)), rel=1e-5)
