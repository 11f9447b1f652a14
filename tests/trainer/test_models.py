import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from convoy.core.errors import DataError, UsageError
from convoy.trainer import models
from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from convoy.trainer.models import build_model
from convoy.trainer.session.weights import weights_file
from convoy.trainer.tf_compat.layers import ByteDropout, FusedBatchNormalization

CLASSES, SIZE = 42, 32


@pytest.fixture(autouse=True)
def float32_policy():
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")


def published_model(image_size: int, num_classes: int, dropout: bool = True) -> keras.Sequential:
    """Returns the 42-class model in Keras' own layers, as published, but without the softmax."""
    layers = keras.layers

    def rate(published):
        return published if dropout else 0.0

    return keras.Sequential(
        [
            layers.Input((image_size, image_size, 3)),
            layers.Conv2D(32, (3, 3)),
            layers.Activation("relu"),
            layers.BatchNormalization(),
            layers.Conv2D(32, (3, 3)),
            layers.Activation("relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(pool_size=(2, 2)),
            layers.Dropout(rate(0.25)),
            layers.Conv2D(64, (3, 3)),
            layers.Activation("relu"),
            layers.BatchNormalization(),
            layers.Dropout(rate(0.25)),
            layers.Conv2D(128, (3, 3)),
            layers.Activation("relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(pool_size=(2, 2)),
            layers.Dropout(rate(0.25)),
            layers.Flatten(),
            layers.Dense(512),
            layers.Activation("relu"),
            layers.BatchNormalization(),
            layers.Dropout(rate(0.5)),
            layers.Dense(128),
            layers.Activation("relu"),
            layers.BatchNormalization(),
            layers.Dropout(rate(0.5)),
            layers.Dense(num_classes),
        ]
    )


def images(count: int = 8, size: int = SIZE) -> tf.Tensor:
    return tf.constant(np.random.default_rng(1).random((count, size, size, 3)), tf.float32)


def weights_of(model: keras.Model) -> list[np.ndarray]:
    """Returns all weights and statistics, without the seed states of dropout."""
    return [v.numpy() for v in model.variables if v.dtype == "float32"]


def set_weights_of(model: keras.Model, values: list[np.ndarray]) -> None:
    for variable, value in zip([v for v in model.variables if v.dtype == "float32"], values, strict=True):
        variable.assign(value)


@pytest.fixture(scope="module")
def baseline_cnn():
    keras.utils.set_random_seed(0)
    model = build_model("baseline_cnn", num_classes=CLASSES, image_size=SIZE).model
    # Initial values of 0 and 1 in batch norm would hide errors.
    random = np.random.default_rng(0)
    for variable in model.variables:
        if variable.name in ("gamma", "moving_variance", "moving_mean", "beta"):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
    return model


def test_baseline_cnn_has_the_published_number_of_parameters():
    assert build_model("baseline_cnn", num_classes=42, image_size=64).model.count_params() == 11_253_258
    assert published_model(64, 42).count_params() == 11_253_258


def test_the_variable_paths_of_baseline_cnn_are_those_of_earlier_checkpoints(baseline_cnn):
    paths = [v.path for v in baseline_cnn.variables if v.dtype == "float32"]
    layers = [*(f"{kind}{number}" for number in range(1, 5) for kind in ("conv", "norm"))]
    layers += [*(f"dense{number}{suffix}" for number in (1, 2) for suffix in ("", "_norm")), "logits"]
    variables = {True: ("gamma", "beta", "moving_mean", "moving_variance"), False: ("kernel", "bias")}
    assert paths == [f"seed42/{layer}/{name}" for layer in layers for name in variables["norm" in layer]]


def test_baseline_cnn_equals_the_published_model_in_inference(baseline_cnn):
    published = published_model(SIZE, CLASSES)
    set_weights_of(published, weights_of(baseline_cnn))
    np.testing.assert_allclose(baseline_cnn(images()), published(images()), rtol=1e-4, atol=1e-4)


def test_baseline_cnn_has_the_published_layers_and_dropout_rates(baseline_cnn):
    published = published_model(SIZE, CLASSES)
    ours_for = {"BatchNormalization": "FusedBatchNormalization", "Dropout": "ByteDropout"}
    names = [type(layer).__name__ for layer in published.layers]
    assert [type(layer).__name__ for layer in baseline_cnn.layers] == [ours_for.get(name, name) for name in names]
    for own, other in zip(baseline_cnn.layers, published.layers, strict=True):
        own_config, other_config = own.get_config(), other.get_config()
        for config in (own_config, other_config):
            config.pop("name")
        assert own_config == other_config


def test_baseline_cnn_trains_like_the_published_model_without_dropout(baseline_cnn):
    """Compares outputs, statistics and all gradients of one training step.

    Both models get a smooth activation: with ReLU, rounding around 0 decides about the gradient of a whole unit. The
    test of the layers covers the activation itself.
    """
    inputs, labels = images(16), tf.constant(np.arange(16) * 2, tf.int32)
    ours = keras.Sequential(
        [
            keras.layers.Activation("silu") if isinstance(layer, keras.layers.Activation) else layer
            for layer in baseline_cnn.layers
            if not isinstance(layer, ByteDropout)
        ]
    )
    ours.build((None, SIZE, SIZE, 3))
    published = published_model(SIZE, CLASSES, dropout=False)
    for layer in published.layers:
        if isinstance(layer, keras.layers.Activation):
            layer.activation = keras.activations.silu
    before = weights_of(baseline_cnn)
    set_weights_of(published, before)

    def step(model):
        with tf.GradientTape() as tape:
            logits = model(inputs, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        return [logits, *tape.gradient(loss, [v.value for v in model.trainable_variables])]

    own, other = step(ours), step(published)
    statistics = weights_of(ours), weights_of(published)
    set_weights_of(baseline_cnn, before)
    names = ["logits", *(v.path for v in baseline_cnn.trainable_variables)]
    # The gradient of a bias before a normalization is 0 up to rounding, so the tolerance follows the largest gradient.
    largest = max(np.abs(gradient).max() for gradient in other[1:])
    for name, a, b in zip(names, own, other, strict=True):
        scale = max(np.abs(b).max(), 1e-2 * largest)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3 * scale, err_msg=name)
    for a, b in zip(*statistics, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["baseline_cnn", "convnet", "keras_applications:MobileNetV2"])
def test_a_model_returns_logits_for_each_class(name):
    built = build_model(name, num_classes=7, image_size=SIZE)
    logits = built.model(built.scale_pixels(images() * 255))
    assert logits.shape == (8, 7) and logits.dtype == tf.float32
    assert np.abs(np.sum(logits, 1) - 1).max() > 1e-3  # no softmax


@pytest.mark.parametrize("name", ["baseline_cnn", "convnet", "resnet", "keras_applications:MobileNetV2"])
def test_variable_paths_are_unique(name):
    paths = [v.path for v in build_model(name, num_classes=3, image_size=SIZE).model.variables]
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("name", ["baseline_cnn", "convnet", "resnet"])
def test_variable_paths_do_not_depend_on_models_built_before(name):
    first, second = (build_model(name, num_classes=3, image_size=SIZE).model for _ in range(2))

    def saved_paths(model):  # seed states are not saved
        return [v.path for v in model.variables if v.dtype == "float32"]

    assert saved_paths(first) == saved_paths(second)


def test_convnet_has_no_flatten_and_no_bias_before_a_normalization():
    model = build_model("convnet", num_classes=42, image_size=64).model
    kinds = [type(layer) for layer in model.layers]
    assert keras.layers.Flatten not in kinds and keras.layers.GlobalAveragePooling2D in kinds
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert len(convolutions) == 8 and not any(layer.use_bias for layer in convolutions)
    assert kinds.count(FusedBatchNormalization) == 6 and kinds.count(keras.layers.GroupNormalization) == 2
    assert model.count_params() < 1_300_000


@pytest.mark.parametrize(
    ("make", "options", "layers"),
    [
        (models.convnet, {}, ["norm1b", "norm2b"]),
        (models.convnet, {"instance_norm": False}, []),
        (models.residual_convnet, {}, ["instance_norm1", "instance_norm2"]),
        (models.resnet, {"width": 8, "instance_norm": True}, ["stage2_block2_instance_norm"]),
        (models.resnet, {"width": 8}, []),
    ],
)
def test_early_stages_end_in_instance_normalization(make, options, layers):
    model = make(3, SIZE, **options)
    found = [layer for layer in model.layers if isinstance(layer, keras.layers.GroupNormalization)]
    assert [layer.name for layer in found] == layers
    for layer in found:
        values = keras.Model(model.input, layer.output)(images() * [[[[0.1, 1.0, 3.0]]]]).numpy()
        np.testing.assert_allclose(values.mean((1, 2)), 0.0, atol=1e-4)
        # Below 1, because of the epsilon of 0.001.
        assert values.std((1, 2)).min() > 0.5 and values.std((1, 2)).max() < 1.0001


def test_the_size_of_convnet_does_not_depend_on_the_image_size():
    small, large = (build_model("convnet", num_classes=9, image_size=size).model for size in (16, 128))
    assert small.count_params() == large.count_params()


@pytest.mark.parametrize(("setting", "convnets", "resnets"), [("auto", 2, 0), ("on", 2, 1), ("off", 0, 0)])
def test_instance_normalization_can_be_set_or_left_to_the_model(setting, convnets, resnets):
    for name, expected in (("convnet", convnets), ("resnet", resnets)):
        model = build_model(name, num_classes=3, image_size=SIZE, instance_norm=setting).model
        kinds = [type(layer) for layer in model.layers]
        assert kinds.count(keras.layers.GroupNormalization) == expected


def test_a_shortcut_leads_around_the_second_convolution_of_each_stage():
    plain, model = (make(3, SIZE, instance_norm=False) for make in (models.convnet, models.residual_convnet))
    assert model.count_params() == plain.count_params()
    for stage in range(1, 5):
        add = model.get_layer(f"add{stage}")
        model.get_layer(f"norm{stage}b").gamma.assign(tf.zeros_like(model.get_layer(f"norm{stage}b").gamma))
        before, after = keras.Model(model.input, [add.input[0], add.output])(images())
        np.testing.assert_array_equal(before, after)  # nothing but the shortcut is left


@pytest.mark.parametrize("option", [{"dropout": 0.1}, {"instance_norm": "off"}])
def test_options_of_convnet_and_resnet_are_rejected_for_other_models(option):
    ((name, value),) = option.items()
    with pytest.raises(UsageError, match=rf"config\.model\.{name}={value}: .*'baseline_cnn'.*convnet.*resnet"):
        build_model("baseline_cnn", num_classes=3, image_size=64, **option)


@pytest.mark.parametrize(("dropout", "rates"), [(-1.0, [0.2]), (0.4, [0.4]), (0.0, [])])
def test_the_dropout_of_convnet_can_be_set_or_removed(dropout, rates):
    model = build_model("convnet", num_classes=3, image_size=SIZE, dropout=dropout).model
    assert [layer.rate for layer in model.layers if isinstance(layer, ByteDropout)] == rates


@pytest.mark.slow
def test_a_keras_application_gets_the_fast_layers_and_its_own_scaling():
    built = build_model("keras_applications:MobileNetV2", num_classes=3, image_size=SIZE)
    kinds = {type(layer) for layer in built.model.layers}
    assert FusedBatchNormalization in kinds and keras.layers.BatchNormalization not in kinds
    # MobileNet takes [-1, 1], ResNet50 BGR minus ImageNet's mean; EfficientNet scales inside.
    pixels = tf.constant([[[[255.0, 0.0, 127.5]]]])
    assert built.scale_pixels(pixels).numpy().ravel().tolist() == [1.0, -1.0, 0.0]
    resnet = build_model("keras_applications:ResNet50", num_classes=3, image_size=SIZE)
    np.testing.assert_allclose(resnet.scale_pixels(pixels)[0, 0, 0], [127.5 - 103.939, -116.779, 255 - 123.68], 1e-5)


@pytest.mark.parametrize("name", ["baseline_cnn", "convnet", "resnet"])
def test_built_in_models_scale_pixels_to_0_to_1(name):
    built = build_model(name, num_classes=3, image_size=SIZE)
    assert built.scale_pixels(tf.constant([0.0, 255.0])).numpy().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_in_mixed_precision_weights_and_statistics_stay_float32(policy):
    keras.config.set_dtype_policy(policy)
    model = build_model("convnet", num_classes=3, image_size=SIZE).model
    assert model.compute_dtype == policy.removeprefix("mixed_")
    assert {v.dtype for v in model.variables if "seed" not in v.path} == {"float32"}


@pytest.mark.parametrize(
    ("name", "suggestions"),
    [
        ("baseline_cn", ["'baseline_cnn'"]),
        ("conv_net", ["'convnet'"]),
        ("keras_applications:ResNet5", ["'ResNet50'"]),
        ("keras_applications:resnet50", ["'ResNet50'"]),
        ("qqqq", ["baseline_cnn", "convnet", "resnet", "keras_applications:NAME", "FILE.py:NAME"]),
    ],
)
def test_an_unknown_model_is_rejected_with_the_nearest_names(name, suggestions):
    with pytest.raises(UsageError, match=rf"^config\.model\.name='{name}'") as caught:
        build_model(name, num_classes=3, image_size=SIZE)
    assert all(suggestion in str(caught.value) for suggestion in suggestions)


@pytest.mark.parametrize(
    ("name", "size"), [("baseline_cnn", 8), ("keras_applications:InceptionV3", 32), ("convnet", 4)]
)
def test_images_too_small_for_the_model_are_rejected(name, size):
    with pytest.raises(UsageError, match=rf"config\.model\.name='{name}'.*config\.image_size={size}\b"):
        build_model(name, num_classes=3, image_size=size)


def test_a_weights_file_is_loaded(tmp_path):
    path = tmp_path / "convnet.weights.h5"
    saved = build_model("convnet", num_classes=3, image_size=SIZE).model
    saved.save_weights(path)
    loaded = build_model("convnet", num_classes=3, image_size=SIZE, weights=str(path)).model
    for one, other in zip(weights_of(loaded), weights_of(saved), strict=True):
        assert np.array_equal(one, other)
    fresh = build_model("convnet", num_classes=3, image_size=SIZE).model
    assert not np.array_equal(weights_of(fresh)[0], weights_of(saved)[0])


def test_a_weights_file_from_keras_own_layers_is_loaded(tmp_path):
    path = tmp_path / "seed.weights.h5"
    saved = models.baseline_cnn(num_classes=3, image_size=SIZE)
    saved.save_weights(path)
    loaded = build_model("baseline_cnn", num_classes=3, image_size=SIZE, weights=str(path)).model
    for one, other in zip(weights_of(loaded), weights_of(saved), strict=True):
        assert np.array_equal(one, other)


def test_a_weights_file_of_another_model_is_rejected(tmp_path):
    path = tmp_path / "other.weights.h5"
    build_model("convnet", num_classes=4, image_size=SIZE).model.save_weights(path)
    with pytest.raises(DataError, match=r"config\.model\.weights=.*other\.weights\.h5.*'seed42'"):
        build_model("baseline_cnn", num_classes=3, image_size=SIZE, weights=str(path))


def test_a_weights_file_for_other_classes_loads_all_but_the_last_layer(tmp_path):
    path = tmp_path / "other.weights.h5"
    saved = build_model("convnet", num_classes=4, image_size=SIZE)
    saved.model.save_weights(path)
    built = build_model("convnet", num_classes=3, image_size=SIZE, weights=str(path))
    for one, other in zip(weights_of(built.model)[:-2], weights_of(saved.model)[:-2], strict=True):
        assert np.array_equal(one, other)
    assert saved.loaded == ""
    assert "36 of 36" in built.loaded and "0 of 2" in built.loaded and str(path) in built.loaded


@pytest.mark.parametrize("averaged", [False, True])
def test_weights_of_a_run_or_of_one_of_its_checkpoints_are_loaded(tmp_path, averaged):
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    store.folder.mkdir(parents=True)
    with pytest.raises(DataError, match=r"config\.model\.weights=.*no checkpoints"):
        weights_file(str(tmp_path / "run"))
    for step, score in ((10, 0.9), (20, 0.5)):
        model = build_model("convnet", num_classes=4, image_size=SIZE).model
        values = {f"model/{v.path}": v.numpy() + step for v in model.variables}
        averages = {f"average/{v.path}": v.numpy() - step for v in model.trainable_variables} if averaged else {}
        store.save(values | averages, step=step, metadata={"step": step}, score=score)
        for weights in (tmp_path / "run", store.folder / f"step-{step:09}.npz"):
            file = weights_file(str(weights))
            built = build_model("convnet", num_classes=3, image_size=SIZE, weights=file)
            assert "36 of 36" in built.loaded and "0 of 2" in built.loaded
            best, _ = store.load(10 if weights.is_dir() else step)
            kernel = built.model.trainable_variables[0]
            assert np.array_equal(kernel, best[f"{'average' if averaged else 'model'}/{kernel.path}"])


def test_of_a_cross_validation_the_weights_are_those_of_a_fold(tmp_path):
    fold = tmp_path / "folds" / "fold-1"
    (fold / "checkpoints").mkdir(parents=True)
    (fold / "dataset.json").write_text('{"fold": 1, "folds": 3}')
    with pytest.raises(DataError, match=re.escape(f"{fold}.")):
        weights_file(str(tmp_path / "folds"))
    with pytest.raises(DataError, match="no checkpoints"):
        weights_file(str(fold))


def test_the_weights_of_a_preset_are_no_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "preset").mkdir()
    assert weights_file("preset") == "preset"
    with pytest.raises(DataError, match="no checkpoints"):
        weights_file("./preset")


def test_a_missing_or_damaged_weights_file_is_rejected(tmp_path):
    with pytest.raises(DataError, match=r"config\.model\.weights=.*none\.weights\.h5"):
        build_model("convnet", num_classes=3, image_size=SIZE, weights=str(tmp_path / "none.weights.h5"))
    damaged = tmp_path / "damaged.weights.h5"
    damaged.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(DataError, match=r"config\.model\.weights=.*damaged\.weights\.h5"):
        build_model("convnet", num_classes=3, image_size=SIZE, weights=str(damaged))


def test_a_weights_file_in_an_unknown_format_is_rejected(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"something else")
    with pytest.raises(DataError, match=r"config\.model\.weights=.*weights\.bin"):
        build_model("convnet", num_classes=3, image_size=SIZE, weights=str(path))
