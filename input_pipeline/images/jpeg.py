"""Pixels of common JPEGs by libjpeg-turbo, without Pillow or TensorFlow; whatever libjpeg-turbo reports is an error.

pixels = decoded_jpeg(data, jpeg_header(data), ratio=2)
"""

import numpy as np
import simplejpeg

from convoy.input_pipeline.images.kinds import JpegHeader


def decoded_jpeg(data: bytes, header: JpegHeader, ratio: int = 1, *, fast: bool = False) -> np.ndarray:
    """Decodes a JPEG at one `ratio`-th of its sides, rounded up.

    Args:
      data: bytes of the file.
      header: its header; only those that are common (`JpegHeader.is_common`) are decoded.
      ratio: 1, 2, 4 or 8.
      fast: whether with libjpeg's fast transform, as TensorFlow, or with the exact one, as Pillow.

    Returns:
      [height, width, 3] uint8, to the bit what TensorFlow or Pillow decodes.

    Raises:
      ValueError: libjpeg has an error or a warning, or the JPEG is not common.
    """
    if not header.is_common:
        raise ValueError("a kind of JPEG that only some decoders support")
    width, height = (-(-side // ratio) for side in header.size)
    return simplejpeg.decode_jpeg(data, "RGB", fastdct=fast, min_height=height, min_width=width)
