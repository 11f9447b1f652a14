import keras
import numpy as np
import pytest
import tensorflow as tf

from convoy.core.errors import UsageError
from convoy.trainer.step.optimizers import decays_weight, make_optimizer

STEPS = 6
RATE = 0.05
SHAPES = {"kernel": (5, 4), "convolution": (3, 3, 2, 4), "bias": (4,), "gamma": (4,)}

# (name, options, Keras' optimizer with the same options)
SAME = {
    "adam": ("adam", {"epsilon": 1e-3}, lambda: keras.optimizers.Adam(RATE, epsilon=1e-3)),
    "adam_other_betas": (
        "adam",
        {"beta_1": 0.5, "beta_2": 0.8, "weight_decay": 0.3},  # adam ignores weight decay
        lambda: keras.optimizers.Adam(RATE, beta_1=0.5, beta_2=0.8),
    ),
    "adamw": ("adamw", {"weight_decay": 0.3}, lambda: keras.optimizers.AdamW(RATE, weight_decay=0.3)),
    "sgd_plain": ("sgd", {"momentum": 0.0, "nesterov": False}, lambda: keras.optimizers.SGD(RATE)),
    "sgd_plain_decayed": (
        "sgd",
        {"momentum": 0.0, "weight_decay": 0.2},
        lambda: keras.optimizers.SGD(RATE, weight_decay=0.2),
    ),
    "sgd_momentum": (
        "sgd",
        {"momentum": 0.8, "nesterov": False, "weight_decay": 0.2},
        lambda: keras.optimizers.SGD(RATE, momentum=0.8, weight_decay=0.2),
    ),
    "sgd_nesterov": (
        "sgd",
        {"momentum": 0.8, "weight_decay": 0.2},
        lambda: keras.optimizers.SGD(RATE, momentum=0.8, nesterov=True, weight_decay=0.2),
    ),
    "lamb": ("lamb", {"weight_decay": 0.3}, lambda: keras.optimizers.Lamb(RATE, weight_decay=0.3)),
}


def weights_and_gradients() -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    random = np.random.default_rng(0)

    def draw(scale):
        return {name: (scale * random.standard_normal(shape)).astype(np.float32) for name, shape in SHAPES.items()}

    return draw(1.0), [draw(0.1 * (step + 1)) for step in range(STEPS)]


def run_formula(optimizer, weights, gradients) -> list[dict[str, np.ndarray]]:
    values = {name: tf.constant(value) for name, value in weights.items()}
    slots = {name: {slot: tf.zeros(SHAPES[name]) for slot in optimizer.slots} for name in weights}
    history = []
    for step, gradient in enumerate(gradients, start=1):
        for name in weights:
            values[name], slots[name] = optimizer.formula(
                values[name],
                slots[name],
                tf.constant(gradient[name]),
                tf.constant(RATE),
                tf.constant(float(step)),
                decays_weight(SHAPES[name]),
            )
        history.append({name: value.numpy() for name, value in values.items()})
    return history


def run_in_place(optimizer, weights, gradients) -> list[dict[str, np.ndarray]]:
    variables = {name: tf.Variable(value) for name, value in weights.items()}
    slots = {name: {slot: tf.Variable(tf.zeros(SHAPES[name])) for slot in optimizer.slots} for name in weights}
    history = []
    for step, gradient in enumerate(gradients, start=1):
        for name, variable in variables.items():
            optimizer.in_place(
                variable,
                slots[name],
                tf.constant(gradient[name]),
                tf.constant(RATE),
                tf.constant(float(step)),
                decays_weight(SHAPES[name]),
            )
        history.append({name: variable.numpy() for name, variable in variables.items()})
    return history


def run_keras(optimizer, weights, gradients) -> list[dict[str, np.ndarray]]:
    variables = {name: keras.Variable(value, name=name) for name, value in weights.items()}
    optimizer.exclude_from_weight_decay(
        var_list=[variable for name, variable in variables.items() if not decays_weight(SHAPES[name])]
    )
    history = []
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient[name]) for name in variables], list(variables.values()))
        history.append({name: variable.value.numpy() for name, variable in variables.items()})
    return history


def assert_same_trajectory(ours, theirs, tolerance):
    for step, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        for name in own:
            np.testing.assert_allclose(own[name], other[name], tolerance, tolerance, err_msg=f"{name} at step {step}")


@pytest.mark.parametrize("case", SAME)
def test_formulas_match_keras(case):
    name, options, keras_optimizer = SAME[case]
    weights, gradients = weights_and_gradients()
    ours = run_formula(make_optimizer(name, **options), weights, gradients)
    theirs = run_keras(keras_optimizer(), weights, gradients)
    assert_same_trajectory(ours, theirs, 2e-6)
    assert all(np.abs(ours[-1][name] - weights[name]).max() > 0.01 for name in weights)


@pytest.mark.parametrize("case", [case for case in SAME if case != "lamb"])
def test_fused_kernels_match_the_formulas(case):
    name, options, _ = SAME[case]
    weights, gradients = weights_and_gradients()
    optimizer = make_optimizer(name, **options)
    assert_same_trajectory(
        run_in_place(optimizer, weights, gradients), run_formula(optimizer, weights, gradients), tolerance=2e-6
    )


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lars"])
def test_weight_decay_applies_to_kernels_but_not_to_biases_and_norms(name):
    weights, gradients = weights_and_gradients()
    plain = run_formula(make_optimizer(name, weight_decay=0.0), weights, gradients)[-1]
    decayed = run_formula(make_optimizer(name, weight_decay=0.5), weights, gradients)[-1]
    for weight in SHAPES:
        unchanged = np.array_equal(plain[weight], decayed[weight])
        assert unchanged == (weight in ("bias", "gamma")), weight
        if not unchanged:
            assert np.linalg.norm(decayed[weight]) < np.linalg.norm(plain[weight])


def test_lars_matches_its_published_formula():
    momentum, weight_decay, trust = 0.8, 0.01, 0.02
    weights, gradients = weights_and_gradients()
    ours = run_formula(
        make_optimizer("lars", momentum=momentum, weight_decay=weight_decay, trust_coefficient=trust),
        weights,
        gradients,
    )
    expected = {name: value.astype(np.float64) for name, value in weights.items()}
    velocity = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for step, gradient in enumerate(gradients):
        for name in SHAPES:
            g, w = gradient[name].astype(np.float64), expected[name]
            rate = RATE
            if len(SHAPES[name]) > 1:
                # You, Gitman and Ginsburg 2017, algorithm 1.
                rate *= trust * np.linalg.norm(w) / (np.linalg.norm(g) + weight_decay * np.linalg.norm(w))
                g = g + weight_decay * w
            velocity[name] = momentum * velocity[name] + rate * g
            expected[name] = w - velocity[name]
            np.testing.assert_allclose(ours[step][name], expected[name], 1e-5, 1e-6, err_msg=f"{name}, step {step}")


@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_the_trust_ratio_is_one_for_zero_norms(name):
    optimizer = make_optimizer(name, weight_decay=0.1)
    for weight, gradient in ((0.0, 1.0), (1.0, 0.0), (0.0, 0.0)):
        slots = {slot: tf.zeros([2, 2]) for slot in optimizer.slots}
        new, _ = optimizer.formula(
            tf.fill([2, 2], weight), slots, tf.fill([2, 2], gradient), tf.constant(0.1), tf.constant(1.0), True
        )
        assert np.isfinite(new.numpy()).all()
    # The first step moves zero weights.
    slots = {slot: tf.zeros([2, 2]) for slot in optimizer.slots}
    new, _ = optimizer.formula(tf.zeros([2, 2]), slots, tf.ones([2, 2]), tf.constant(0.1), tf.constant(1.0), True)
    np.testing.assert_allclose(new, np.full((2, 2), -0.1), rtol=1e-4)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lamb", "lars"])
def test_compiled_formulas_equal_eager_ones(name):
    weights, gradients = weights_and_gradients()
    optimizer = make_optimizer(name, weight_decay=0.1)
    eager = run_formula(optimizer, weights, gradients[:1])[0]["kernel"]
    compiled = tf.function(
        lambda w, s, g: optimizer.formula(w, s, g, tf.constant(RATE), tf.constant(1.0), True), jit_compile=True
    )
    slots = {slot: tf.zeros(SHAPES["kernel"]) for slot in optimizer.slots}
    new, new_slots = compiled(tf.constant(weights["kernel"]), slots, tf.constant(gradients[0]["kernel"]))
    np.testing.assert_allclose(new, eager, 1e-6, 1e-6)
    assert tuple(sorted(new_slots)) == tuple(sorted(optimizer.slots))


def test_an_unknown_optimizer_is_rejected_with_the_nearest_name():
    with pytest.raises(UsageError, match=r"config\.optimizer\.name='adamm'.*'adam'.*lars"):
        make_optimizer("adamm")


def test_weight_decay_applies_to_weights_of_two_or_more_dimensions():
    assert [decays_weight(shape) for shape in ((), (4,), (4, 4), (3, 3, 4, 4))] == [False, False, True, True]
