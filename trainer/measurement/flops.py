"""FLOPs of a model and peak FLOP/s of a device: their ratio is the model FLOPs utilization (MFU).

training_flops(model, [32, 64, 64, 3])                 # FLOPs per image of such a batch
measured_peak("float32")                               # FLOP/s of a matrix product on this process's first device

The peaks of known GPUs are in `peaks`. A multiply-add counts as two FLOPs. Only convolutions and matrix products count;
normalization, activations, pooling, augmentation, the optimizer and the reduction do not. The count is thus a lower
bound of what a step computes, as in Chowdhery et al. 2022, "PaLM", appendix B.
"""

import math
import time
from collections.abc import Sequence

import keras
import tensorflow as tf

from convoy.trainer.tf_compat.internals import operations_of

# Side of the matrices and number of products in a row: small products take a GPU less time than their start.
_GEMMS = {"GPU": (8192, 20), "CPU": (2048, 4)}
_GEMM_SECONDS = 0.5


def training_flops(model: keras.Model, batch_shape: Sequence[int]) -> int:
    """Returns the FLOPs of the forward and backward pass per image.

    Each product of the forward pass takes two in the backward pass, one for the gradient of the weights and one for
    that of the input; the first layer needs no gradient of its input. Operations inside loops are not counted.

    Args:
      model: a built model.
      batch_shape: shape of its input, [batch, height, width, 3].
    """
    variables = [[v.value for v in group] for group in (model.trainable_variables, model.non_trainable_variables)]
    images = tf.TensorSpec(batch_shape, model.compute_dtype)
    traced = tf.function(lambda images: model.stateless_call(*variables, images, training=False)[0], autograph=False)
    graph = traced.get_concrete_function(images).graph
    forward = [count for operation in operations_of(graph) if (count := _products(operation))]
    return (3 * sum(forward) - sum(forward[:1])) // batch_shape[0]


def _products(operation: tf.Operation) -> int:
    """Returns the FLOPs of a convolution or matrix product; 0 for other operations and for unknown shapes."""
    if not all(tensor.shape.is_fully_defined() for tensor in (*operation.inputs, *operation.outputs)):
        return 0
    if operation.type in ("Conv2D", "DepthwiseConv2dNative", "Conv3D"):
        *window, inputs, outputs = operation.inputs[1].shape
        summed = math.prod(window) * (1 if operation.type == "DepthwiseConv2dNative" else inputs)
    elif operation.type == "MatMul":
        summed = operation.inputs[0].shape[0 if operation.get_attr("transpose_a") else 1]
    elif operation.type in ("BatchMatMulV2", "BatchMatMulV3"):
        summed = operation.inputs[0].shape[-2 if operation.get_attr("adj_x") else -1]
    elif operation.type == "Einsum" and b"." not in operation.get_attr("equation"):
        inputs, output = operation.get_attr("equation").decode().split("->")
        sides: dict[str, int] = {}
        for labels, tensor in zip(inputs.split(","), operation.inputs, strict=True):
            sides |= zip(labels, tensor.shape, strict=False)
        summed = math.prod(side for label, side in sides.items() if label not in output)
    else:
        return 0
    return 2 * summed * operation.outputs[0].shape.num_elements()


def measured_peak(precision: str) -> float:
    """Returns the FLOP/s of large matrix products on the first device, measured for about half a second."""
    device = (tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU"))[0]
    size, times = _GEMMS[device.device_type]
    with tf.device(device.name):
        left, right = (tf.cast(tf.random.stateless_normal([size] * 2, seed=[0, seed]), precision) for seed in (1, 2))
        best = 0.0
        end = time.perf_counter() + _GEMM_SECONDS
        while not best or time.perf_counter() < end:
            start = time.perf_counter()
            for _ in range(times):
                product = tf.matmul(left, right)
            float(product[0, 0])  # waits for the GPU
            best = max(best, times * 2 * size**3 / (time.perf_counter() - start))
    return best
