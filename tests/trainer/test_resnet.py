import keras
import numpy as np
import pytest
import tensorflow as tf

from convoy.core.errors import UsageError
from convoy.trainer.models import build_model, resnet

CLASSES = 7


@pytest.fixture(autouse=True)
def float32_policy():
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")


def small(image_size=32, depth=10, **options):
    return resnet(CLASSES, image_size, depth=depth, width=8, **options)


def shapes_of(model):
    return {v.path: tuple(v.shape) for v in model.variables if v.dtype == "float32"}


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_689_512), (50, 25_557_032)])
def test_the_classic_stem_gives_the_published_number_of_parameters(depth, parameters):
    model = resnet(1000, 224, depth=depth, classic_stem=True)
    assert sum(v.shape.num_elements() for v in (w.value for w in model.trainable_variables)) == parameters


@pytest.mark.parametrize("depth", [10, 14, 34, 101])
def test_the_depth_counts_the_layers_with_weights_outside_of_shortcuts(depth):
    model = small(depth=depth)
    counted = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense) and "shortcut" not in layer.name
    ]
    assert len(counted) == depth and model.name == f"resnet{depth}"


@pytest.mark.parametrize(("size", "last_stage"), [(32, 4), (64, 8), (65, 5), (128, 8), (130, 5), (224, 7)])
def test_the_last_stage_sees_at_most_8x8_pixels(size, last_stage):
    model = small(size)
    probe = keras.Model(model.input, [model.get_layer("average").input, model.output])
    features, logits = probe.compute_output_shape((2, size, size, 3))
    assert features == (2, last_stage, last_stage, 64) and logits == (2, CLASSES)


def test_only_the_weights_of_the_stem_depend_on_the_image_size():
    assert shapes_of(small(32)) == shapes_of(small(64)) and shapes_of(small(96)) == shapes_of(small(224))
    different = shapes_of(small(64)).items() ^ shapes_of(small(65)).items()
    assert different and all(path.startswith("stem") for path, _ in different)


@pytest.mark.parametrize("name", ["resnet", "convnet"])
def test_one_model_accepts_images_of_several_sizes(name):
    options = {"depth": 10, "width": 8} if name == "resnet" else {}
    built = build_model(name, num_classes=CLASSES, image_size=32, **options)
    weights = [w.value for w in built.model.trainable_variables]
    others = [v.value for v in built.model.non_trainable_variables]
    for size in (24, 32, 45):
        logits, _ = built.model.stateless_call(weights, others, tf.ones([2, size, size, 3]), training=False)
        assert logits.shape == (2, CLASSES)


def test_the_drop_rate_rises_with_the_depth():
    model = small(depth=18, stochastic_depth=0.4)
    rates = [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert rates == pytest.approx([0.4 * number / 8 for number in range(1, 9)])


def test_blocks_are_dropped_per_image_and_the_rest_is_scaled_up():
    model = build_model("resnet", num_classes=CLASSES, image_size=32, depth=10, width=8, stochastic_depth=0.5).model
    norm, drop = model.get_layer("stage4_block1_2_norm"), model.get_layer("stage4_block1_left_out")
    x = tf.constant(np.random.default_rng(0).random((64, 32, 32, 3)), tf.float32)
    before, after = keras.Model(model.input, [norm.output, drop.output])(x, training=True)
    ratios = {image: np.unique(np.round(after[image] / before[image], 4)).tolist() for image in range(64)}
    assert all(ratio in ([0.0], [2.0]) for ratio in ratios.values())
    assert 15 < sum(ratio == [0.0] for ratio in ratios.values()) < 49
    assert np.array_equal(*keras.Model(model.input, [norm.output, drop.output])(x, training=False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 20}, r"config\.model\.depth=20: .*10, 14, 18, 26, 34, 50, 101, 152"),
        ({"width": 9}, r"config\.model\.width=9: "),
    ],
)
def test_unsupported_depths_and_widths_are_rejected(options, message):
    with pytest.raises(UsageError, match=message):
        build_model("resnet", num_classes=CLASSES, image_size=32, **options)


@pytest.mark.parametrize("option", ["depth", "width", "stochastic_depth"])
def test_options_of_resnet_are_rejected_for_other_models(option):
    with pytest.raises(UsageError, match=rf"config\.model\.{option}=0\.5: .*'convnet'.*resnet"):
        build_model("convnet", num_classes=CLASSES, image_size=32, **{option: 0.5})
