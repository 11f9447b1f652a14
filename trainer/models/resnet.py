"""Residual networks (He et al. 2016) with the small changes that became their usual shape.

    model = resnet(num_classes=42, image_size=64, depth=18, width=32, stochastic_depth=0.1)

- So that no pixel is left out, a bottleneck's stride is in its 3x3 convolution ("v1.5"), and the way around a block
  that halves the image takes means of 2x2 pixels before its 1x1 convolution (He et al. 2019, "Bag of tricks").
- Scales of normalizations all start at 1. With each block's last at 0 (Goyal et al. 2017) a short run gets less far:
  after 200 steps of AdamW at 32 pixels 35 % of a sample set's training images (seed 1), so 73 %.
- Stochastic depth: in training a block is left out for an image at random, the more often the deeper (Huang et al.
  2016).
- What comes first follows the image's size, so that the last stage always sees at most 8x8 pixels up to 256: one 3x3
  convolution up to 64 pixels; above, three of them, the first with stride 2 (ResNet-C); above 128, pooling with
  stride 2 behind them. Pooling has no weights, so there are two kinds of models by weights: up to 64 pixels, and above.
"""

import keras
from keras import layers

from convoy.core.errors import UsageError

# Depth: blocks of each of the four stages. Two convolutions a basic block, three a bottleneck, and two layers more.
_BASIC = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_BOTTLENECK = {14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
DEPTHS = tuple(sorted(_BASIC | _BOTTLENECK))
_EXPANSION = 4  # of channels, at a bottleneck's end
_NORM_MOMENTUM = 0.9


def resnet(
    num_classes: int,
    image_size: int,
    *,
    dropout: float = 0.0,
    depth: int = 18,
    width: int = 64,
    stochastic_depth: float = 0.0,
    instance_norm: bool = False,
    classic_stem: bool = False,
) -> keras.Model:
    """Returns a residual network, for images of any size.

    Args:
      num_classes: 2 or more.
      image_size: side in pixels that it is meant for; chooses what comes first.
      dropout: rate before the last layer, in [0, 1).
      depth: layers with weights on the way: one of `DEPTHS`.
      width: channels of the first stage, an even number; each further stage has twice as many.
      stochastic_depth: how often the last block is left out, in [0, 1); block `l` of `L` is `l / L` times as often.
      instance_norm: whether the second stage ends in instance normalization, for images from other cameras and places
        than the training images'. IBN-b of Pan et al. 2018 (IBN-Net) has it behind the first stage as well, where it
        costs twice that.
      classic_stem: whether a 7x7 convolution with stride 2 and pooling come first, as in 2016; to compare with others.

    Raises:
      UsageError: another depth, or an odd width.
    """
    if depth not in DEPTHS:
        raise UsageError(f"config.model.depth={depth}: give one of {', '.join(map(str, DEPTHS))}.")
    if width % 2 or width < 2:
        raise UsageError(f"config.model.width={width}: give an even number, 2 or more.")
    counts = _BASIC.get(depth) or _BOTTLENECK[depth]
    inputs = layers.Input((None, None, 3))
    x = _classic_stem(inputs, width) if classic_stem else _stem(inputs, width, image_size)
    number = 0
    for stage, count in enumerate(counts, start=1):
        for block in range(1, count + 1):
            number += 1
            x = _residual_block(
                x,
                width * 2 ** (stage - 1),
                stride=2 if stage > 1 and block == 1 else 1,
                is_bottleneck=depth in _BOTTLENECK,
                left_out=stochastic_depth * number / sum(counts),
                instance_norm=instance_norm and stage == 2 and block == count,
                name=f"stage{stage}_block{block}",
            )
    x = layers.GlobalAveragePooling2D(name="average")(x)
    x = layers.Dropout(dropout, name="drop")(x) if dropout > 0 else x
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name=f"resnet{depth}")


def _stem(x: keras.KerasTensor, width: int, image_size: int) -> keras.KerasTensor:
    if image_size <= 64:
        return _relu(_conv_norm(x, width, 3, name="stem"), "stem")
    for number, (channels, stride) in enumerate([(width // 2, 2), (width // 2, 1), (width, 1)], start=1):
        x = _relu(_conv_norm(x, channels, 3, stride=stride, name=f"stem{number}"), f"stem{number}")
    return layers.MaxPooling2D(3, strides=2, padding="same", name="stem_pool")(x) if image_size > 128 else x


def _classic_stem(x: keras.KerasTensor, width: int) -> keras.KerasTensor:
    x = _relu(_conv_norm(x, width, 7, stride=2, name="stem"), "stem")
    return layers.MaxPooling2D(3, strides=2, padding="same", name="stem_pool")(x)


def _residual_block(
    x: keras.KerasTensor,
    width: int,
    *,
    stride: int,
    is_bottleneck: bool,
    left_out: float,
    instance_norm: bool,
    name: str,
) -> keras.KerasTensor:
    channels = width * _EXPANSION if is_bottleneck else width
    shortcut = x
    if stride > 1:
        shortcut = layers.AveragePooling2D(stride, padding="same", name=f"{name}_shortcut_pool")(shortcut)
    if x.shape[-1] != channels:
        shortcut = _conv_norm(shortcut, channels, 1, name=f"{name}_shortcut")
    # (channels, size, stride) of each convolution
    convolutions = [(width, 3, stride), (width, 3, 1)]
    if is_bottleneck:
        convolutions = [(width, 1, 1), (width, 3, stride), (channels, 1, 1)]
    for number, (filters, size, its_stride) in enumerate(convolutions, start=1):
        is_last = number == len(convolutions)
        x = _conv_norm(x, filters, size, stride=its_stride, name=f"{name}_{number}")
        x = x if is_last else _relu(x, f"{name}_{number}")
    if left_out:
        x = layers.Dropout(left_out, noise_shape=(None, 1, 1, 1), name=f"{name}_left_out")(x)
    x = layers.Add(name=f"{name}_add")([x, shortcut])
    x = layers.GroupNormalization(groups=-1, name=f"{name}_instance_norm")(x) if instance_norm else x
    return _relu(x, name)


def _conv_norm(x: keras.KerasTensor, filters: int, size: int, *, name: str, stride: int = 1) -> keras.KerasTensor:
    x = layers.Conv2D(
        filters,
        size,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    return layers.BatchNormalization(momentum=_NORM_MOMENTUM, name=f"{name}_norm")(x)


def _relu(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return layers.Activation("relu", name=f"{name}_relu")(x)
