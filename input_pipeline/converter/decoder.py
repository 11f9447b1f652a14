"""TensorFlow's image decoders, as a check: what they accept is what training will be able to read.

This is the one module of the converter that imports TensorFlow. Only worker processes import it.
"""

import os

from input_pipeline.quiet_tensorflow import start_tensorflow

# Conversion is one image a process: a GPU, and threads that wait on each other, would only cost memory.
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"


start_tensorflow()
import tensorflow as tf  # noqa: E402

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)


def warm_up() -> None:
    """Starts TensorFlow's runtime, which takes a moment."""
    tf.constant(0)


def check(data: bytes, image_format: str) -> None:
    """Decodes an image.

    Args:
      data: the encoded image.
      image_format: "jpeg" or "png".

    Raises:
      ValueError: TensorFlow cannot decode it; says why.
    """
    try:
        if image_format == "jpeg":
            # An eighth of the size: every entropy-coded bit is read, as for the full size, and few pixels computed.
            tf.raw_ops.DecodeJpeg(contents=data, ratio=8)
        else:
            tf.raw_ops.DecodePng(contents=data)
    except tf.errors.OpError as error:
        reason = error.message.split("[Op:")[0].split("{{function_node")[-1].split("}}")[-1]
        raise ValueError(f"TensorFlow cannot decode it: {' '.join(reason.split())[:200]}") from None
