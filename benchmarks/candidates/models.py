"""Architectures that were compared with `convnet`, at about its cost per image or less.

    convoy train --config.model.name=benchmarks/candidates/models.py:residual --data=data --workdir=run

`results.jsonl` has the runs of each.
"""

from typing import Any

import keras
from keras import layers


def residual(num_classes: int, image_size: int, **options: Any) -> keras.Model:  # noqa: ANN401 (of `_stages`)
    """Returns `convnet` with a shortcut around the second convolution of each stage: now `residual_convnet`."""
    del image_size
    return _stages(num_classes, **options)


def residual_se(num_classes: int, image_size: int) -> keras.Model:
    """Returns `residual` with squeeze-and-excitation in the last two stages."""
    return residual(num_classes, image_size, excited=(3, 4))


def strided(num_classes: int, image_size: int) -> keras.Model:
    """Returns `residual` whose first convolution halves the image, which is one pooling less."""
    return residual(num_classes, image_size, stem_stride=2, pools=(1, 2))


def slim(num_classes: int, image_size: int) -> keras.Model:
    """Returns `residual` with half as many channels in the first stage, which is the slowest."""
    return residual(num_classes, image_size, filters=(16, 64, 128, 256))


def _stages(
    num_classes: int,
    *,
    filters: tuple[int, ...] = (32, 64, 128, 256),
    stem_stride: int = 1,
    pools: tuple[int, ...] = (1, 2, 3),
    excited: tuple[int, ...] = (),
    blocks: tuple[int, ...] = (1, 1, 1, 1),
    dropout: float = 0.2,
) -> keras.Model:
    inputs = x = layers.Input((None, None, 3))
    for stage, width in enumerate(filters, start=1):
        x = _conv(x, width, f"{stage}a", stride=stem_stride if stage == 1 else 1)
        x = layers.BatchNormalization(momentum=0.9, name=f"norm{stage}a")(x)
        x = layers.Activation("relu", name=f"relu{stage}a")(x)
        for block in range(blocks[stage - 1]):
            name = f"{stage}{'bcdef'[block]}"
            y = layers.BatchNormalization(momentum=0.9, name=f"norm{name}")(_conv(x, width, name))
            y = _excited(y, width, name) if stage in excited else y
            x = layers.Add(name=f"add{name}")([x, y])
            if block + 1 == blocks[stage - 1] and stage in pools:
                x = layers.MaxPooling2D(2, name=f"pool{stage}")(x)
            if block + 1 == blocks[stage - 1] and stage <= 2:
                x = layers.GroupNormalization(groups=-1, name=f"instance_norm{stage}")(x)
            x = layers.Activation("relu", name=f"relu{name}")(x)
    x = layers.GlobalAveragePooling2D(name="average")(x)
    x = layers.Dropout(dropout, name="drop")(x)
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="residual_convnet")


def _conv(x: keras.KerasTensor, filters: int, name: str, stride: int = 1) -> keras.KerasTensor:
    return layers.Conv2D(
        filters, 3, strides=stride, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"conv{name}"
    )(x)


def _excited(x: keras.KerasTensor, width: int, name: str) -> keras.KerasTensor:
    y = layers.GlobalAveragePooling2D(keepdims=True, name=f"squeeze{name}")(x)
    y = layers.Dense(width // 8, activation="relu", name=f"reduce{name}")(y)
    y = layers.Dense(width, activation="sigmoid", name=f"excite{name}")(y)
    return layers.Multiply(name=f"scale{name}")([x, y])
