"""Mixup and CutMix: formulas on small numbers, distributions, and mixing in a training step."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from convoy.trainer.step import metrics
from convoy.trainer.step.losses import cross_entropy
from convoy.trainer.step.mixing import Mixing, draw, mix
from tests.trainer.step_program import CLASSES, distribute, make_batch, make_step

SMOOTHED = functools.partial(cross_entropy, label_smoothing=0.2)
PLAIN = {"model": "plain", "global_batch_size": 8, "virtual_replicas": 2}


def drawn(mixing, number=4000, *, seed=0, step=0, stream=0):
    return draw(
        mixing, number, seed=seed, step=tf.constant(step, tf.int64), stream=tf.constant(stream, tf.int64)
    ).numpy()


def mixed(images, labels, draws):
    return mix(tf.constant(images, tf.float32), tf.constant(labels, tf.int32), tf.constant(draws, tf.float32))


@pytest.fixture(autouse=True)
def float32_policy():
    yield
    keras.config.set_dtype_policy("float32")


def test_mixup_blends_an_image_with_the_next_one():
    images = np.arange(3 * 2 * 2 * 3).reshape(3, 2, 2, 3)
    result = mixed(images, [5, 6, 7], [[0.75, 0, 0, 0], [1, 0, 0, 0], [0.25, 0, 0, 0]])
    expected = [0.75 * images[0] + 0.25 * images[1], images[1], 0.25 * images[2] + 0.75 * images[0]]
    np.testing.assert_allclose(result.pixels, expected)
    assert result.labels.numpy().tolist() == [5, 6, 7]
    assert result.partners.numpy().tolist() == [6, 7, 5]
    assert result.shares.numpy().tolist() == [0.75, 1.0, 0.25]
    assert result.main_labels.numpy().tolist() == [5, 6, 5]


@pytest.mark.parametrize(
    ("height", "width", "share", "top", "left", "rows", "columns"),
    [
        (8, 8, 0.75, 0.5, 0.5, (2, 6), (2, 6)),  # half the side, centered
        (8, 8, 0.75, 0.0, 0.99, (0, 2), (5, 8)),  # a corner, with most of the box outside
        (7, 5, 0.75, 0.5, 0.4, (1, 5), (1, 3)),  # sides of 3.5 and 2.5, rounded half to even
        (6, 6, 0.0, 0.5, 0.5, (0, 6), (0, 6)),  # the whole image
        (6, 6, 1.0, 0.5, 0.5, (0, 0), (0, 0)),
    ],
)
def test_cutmix_pastes_a_box_of_the_next_image_and_weights_labels_by_area(
    height, width, share, top, left, rows, columns
):
    images = np.stack([np.zeros((height, width, 3)), np.ones((height, width, 3))])
    result = mixed(images, [0, 1], [[share, 1, top, left]] * 2)
    expected = np.zeros((height, width, 3))
    expected[slice(*rows), slice(*columns)] = 1
    np.testing.assert_array_equal(result.pixels[0], expected)
    np.testing.assert_array_equal(result.pixels[1], 1 - expected)
    np.testing.assert_allclose(result.shares, 1 - expected.mean(), rtol=1e-6)


def test_unmixed_images_are_bit_identical():
    images = np.random.default_rng(0).uniform(0, 255, (4, 5, 5, 3)).astype(np.float32)
    for is_cut in (0, 1):
        result = mixed(images, [0, 1, 2, 3], [[1, is_cut, 0.3, 0.3]] * 4)
        assert np.array_equal(result.pixels, images)
        assert result.main_labels.numpy().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 8.0])
def test_shares_are_beta_distributed(alpha):
    shares = drawn(Mixing(mixup=alpha))[:, 0]
    assert np.isfinite(shares).all() and shares.min() >= 0 and shares.max() <= 1
    expected = np.random.default_rng(0).beta(alpha, alpha, 200_000)
    for limit in (1e-6, 1e-3, 0.05, 0.2, 0.4, 0.5, 0.6, 0.8, 0.95, 0.999):
        assert (shares < limit).mean() == pytest.approx((expected < limit).mean(), abs=0.03), limit


def test_the_fractions_of_mixed_and_cut_images_match_the_settings():
    both = drawn(Mixing(mixup=1.0, cutmix=1.0, probability=0.3))
    assert 0.26 < (both[:, 0] < 1).mean() < 0.34
    assert 0.46 < both[:, 1].mean() < 0.54
    assert drawn(Mixing(mixup=1.0))[:, 1].max() == 0
    assert drawn(Mixing(cutmix=1.0))[:, 1].min() == 1
    assert np.array_equal(drawn(Mixing(mixup=1.0, probability=0.0))[:, 0], np.ones(4000))


def test_draws_depend_only_on_seed_step_and_virtual_replica():
    mixing = Mixing(mixup=1.0, cutmix=1.0)
    assert np.array_equal(drawn(mixing, 50), drawn(mixing, 50))
    others = [drawn(mixing, 50), drawn(mixing, 50, stream=1), drawn(mixing, 50, seed=1), drawn(mixing, 50, seed=-1)]
    for i, one in enumerate(others):
        for other in others[:i]:
            assert (one[:, [0, 2, 3]] == other[:, [0, 2, 3]]).mean() < 0.02


def test_steps_without_mixing():
    mixing = Mixing(mixup=1.0, steps=((0, 7), (9, 10)))
    for step, is_mixed in ((6, True), (7, False), (8, False), (9, True), (10, False)):
        assert ((drawn(mixing, 50, step=step)[:, 0] < 1) == is_mixed).all(), step


def test_the_loss_is_the_cross_entropy_with_mixed_and_smoothed_labels():
    mixing = Mixing(mixup=1.0, cutmix=1.0)
    train_step, state, built = make_step(**PLAIN, loss=SMOOTHED, mixing=mixing)
    batch = make_batch(8)
    losses, sums = [], 0
    with tf.GradientTape() as tape:
        for replica in range(2):
            part = slice(4 * replica, 4 * replica + 4)
            result = mixed(batch["image"][part], batch["label"][part], drawn(mixing, 4, seed=1, stream=replica))
            shares = result.shares[:, tf.newaxis]
            one_hot = [tf.one_hot(labels, CLASSES) for labels in (result.labels, result.partners)]
            targets = 0.8 * (shares * one_hot[0] + (1 - shares) * one_hot[1]) + 0.2 / CLASSES
            logits = built.model(result.pixels / 255.0, training=True)
            losses.append(tf.nn.softmax_cross_entropy_with_logits(targets, logits))
            larger = np.where(result.shares >= 0.5, result.labels, result.partners)
            sums += metrics.batch_sums(logits, tf.constant(larger), losses[-1])
        loss = tf.reduce_mean(tf.concat(losses, 0))
    expected = tape.gradient(loss, [w.value for w in state.weights])
    gradients = train_step.gradients(distribute(state.strategy, batch))
    for own, gradient in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(own, gradient, rtol=1e-4, atol=1e-6)
    result = train_step(distribute(state.strategy, batch), 0.1)
    np.testing.assert_allclose(result.sums, sums, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_steps_after_mixing_equal_steps_without_mixing():
    batches, weights = [make_batch(8, seed=number) for number in range(2)], []
    for mixing in (Mixing(cutmix=1.0, steps=((0, 1),)), Mixing()):
        train_step, state, _ = make_step(**PLAIN, mixing=mixing)
        state.step = 1
        train_step(distribute(state.strategy, batches[1]), 0.1)
        weights.append(state.weights_sha256())
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_xla_changes_only_rounding():
    weights = []
    for use_xla in (False, True):
        train_step, state, _ = make_step(**PLAIN, mixing=Mixing(mixup=1.0, cutmix=1.0), use_xla=use_xla)
        train_step(distribute(state.strategy, make_batch(8)), 0.1)
        weights.append([w.numpy() for w in state.weights])
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_mixing_does_not_change_dropout_masks():
    """Mixing has its own random streams."""
    seen = []
    for mixing in (Mixing(), Mixing(mixup=1.0, probability=1e-9)):
        train_step, state, _ = make_step("masks", global_batch_size=8, virtual_replicas=2, mixing=mixing)
        train_step(distribute(state.strategy, make_batch(8)), 0.1)
        seen.append([v.numpy() for v in state.statistics])
    assert all(np.array_equal(one, other) for one, other in zip(*seen, strict=True))
