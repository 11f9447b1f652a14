"""Selective quantization; TensorFlow has it for its debugger only, with models of float input.

quantize_calibrated(converter, lambda name: "norm" in name)
"""

from collections.abc import Callable

import tensorflow as tf
from tensorflow.lite.python.convert import mlir_quantize


def quantize_calibrated(converter: tf.lite.TFLiteConverter, stays_float: Callable[[str], object]) -> bytes:
    """Returns a model quantized to int8 except for softmax, with an input in uint8 and an output in float32.

    Args:
      converter: with a representative dataset.
      stays_float: whether the operation whose output has this name stays in float32.
    """
    converter._experimental_calibrate_only = True
    calibrated = converter.convert()
    names = [tensor["name"] for tensor in tf.lite.Interpreter(model_content=calibrated).get_tensor_details()]
    return mlir_quantize(
        calibrated,
        input_data_type=tf.uint8,
        output_data_type=tf.float32,
        denylisted_ops={"SOFTMAX"},
        denylisted_nodes={name for name in names if stays_float(name)},
    )
