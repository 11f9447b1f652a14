import keras
import numpy as np
import pytest
import tensorflow as tf

from convoy.trainer.tf_compat.layers import ByteDropout, FusedBatchNormalization, with_fast_layers

SHAPES = [(12, 7), (6, 5, 4, 3)]


@pytest.fixture(autouse=True)
def float32_policy():
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")


def normalizations(shape, dtype="float32", **options):
    """Returns Keras' layer and ours with the same, unusual, weights."""
    random = np.random.default_rng(0)
    pair = [layer(dtype=dtype, **options) for layer in (keras.layers.BatchNormalization, FusedBatchNormalization)]
    for layer in pair:
        layer.build(shape)
    # Variances, means, scales and offsets alike can be any positive number.
    weights = [random.uniform(0.5, 1.5, w.shape).astype(np.float32) for w in pair[0].get_weights()]
    for layer in pair:
        layer.set_weights(weights)
    return pair


def inputs_of(shape, dtype="float32", seed=1):
    values = np.random.default_rng(seed).normal(1.5, 2.0, shape)
    return tf.cast(tf.constant(values, tf.float32), dtype)


def forward_and_gradients(layer, inputs, training=True):
    upstream = tf.cast(tf.constant(np.random.default_rng(2).normal(size=inputs.shape), tf.float32), inputs.dtype)
    weights = [w.value for w in layer.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=training)
        loss = tf.reduce_sum(tf.cast(outputs * upstream, tf.float32))
    gradients = tape.gradient(loss, [inputs, *weights])
    return [outputs, *gradients]


def assert_close(ours, theirs, tolerance):
    for one, other in zip(ours, theirs, strict=True):
        one, other = (np.asarray(tf.cast(value, tf.float32)) for value in (one, other))
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * max(1.0, np.abs(other).max()))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("scale_and_center", [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("shape", SHAPES)
def test_fused_normalization_equals_keras(shape, scale_and_center, training):
    scale, center = scale_and_center
    theirs, ours = normalizations(shape, scale=scale, center=center, momentum=0.7, epsilon=1e-2)
    inputs = inputs_of(shape)
    expected = forward_and_gradients(theirs, inputs, training)
    assert_close(forward_and_gradients(ours, inputs, training), expected, 2e-6)
    assert len(expected) == 2 + scale + center
    before = np.concatenate([v.numpy() for v in normalizations(shape)[0].non_trainable_variables])
    after = [np.concatenate([v.numpy() for v in layer.non_trainable_variables]) for layer in (ours, theirs)]
    np.testing.assert_allclose(*after, rtol=1e-6)
    assert training == (after[0] != before).all() if scale and center else True


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_fused_normalization_in_half_precision_is_close_to_keras(shape, dtype):
    theirs, ours = normalizations(shape, dtype)
    inputs = inputs_of(shape, ours.compute_dtype)
    results = forward_and_gradients(ours, inputs)
    assert results[0].dtype == ours.compute_dtype
    assert all(v.dtype == "float32" for v in ours.variables)
    assert_close(results, forward_and_gradients(theirs, inputs), 2e-2 if dtype == "mixed_bfloat16" else 3e-3)
    for one, other in zip(ours.non_trainable_variables, theirs.non_trainable_variables, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-3)


def test_moving_statistics_keep_following_the_batches():
    theirs, ours = normalizations((6, 5, 4, 3), momentum=0.9)
    for seed in range(5):
        for layer in (theirs, ours):
            layer(inputs_of((6, 5, 4, 3), seed=seed), training=True)
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_frozen_normalization_uses_and_keeps_its_moving_averages_in_training():
    theirs, ours = normalizations((12, 7))
    inputs = inputs_of((12, 7))
    for layer in (theirs, ours):
        layer.trainable = False
    before = ours.get_weights()
    np.testing.assert_allclose(ours(inputs, training=True), theirs(inputs, training=True), rtol=1e-5, atol=1e-5)
    assert all(np.array_equal(*pair) for pair in zip(before, ours.get_weights(), strict=True))


def test_unsupported_cases_fall_back_to_keras():
    for options, shape in (({"axis": 1}, (6, 3, 4, 5)), ({}, (6, 4, 3)), ({}, (2, 3, 4, 5, 6))):
        theirs, ours = normalizations(shape, **options)
        assert_close(
            forward_and_gradients(ours, inputs_of(shape)), forward_and_gradients(theirs, inputs_of(shape)), 2e-6
        )
        np.testing.assert_allclose(ours.moving_variance.numpy(), theirs.moving_variance.numpy(), rtol=1e-6)
    theirs, ours = normalizations((12, 7))
    mask = tf.constant([True] * 5 + [False] * 7)
    results = [layer(inputs_of((12, 7)), training=True, mask=mask).numpy() for layer in (ours, theirs)]
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-5)
    unmasked = normalizations((12, 7))[1](inputs_of((12, 7)), training=True).numpy()
    assert np.abs(results[0] - unmasked).max() > 0.01


def test_normalization_of_one_image_has_no_nan():
    theirs, ours = normalizations((1, 7))
    inputs = inputs_of((1, 7))
    np.testing.assert_allclose(ours(inputs, training=True), theirs(inputs, training=True), rtol=1e-5, atol=1e-5)
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def dropped(rate, shape=(64, 100, 10), seed=0, dtype="float32"):
    layer = ByteDropout(rate, seed=seed, dtype=dtype)
    return layer(tf.ones(shape, layer.compute_dtype), training=True).numpy()


@pytest.mark.parametrize(("rate", "scale"), [(0.25, 4 / 3), (0.5, 2.0), (0.75, 4.0)])
def test_dropout_at_quarters_scales_exactly(rate, scale):
    assert set(np.unique(dropped(rate))) == {np.float32(0), np.float32(scale)}


@pytest.mark.parametrize("rate", [0.05, 0.25, 0.3, 0.5, 0.9])
def test_dropout_keeps_its_share_and_the_expectation(rate):
    values = dropped(rate)
    rounded = round(rate * 256) / 256
    deviation = np.sqrt(rounded * (1 - rounded) / values.size)
    assert abs((values == 0).mean() - rounded) < 5 * deviation
    assert abs(values.mean() - 1) < 5 * deviation / (1 - rounded)


def test_a_rate_is_rounded_to_the_next_256th():
    kept = np.unique(dropped(0.3))[1]
    assert kept == np.float32(256 / (256 - 77))  # 0.3 * 256 = 76.8


def test_dropout_is_independent_from_value_to_value_and_image_to_image():
    mask = (dropped(0.5, (64, 1000)) > 0).astype(float)
    # Four values share one random word: each of its bytes must be fair on its own and given the others.
    for distance in (1, 2, 3, 4, 5, 1000):
        flat = mask.ravel()
        assert abs(np.corrcoef(flat[:-distance], flat[distance:])[0, 1]) < 5 / np.sqrt(flat.size)
    for offset in range(4):
        assert abs(mask.ravel()[offset::4].mean() - 0.5) < 5 * 0.5 / np.sqrt(mask.size / 4)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_dropouts_gradient_is_its_mask_times_the_scale(dtype):
    layer = ByteDropout(0.3, seed=1, dtype=dtype)
    inputs = tf.cast(inputs_of((8, 9, 5)), layer.compute_dtype)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
    gradient = tape.gradient(outputs, inputs)
    assert gradient.dtype == outputs.dtype == layer.compute_dtype
    mask = outputs != 0
    scale = tf.constant(256 / 179, layer.compute_dtype)
    assert np.array_equal(gradient, tf.where(mask, scale, tf.zeros([], scale.dtype)))
    assert np.array_equal(outputs, tf.where(mask, inputs * scale, tf.zeros([], scale.dtype)))


@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_dropout_with_given_mask_equals_keras(rate):
    inputs = inputs_of((8, 9, 5))
    ours = ByteDropout(rate, seed=1)(inputs, training=True).numpy()
    # Keras multiplies what it keeps by 1 / (1 - rate), whatever it keeps.
    theirs = keras.layers.Dropout(rate, seed=1)(inputs, training=True).numpy()
    source = inputs.numpy()
    for result in (ours, theirs):
        kept = result != 0
        np.testing.assert_allclose(result[kept], (source * np.float32(1 / (1 - rate)))[kept], rtol=1e-6)
        assert 0 < kept.mean() < 1


def test_dropout_does_nothing_outside_training_or_at_rate_0():
    inputs = inputs_of((4, 6))
    assert np.array_equal(ByteDropout(0.5)(inputs, training=False), inputs)
    assert np.array_equal(ByteDropout(0.5)(inputs), inputs)
    assert np.array_equal(ByteDropout(0.0)(inputs, training=True), inputs)


def test_dropout_at_rate_1_drops_everything():
    assert not ByteDropout(1.0)(tf.ones([4, 6]), training=True).numpy().any()


def test_dropout_never_lets_an_infinite_value_through_its_mask():
    values = ByteDropout(0.5, seed=0)(tf.fill([1000], np.inf), training=True).numpy()
    assert set(np.unique(values)) == {0.0, np.inf}


def test_mask_depends_on_seed_state_which_advances_per_call():
    assert np.array_equal(dropped(0.5, seed=3), dropped(0.5, seed=3))
    assert not np.array_equal(dropped(0.5, seed=3), dropped(0.5, seed=4))
    layer = ByteDropout(0.5, seed=3)
    first, second = (layer(tf.ones([100]), training=True).numpy() for _ in range(2))
    assert not np.array_equal(first, second)
    layer.seed_generator.state.assign(ByteDropout(0.5, seed=3).seed_generator.state.value)
    assert np.array_equal(layer(tf.ones([100]), training=True), first)


def test_every_bit_of_the_seed_state_counts():
    layer = ByteDropout(0.5)
    masks = set()
    for word in range(2):
        for bit in (0, 1, 15, 16, 30, 31):
            state = [0, 0]
            state[word] = 1 << bit
            layer.seed_generator.state.assign(np.array(state, np.uint32))
            masks.add(layer(tf.ones([256]), training=True).numpy().tobytes())
    assert len(masks) == 12


@pytest.mark.parametrize("use_xla", [False, True])
def test_noise_shape(use_xla):
    dropout = ByteDropout(0.5, noise_shape=(None, 1, 1, 2), seed=1)
    ours = tf.function(lambda x: dropout(x, training=True), jit_compile=use_xla)(tf.ones([501, 3, 4, 2])).numpy()
    assert set(ours.sum((1, 2)).ravel()) == {0.0, 24.0}
    assert 0.4 < np.mean(ours == 0) < 0.6
    assert len(np.unique((ours[:, 0, 0] == 0).astype(int), axis=0)) == 4  # the two are drawn apart


def small_model() -> keras.Model:
    inputs = keras.layers.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Dropout(0.25, seed=7, name="drop")(x)
    shortcut = x = keras.layers.Activation("relu", name="relu")(x)
    x = keras.layers.Conv2D(4, 3, padding="same", name="conv2")(x)
    x = keras.layers.Add(name="add")([x, shortcut])
    x = keras.layers.Flatten(name="flatten")(x)
    return keras.Model(inputs, keras.layers.Dense(5, name="logits")(x), name="small")


def randomized(model: keras.Model) -> keras.Model:
    """Gives a model weights of which each matters, moving statistics included."""
    random = np.random.default_rng(0)
    model.set_weights([random.uniform(0.2, 0.4, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


def test_a_model_with_fast_layers_has_the_same_weights_and_function():
    model = randomized(small_model())
    fast = with_fast_layers(model)
    kinds = {layer.name: type(layer) for layer in fast.layers}
    assert kinds["norm"] is FusedBatchNormalization and kinds["drop"] is ByteDropout
    assert [layer.name for layer in fast.layers[1:]] == [layer.name for layer in model.layers[1:]]
    assert [v.path for v in fast.trainable_variables] == [v.path for v in model.trainable_variables]
    for one, other in zip(fast.get_weights(), model.get_weights(), strict=True):
        assert np.array_equal(one, other)
    images = inputs_of((3, 8, 8, 3))
    np.testing.assert_allclose(fast(images), model(images), rtol=1e-5, atol=1e-5)
    assert fast.get_layer("drop").rate == 0.25 and fast.get_layer("drop").seed == 7


def test_sequential_model_stays_sequential():
    model = keras.Sequential(
        [keras.layers.Input((6,)), keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    )
    fast = with_fast_layers(randomized(model))
    assert isinstance(fast, keras.Sequential)
    assert [type(layer) for layer in fast.layers[1:]] == [FusedBatchNormalization, ByteDropout]
    np.testing.assert_allclose(fast(inputs_of((3, 6))), model(inputs_of((3, 6))), rtol=1e-5, atol=1e-6)


def test_subclassed_model_is_unchanged():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = keras.layers.BatchNormalization()

        def call(self, inputs):
            return self.norm(inputs)

    model = Subclassed()
    assert with_fast_layers(model) is model


@pytest.mark.slow
def test_a_published_architecture_keeps_its_function():
    model = keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), classes=5, classifier_activation=None, alpha=0.35
    )
    fast = with_fast_layers(model)
    assert sum(isinstance(layer, FusedBatchNormalization) for layer in fast.layers) == sum(
        isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers
    )
    images = inputs_of((16, 32, 32, 3))
    np.testing.assert_allclose(fast(images), model(images), rtol=1e-4, atol=1e-5)
    # In training some fifty normalizations, over as little as 16 values each, amplify every rounding.
    training = [m(images, training=True).numpy() for m in (fast, model)]
    np.testing.assert_allclose(*training, rtol=0, atol=1e-2 * np.abs(training[1]).max())


def test_a_model_with_fast_layers_survives_saving(tmp_path):
    fast = with_fast_layers(randomized(small_model()))
    fast.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.get_layer("norm")) is FusedBatchNormalization
    assert type(loaded.get_layer("drop")) is ByteDropout
    images = inputs_of((3, 8, 8, 3))
    assert np.array_equal(loaded(images), fast(images))


def test_weights_are_compatible_with_keras_layers():
    fast, model = with_fast_layers(randomized(small_model())), small_model()
    model.set_weights(fast.get_weights())
    images = inputs_of((3, 8, 8, 3))
    np.testing.assert_allclose(model(images), fast(images), rtol=1e-5, atol=1e-5)
