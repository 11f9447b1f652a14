import keras
import numpy as np
import pytest
import tensorflow as tf

from convoy.core.errors import UsageError
from convoy.trainer.config import load_recipe
from convoy.trainer.models import build_model
from convoy.trainer.session.runtime import make_runtime
from convoy.trainer.step.optimizers import (
    OPTIMIZERS,
    Optimizer,
    decays_weight,
    find_optimizer,
    hidden_matrices,
    make_optimizer,
)
from tests.trainer.step_program import distribute, make_batch, make_step

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
    "lion": (
        "lion",
        {"beta_1": 0.8, "beta_2": 0.95, "weight_decay": 0.3},
        lambda: keras.optimizers.Lion(RATE, beta_1=0.8, beta_2=0.95, weight_decay=0.3),
    ),
}
NO_KERNEL = {"lamb", "lion"}


def weights_and_gradients() -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    random = np.random.default_rng(0)

    def draw(scale):
        return {name: (scale * random.standard_normal(shape)).astype(np.float32) for name, shape in SHAPES.items()}

    return draw(1.0), [draw(0.1 * (step + 1)) for step in range(STEPS)]


def run_formula(optimizer, weights, gradients) -> list[dict[str, np.ndarray]]:
    values = {name: tf.constant(value) for name, value in weights.items()}
    slots = {name: {slot: optimizer.initial(slot, values[name]) for slot in optimizer.slots} for name in weights}
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


@pytest.mark.parametrize("case", [case for case in SAME if case not in NO_KERNEL])
def test_fused_kernels_match_the_formulas(case):
    name, options, _ = SAME[case]
    weights, gradients = weights_and_gradients()
    optimizer = make_optimizer(name, **options)
    assert_same_trajectory(
        run_in_place(optimizer, weights, gradients), run_formula(optimizer, weights, gradients), tolerance=2e-6
    )


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS.names if name != "adam"])
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


@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_compiled_formulas_equal_eager_ones(name):
    weights, gradients = weights_and_gradients()
    optimizer = make_optimizer(name, weight_decay=0.1)
    start = tf.constant(weights["kernel"])
    eager = run_formula(optimizer, weights, gradients[:1])[0]["kernel"]
    compiled = tf.function(
        lambda w, s, g: optimizer.formula(w, s, g, tf.constant(RATE), tf.constant(1.0), True), jit_compile=True
    )
    slots = {slot: optimizer.initial(slot, start) for slot in optimizer.slots}
    new, new_slots = compiled(start, slots, tf.constant(gradients[0]["kernel"]))
    np.testing.assert_allclose(new, eager, 1e-5, 1e-6)
    assert tuple(sorted(new_slots)) == tuple(sorted(optimizer.slots))


def test_muon_matches_keras_on_dense_matrices():
    shapes = {"wide": (5, 8), "tall": (7, 3)}
    options = {"momentum": 0.9, "weight_decay": 0.3}
    # These are all hidden, as Keras takes them unless they are named.
    theirs = keras.optimizers.Muon(RATE, momentum=0.9, weight_decay=0.3, adam_weight_decay=0.3)
    ours = make_optimizer("muon", **options)
    random = np.random.default_rng(0)
    values = {name: tf.constant(random.standard_normal(shape), tf.float32) for name, shape in shapes.items()}
    variables = {name: keras.Variable(value, name=name) for name, value in values.items()}
    slots = {name: {"momentum": tf.zeros(shape)} for name, shape in shapes.items()}
    for step in range(1, STEPS + 1):
        gradients = {name: tf.constant(random.standard_normal(shape), tf.float32) for name, shape in shapes.items()}
        for name, gradient in gradients.items():
            rate, number = tf.constant(RATE), tf.constant(float(step))
            values[name], slots[name] = ours.formula(values[name], slots[name], gradient, rate, number, True)
        theirs.apply([gradients[name] for name in variables], list(variables.values()))
        for name, value in values.items():
            np.testing.assert_allclose(value, variables[name].value, 2e-5, 2e-6, err_msg=f"{name}, step {step}")


def test_a_muon_step_of_a_convolution_is_an_orthogonal_matrix_of_the_size_of_an_adam_step():
    weights, gradients = weights_and_gradients()
    kernel, gradient = weights["convolution"], tf.constant(gradients[0]["convolution"])
    optimizer = make_optimizer("muon")
    slots = {"momentum": tf.zeros(kernel.shape)}
    new, _ = optimizer.formula(tf.constant(kernel), slots, gradient, tf.constant(RATE), tf.constant(1.0), True)
    step = (kernel - new.numpy()).reshape(-1, kernel.shape[-1]) / RATE
    singular = np.linalg.svd(step, compute_uv=False) / (0.2 * np.sqrt(max(step.shape)))
    assert singular.min() > 0.6 and singular.max() < 1.3
    assert np.linalg.norm(step) / np.sqrt(step.size) == pytest.approx(0.2, rel=0.2)


def test_muon_takes_the_matrices_of_hidden_layers_and_leaves_the_rest_to_adamw():
    model = build_model("convnet", num_classes=5, image_size=32).model
    weights = model.trainable_variables
    taken = [w.path for w, is_hidden in zip(weights, hidden_matrices(weights), strict=True) if is_hidden]
    matrices = [w.path for w in weights if len(w.shape) > 1]
    assert taken == matrices[1:-1] and len(taken) > 2
    assert matrices[-1].startswith("logits")  # the classifier's
    optimizer = make_optimizer("muon")
    for weight, own in zip(weights, optimizer.of_weights(weights), strict=True):
        assert own.slots == (("momentum",) if weight.path in taken else ("momentum", "velocity"))

    layers = keras.layers
    inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="stem")(inputs)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.Reshape((16, 4), name="tokens")(x)
    x = layers.Dense(6, name="hidden")(layers.MultiHeadAttention(2, 4, name="attention")(x, x))
    outputs = layers.Dense(5, name="logits")(layers.Flatten(name="flat")(x))
    weights = keras.Model(inputs, outputs).trainable_variables
    hidden = [w.path for w, is_hidden in zip(weights, hidden_matrices(weights), strict=True) if is_hidden]
    assert hidden == ["hidden/kernel"]


def test_schedule_free_adamw_matches_its_published_formula_with_warmup_and_decay():
    beta_1, beta_2, epsilon, weight_decay, warmup = 0.9, 0.99, 1e-4, 0.2, 3
    optimizer = make_optimizer(
        "schedule_free_adamw", beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, weight_decay=weight_decay
    )
    weights, gradients = weights_and_gradients()
    for name in ("kernel", "bias"):
        y = tf.constant(weights[name])
        slots = {slot: optimizer.initial(slot, y) for slot in optimizer.slots}
        # Defazio et al. 2024, algorithm 1. Keras 3.15 differs: with TensorFlow, it computes x from the new z.
        x = z = weights[name].astype(np.float64)
        velocity, squares = np.zeros(z.shape), 0.0
        for step, gradient in enumerate(gradients, start=1):
            rate, g = RATE * min(1.0, step / warmup), gradient[name].astype(np.float64)
            y_of_paper = (1 - beta_1) * z + beta_1 * x
            np.testing.assert_allclose(y, y_of_paper, 1e-5, 1e-6, err_msg=f"{name}, step {step}")
            velocity = beta_2 * velocity + (1 - beta_2) * g**2
            decay = weight_decay * y_of_paper if name == "kernel" else 0.0
            z = z - rate * (g / (np.sqrt(velocity / (1 - beta_2**step)) + epsilon) + decay)
            squares += rate**2
            x = (1 - rate**2 / squares) * x + rate**2 / squares * z
            y, slots = optimizer.formula(
                y, slots, tf.constant(gradient[name]), tf.constant(rate), tf.constant(float(step)), name == "kernel"
            )
            np.testing.assert_allclose(slots["x"], x, 1e-5, 1e-6, err_msg=f"{name}, step {step}")


def test_evaluation_and_batch_statistics_of_schedule_free_adamw_are_those_of_the_average():
    options = {"optimizer": "schedule_free_adamw", "global_batch_size": 12, "virtual_replicas": 3}
    train_step, state, built = make_step("norm", **options)
    assert state.evaluated_weights is state.averages
    batches = [make_batch(12, seed=seed) for seed in range(3)]
    for batch in batches[:-1]:
        train_step(distribute(state.strategy, batch), 0.3)
    average, statistics = ([v.numpy() for v in each] for each in (state.averages, state.statistics))
    assert any(not np.allclose(a, w.numpy(), atol=1e-2) for a, w in zip(average, state.weights, strict=True))
    train_step(distribute(state.strategy, batches[-1]), 0.3)
    trained = [v.numpy() for v in state.statistics]

    for weight, value in zip(state.weights, average, strict=True):
        weight.assign(value)
    parts = []
    for images in np.split(batches[-1]["image"], 3):
        for variable, value in zip(state.statistics, statistics, strict=True):
            variable.assign(value)
        built.model(tf.cast(images, tf.float32) / 255.0, training=True)
        parts.append([v.numpy() for v in state.statistics])
    for own, *expected in zip(trained, *parts, strict=True):
        np.testing.assert_allclose(own, np.mean(expected, 0), 1e-5, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lion", "muon", "schedule_free_adamw"])
def test_a_checkpoint_resumes_a_run_in_every_bit_also_with_a_frozen_backbone(name):
    options = {
        **{
            "optimizer": name,
            "optimizer_options": {"weight_decay": 0.1},
            "clip_norm": 1.0,
            "precision": "mixed_float16",
        },
        **{"global_batch_size": 8, "virtual_replicas": 2, "freeze_steps": 1, "backbone_rate": 0.5},
    }

    def trained(state, train_step, steps):
        for number in steps:
            assert train_step(distribute(state.strategy, make_batch(8, seed=number)), 0.01).finite
        return {name: value.tobytes() for name, value in state.values().items()}

    train_step, state, _ = make_step("norm", **options)
    before = state.values()
    state.loss_scale.assign(2.0**8)
    trained(state, train_step, [0])
    moved = {name for name, value in state.values().items() if value.tobytes() != before[name].tobytes()}
    assert not any("conv1" in name or "norm1" in name for name in moved)
    checkpoint = state.values()
    whole = trained(state, train_step, [1, 2])
    resumed_step, resumed, _ = make_step("norm", **options, initial_seed=5)
    resumed.assign(checkpoint, 1)
    assert trained(resumed, resumed_step, [1, 2]) == whole
    assert {"model/conv1/kernel", "model/logits/kernel"} <= {
        name for name, value in whole.items() if value != checkpoint[name].tobytes()
    }


def make_signsgd(weight_decay, scale=1.0):
    def formula(weight, slots, gradient, learning_rate, step, decays):
        rate = learning_rate * scale / tf.sqrt(step)
        return weight * (1.0 - rate * weight_decay) - rate * tf.sign(gradient), slots

    return Optimizer((), formula)


def test_a_users_factory_gets_the_fields_that_it_names(tmp_path, monkeypatch):
    fields = {"name": "", "learning_rate": 0.1, "weight_decay": 0.5, "momentum": 0.9, "clip_norm": 1.0}
    seen = []
    OPTIMIZERS.register("signsgd of a test")(
        lambda weight_decay: seen.append(weight_decay) or make_signsgd(weight_decay)
    )
    for name in ("signsgd of a test", f"{__name__}:make_signsgd"):
        found = find_optimizer(name, fields)
        assert found.digests and found.value.slots == ()
    assert seen == [0.5]
    file = tmp_path / "mine.py"
    file.write_text(
        f"from {__name__} import make_signsgd\n"
        "def make(momentum, **others):\n"
        "    assert others == {'weight_decay': 0.5}\n"
        "    return make_signsgd(momentum)\n"
    )
    found = find_optimizer(f"{file}:make", fields)
    assert found.code.path == file and list(found.digests) == ["mine.py"]


def broken(change):
    """Returns a factory of signsgd whose formula does something else."""

    def make():
        def formula(weight, slots, gradient, learning_rate, step, decays):
            return change(weight, slots, learning_rate * gradient)

        return Optimizer(("momentum",), formula)

    return make


def fails():
    raise ValueError("own\nmore")


calls = []
FAULTS = {  # a word of the message, and a factory
    "Optimizer": lambda: None,
    "'needed'": lambda needed: None,
    "ValueError: own": fails,
    "not a function": 3,
    "Incompatible shapes: [4,3]": broken(lambda w, s, g: (w - tf.reduce_sum(g, -1), s)),
    "float32 [4]": broken(lambda w, s, g: (tf.stack([w - g, w]), s)),
    "float64": broken(lambda w, s, g: (tf.cast(w - g, tf.float64), s)),
    "extra": broken(lambda w, s, g: (w - g, {**s, "extra": g})),
    "none": broken(lambda w, s, g: (w - g, {})),
    "(weight, slots)": broken(lambda w, s, g: w - g),
    "NaN": broken(lambda w, s, g: (w - g / tf.norm(g), s)),  # of a gradient of zeros
    "pure": broken(lambda w, s, g: (w - g + tf.random.uniform(w.shape), s)),
    "pure function": broken(lambda w, s, g: (calls.append(1) or w - g * len(calls), s)),
    "slot momentum": broken(lambda w, s, g: (w - g, {"momentum": tf.reduce_sum(g)})),
    "in_place": lambda: Optimizer(
        (), lambda w, s, g, *_: (w - g, s), in_place=lambda w, s, g, *_: w.assign_sub(2.0 * g)
    ),
    "average": lambda: Optimizer((), lambda w, s, g, *_: (w, s), average="average"),
    "tuple": lambda: Optimizer("momentum", lambda w, s, g, *_: (w, s)),
}


@pytest.mark.parametrize("word", FAULTS)
def test_a_users_optimizer_that_breaks_the_contract_is_refused(word):
    OPTIMIZERS.register("broken")(FAULTS[word])
    with pytest.raises(UsageError) as refused:
        find_optimizer("broken", {"weight_decay": 0.0})
    text = str(refused.value)
    assert text.startswith("config.optimizer.name='broken': ") and "\n" not in text
    assert word in text.partition("The contract:")[0]


def test_a_moving_average_of_an_average_is_refused():
    config = load_recipe("smoke")
    config.optimizer.name = "schedule_free_adamw"
    with pytest.raises(UsageError, match=r"config\.ema\.decay=0\.99.*schedule_free_adamw"):
        make_runtime(config, tf.distribute.OneDeviceStrategy("CPU:0"), num_classes=5)


def test_a_formula_that_only_runs_eagerly_is_refused():
    OPTIMIZERS.register("broken")(broken(lambda w, s, g: (w - g.numpy(), s)))
    with pytest.raises(UsageError, match="numpy"):
        find_optimizer("broken", {})


def test_an_unknown_optimizer_is_rejected_with_the_nearest_name():
    with pytest.raises(UsageError, match=r"config\.optimizer\.name='adamm'.*'adam'.*lars"):
        make_optimizer("adamm")


def test_weight_decay_applies_to_weights_of_two_or_more_dimensions():
    assert [decays_weight(shape) for shape in ((), (4,), (4, 4), (3, 3, 4, 4))] == [False, False, True, True]
