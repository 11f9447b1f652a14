"""Blocks of backbones, and the learning rates of layer-wise decay."""

import keras
import pytest
from keras import layers

from convoy.trainer.models import ModelBundle, build_model
from convoy.trainer.models.blocks import _name_of_block, blocks_of_weights
from convoy.trainer.models.head import split
from convoy.trainer.step.freezing import training_phases


def blocks_by_layer(model: keras.Model) -> dict[str, int]:
    """Returns the number of the block of each layer of the backbone that has weights."""
    backbone = split(model)[0]
    numbers = blocks_of_weights(backbone)
    assert sorted(set(numbers)) == list(range(max(numbers) + 1))
    return {
        weight.path.rpartition("/")[0]: number
        for weight, number in zip(backbone.trainable_variables, numbers, strict=True)
    }


def published(name: str, image_size: int = 32) -> keras.Model:
    """Returns a model of Keras whose variables have no values, which takes less time."""
    with keras.StatelessScope(initialize_variables=False):
        return getattr(keras.applications, name)(weights=None, input_shape=(image_size, image_size, 3), classes=3)


# The number of blocks without the stem, and layers of the stem, the first block and the last one.
QUICK = {
    "ResNet50": (16, "conv1_conv", "conv2_block1_0_conv", "conv5_block3_3_bn"),
    "MobileNet": (13, "conv1", "conv_dw_1", "conv_pw_13"),
    "VGG16": (5, None, "block1_conv1", "block5_conv3"),
}
SLOW = {
    "ConvNeXtTiny": (
        18,
        "convnext_tiny_stem/convnext_tiny_stem_conv",
        "convnext_tiny_stage_0_block_0_pointwise_conv_1",
        "convnext_tiny_stage_3_block_2_layer_scale",
    ),
    "EfficientNetB0": (16, "stem_conv", "block1a_dwconv", "top_conv"),
    "MobileNetV2": (17, "Conv1", "expanded_conv_depthwise", "Conv_1"),
    "MobileNetV3Small": (11, "conv", "expanded_conv_depthwise", "conv_1"),
    "DenseNet121": (58, "conv1_conv", "conv2_block1_1_conv", "conv5_block16_2_conv"),
    "ResNet50V2": (16, "conv1_conv", "conv2_block1_0_conv", "post_bn"),
}


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_blocks_are_those_of_the_architecture(name):
    count, stem, first, last = {**QUICK, **SLOW}[name]
    blocks = blocks_by_layer(published(name))
    assert not stem or blocks[stem] == 0
    assert blocks[first] == (1 if stem else 0) and max(blocks.values()) == blocks[last] == count - (0 if stem else 1)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("batch_normalization_94/gamma", ""),
        ("conv2d_3/kernel", ""),
        ("dense_1/bias", ""),
        ("layer_normalization_2/beta", ""),
        ("convnext_tiny_downsampling_block_1_conv/kernel", ""),
        ("block2_sepconv1_bn/gamma", "block2"),
        ("block35_10_conv/kernel", "block35_10"),
        ("conv_pw_11_bn/gamma", "11"),
        ("separable_conv_1_normal_left1_3/depthwise_kernel", "3"),
        ("adjust_conv_1_reduce_4/kernel", "reduce_4"),
        ("hierarchical_encoder_2_1/mix_ffn/dense_4/kernel", "hierarchical_encoder_2_1"),
        ("encoder/layers_0/layer_scale1/lambda1", "layers_0"),
        ("stage_1/blocks_0/attn/attention_qkv/kernel", "stage_1/blocks_0"),
    ],
)
def test_names_of_blocks(path, name):
    assert _name_of_block(path) == name


def test_blocks_of_the_built_in_models():
    resnet = blocks_by_layer(build_model("resnet", num_classes=3, image_size=32, depth=10, width=8).model)
    assert resnet["stem_conv"] == 0 and resnet["stage1_block1_1_conv"] == resnet["stage1_block1_2_norm"] == 1
    assert resnet["stage4_block1_shortcut_conv"] == max(resnet.values()) == 4
    convnet = blocks_by_layer(build_model("convnet", num_classes=3, image_size=32).model)
    assert sorted(set(convnet.values())) == list(range(8))


def branching() -> keras.Model:
    """A model whose layers have no telling names."""
    inputs = layers.Input((16, 16, 3))
    x = layers.BatchNormalization(name="a_norm")(layers.Conv2D(4, 3, padding="same", name="a")(inputs))
    left = layers.Conv2D(4, 3, padding="same", name="left")(x)
    gate = layers.Dense(4, name="gate")(layers.GlobalAveragePooling2D(keepdims=True)(left))
    right = layers.Conv2D(4, 1, name="right")(x)
    x = layers.Add()([layers.Multiply()([left, gate]), right])
    x = layers.BatchNormalization(name="sum_norm")(x)
    x = layers.Conv2D(5, 3, name="z")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(layers.Dense(6, name="hidden")(x)), name="branching")


def test_without_names_branches_are_one_block():
    expected = {"a": 0, "a_norm": 0, "left": 1, "gate": 1, "right": 1, "sum_norm": 1, "z": 2}
    assert blocks_by_layer(branching()) == expected


@pytest.mark.parametrize("freeze_steps", [0, 2])
def test_each_block_has_the_rate_of_the_next_times_the_decay(freeze_steps):
    model = branching()
    built = ModelBundle(model, lambda pixels: pixels)
    whole, head = training_phases(built, freeze_steps=freeze_steps, backbone_rate=0.4, layer_decay=0.5)
    rates = {
        weight.path.partition("/")[0]: rate for weight, rate in zip(model.trainable_variables, whole.rates, strict=True)
    }
    assert rates["hidden"] == rates["logits"] == 1
    assert rates["z"] == pytest.approx(0.4 * 0.5)
    assert rates["left"] == rates["right"] == rates["gate"] == rates["sum_norm"] == pytest.approx(0.4 * 0.5**2)
    assert rates["a"] == rates["a_norm"] == pytest.approx(0.4 * 0.5**3)
    assert (head is None) == (not freeze_steps) and (not head or set(head.rates) == {1.0})
