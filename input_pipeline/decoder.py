"""TensorFlow's image decoders, as a check: what they accept is what training will be able to read.

This is the one module of the converter that imports TensorFlow. Only worker processes import it.
"""

import contextlib
import os
from collections.abc import Iterator

# Conversion is one image a process: a GPU, and threads that wait on each other, would only cost memory.
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Turns file descriptor 2 away: TensorFlow writes to it at start-up whatever its log level is."""
    kept = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


with quiet_stderr():
    import tensorflow as tf

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)


def warm_up() -> None:
    """Starts TensorFlow's runtime, which takes a moment and writes to stderr."""
    with quiet_stderr():
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
