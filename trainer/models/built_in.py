"""The baseline CNN, and the convnet derived from it."""

import keras
from keras import layers


def baseline_cnn(num_classes: int, image_size: int) -> keras.Model:
    """Returns the published 42-class model, unchanged except that its softmax is part of the loss.

    11,253,258 parameters at 64x64x3 and 42 classes, 98 % of them in the first dense layer.
    """
    return keras.Sequential(
        [
            layers.Input((image_size, image_size, 3)),
            *_baseline_block(1, 32),
            *_baseline_block(2, 32),
            layers.MaxPooling2D(2, name="pool1"),
            layers.Dropout(0.25, name="drop1"),
            *_baseline_block(3, 64),
            layers.Dropout(0.25, name="drop2"),
            *_baseline_block(4, 128),
            layers.MaxPooling2D(2, name="pool2"),
            layers.Dropout(0.25, name="drop3"),
            layers.Flatten(name="flatten"),
            *_baseline_dense(1, 512),
            *_baseline_dense(2, 128),
            layers.Dense(num_classes, name="logits"),
        ],
        name="seed42",  # part of every variable path, hence of checkpoint keys and weights_sha256: keep
    )


def convnet(num_classes: int, image_size: int, *, dropout: float = 0.2, instance_norm: bool = True) -> keras.Model:
    """Returns a convolutional network for images of any size, derived from `baseline_cnn` to generalize better.

    Convolutions have no bias, normalization comes before ReLU, and global average pooling replaces the dense layer of
    11 million weights. Each stage but the last halves the image; the channels grow to 256.

    With `instance_norm` the first two stages end in instance normalization, which removes brightness, contrast and tint
    of the single image: these differ between cameras and places (Pan et al. 2018, "Two at once: enhancing learning and
    generalization capacities via IBN-Net"). It follows the pooling, where it costs a quarter. All other normalizations
    are batch normalization.

    Args:
      num_classes: 2 or more.
      image_size: side in pixels of the images it is meant for, 8 or more.
      dropout: rate before the last layer, in [0, 1).
      instance_norm: whether the first two stages end in instance normalization.

    Raises:
      ValueError: the images are too small.
    """
    return _convnet(num_classes, image_size, dropout, instance_norm, shortcuts=False)


def residual_convnet(
    num_classes: int, image_size: int, *, dropout: float = 0.2, instance_norm: bool = True
) -> keras.Model:
    """Returns `convnet` with a shortcut around the second convolution of each stage.

    He et al. 2016, "Deep residual learning for image recognition". Arguments and errors are those of `convnet`.
    """
    return _convnet(num_classes, image_size, dropout, instance_norm, shortcuts=True)


def _convnet(num_classes: int, image_size: int, dropout: float, instance_norm: bool, *, shortcuts: bool) -> keras.Model:
    if image_size < 8:
        raise ValueError("three stages halve the image, so config.image_size must be at least 8.")
    inputs = x = layers.Input((None, None, 3))
    for stage, filters in enumerate((32, 64, 128, 256), start=1):
        x = _conv(x, filters, f"{stage}a")
        x = layers.BatchNormalization(momentum=0.9, name=f"norm{stage}a")(x)
        x = layers.Activation("relu", name=f"relu{stage}a")(x)
        y = _conv(x, filters, f"{stage}b")
        per_image = instance_norm and stage <= 2
        if shortcuts or not per_image:
            y = layers.BatchNormalization(momentum=0.9, name=f"norm{stage}b")(y)
        x = layers.Add(name=f"add{stage}")([x, y]) if shortcuts else y
        if per_image:
            x = layers.MaxPooling2D(2, name=f"pool{stage}")(x)
            # The names are in variable paths, and so in checkpoint keys: do not change them.
            x = layers.GroupNormalization(groups=-1, name=f"instance_norm{stage}" if shortcuts else f"norm{stage}b")(x)
        x = layers.Activation("relu", name=f"relu{stage}b")(x)
        if not per_image and stage < 4:
            x = layers.MaxPooling2D(2, name=f"pool{stage}")(x)
    x = layers.GlobalAveragePooling2D(name="average")(x)
    x = layers.Dropout(dropout, name="drop")(x) if dropout > 0 else x
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="convnet")


def _baseline_block(number: int, filters: int) -> list[keras.Layer]:
    return [
        layers.Conv2D(filters, 3, name=f"conv{number}"),
        layers.Activation("relu", name=f"relu{number}"),
        layers.BatchNormalization(name=f"norm{number}"),
    ]


def _baseline_dense(number: int, units: int) -> list[keras.Layer]:
    return [
        layers.Dense(units, name=f"dense{number}"),
        layers.Activation("relu", name=f"dense{number}_relu"),
        layers.BatchNormalization(name=f"dense{number}_norm"),
        layers.Dropout(0.5, name=f"dense{number}_drop"),
    ]


def _conv(x: keras.KerasTensor, filters: int, name: str) -> keras.KerasTensor:
    return layers.Conv2D(
        filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"conv{name}"
    )(x)
