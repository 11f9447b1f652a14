"""Decoders without TensorFlow that accept only images that TensorFlow decodes without a message, to the same pixels.

    pixels = decoded(file.read(), "jpeg", (width, height))     # None: TensorFlow may decode it or not

libjpeg-turbo, which TensorFlow has too, decodes JPEGs here, and any warning of its is a refusal. Kinds of JPEG that only
some builds of it decode are refused before.
"""

import numpy as np
import simplejpeg

from convoy.input_pipeline.images.kinds import jpeg_header
from convoy.input_pipeline.images.perceptual import decode_ratio
from convoy.input_pipeline.images.pixels import Size


def decoded(data: bytes, image_format: str, size: Size) -> np.ndarray | None:
    """Decodes an image as TensorFlow does (`tensorflow_decoder.decoded`).

    Args:
      data: bytes of the image file.
      image_format: "jpeg" or "png".
      size: its width and height.

    Returns:
      The pixels, [height, width, 3] uint8, a JPEG's at its `decode_ratio`; None if the image is not accepted, which does
      not mean that it is damaged.
    """
    header = jpeg_header(data) if image_format == "jpeg" else None
    if not header or not header.is_common:
        return None
    width, height = size
    ratio = decode_ratio(width, height)
    try:
        return simplejpeg.decode_jpeg(
            data, "RGB", fastdct=True, min_height=-(-height // ratio), min_width=-(-width // ratio)
        )
    except ValueError:  # an error or a warning of libjpeg
        return None
