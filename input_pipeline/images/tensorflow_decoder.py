"""TensorFlow's decoders, as training calls them.

The only module of the converter that imports TensorFlow; only worker processes import it.
"""

import contextlib
import os

import numpy as np

from convoy.input_pipeline.images.perceptual import decode_ratio
from convoy.input_pipeline.images.pixels import Size
from convoy.input_pipeline.tf_startup import start_tensorflow

# Each process converts one image at a time: a GPU and more threads would only cost memory.
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"


start_tensorflow()
import tensorflow as tf  # noqa: E402

with contextlib.suppress(RuntimeError):  # a process that has used TensorFlow before keeps its threads
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def decoded(data: bytes, image_format: str, size: Size) -> tuple[np.ndarray, str]:
    """Decodes an image. libjpeg may write messages about it to standard error.

    Args:
      data: bytes of the image file.
      image_format: "jpeg" or "png".
      size: its width and height. A JPEG is decoded at its `decode_ratio`: every entropy-coded bit is read, as at full
        size, but fewer pixels are computed.

    Returns:
      The pixels, [height, width, 3] uint8, and TensorFlow's error message, "" for none.
    """
    # A tensor, and 1.0 instead of the default 1, keep TensorFlow on its fast path for eager operations.
    contents = tf.constant(data)
    try:
        if image_format == "png":
            return tf.raw_ops.DecodePng(contents=contents, channels=3).numpy(), ""
        ratio = decode_ratio(*size)
        pixels = tf.raw_ops.DecodeJpeg(contents=contents, channels=3, ratio=ratio, acceptable_fraction=1.0)
        return pixels.numpy(), ""
    except tf.errors.OpError as error:
        return np.empty(0, np.uint8), error.message.split(" [Op:")[0].split("}} ")[-1]
