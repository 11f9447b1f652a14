"""Decoding of an encoded image by TensorFlow, as in training, and its format and shape."""

import io

from PIL import Image

from convoy.input_pipeline.images.rgb import orientation
from convoy.input_pipeline.images.tensorflow_decoder import tf

_STARTS = {b"\xff\xd8\xff": "jpeg", b"\x89PNG\r\n\x1a\n": "png", b"GIF8": "gif", b"BM": "bmp", b"RIFF": "webp"}


def is_turned_or_transparent(encoded: bytes) -> bool:
    """Returns whether a viewer shows an image otherwise than as it is stored, as far as training takes it into account:
    by the EXIF orientation of a JPEG, or by transparency.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.format == "PNG":
                return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
            return image.format in ("JPEG", "MPO") and orientation(image) != 1
    except Exception:  # of any kind: `decoded` reports a damaged image
        return False


def decoded(encoded: bytes) -> tuple[str, tuple[int, int, int]]:
    """Decodes an image in full.

    Args:
      encoded: bytes of the image file.

    Returns:
      The format according to its first bytes, and (height, width, channels).

    Raises:
      ValueError: the image cannot be decoded; the message has the reason.
    """
    image_format = next((name for start, name in _STARTS.items() if encoded.startswith(start)), "unknown")
    try:
        if image_format == "jpeg":
            # At an eighth of the size every entropy-coded bit is still read, but fewer pixels are computed.
            tf.raw_ops.DecodeJpeg(contents=encoded, ratio=8)
            shape = tf.raw_ops.ExtractJpegShape(contents=encoded).numpy()
        elif image_format == "png":
            shape = tf.raw_ops.DecodePng(contents=encoded).shape
        else:
            shape = tf.io.decode_image(encoded, expand_animations=False).shape
    except tf.errors.OpError as error:
        message = " ".join(error.message.split("[Op:")[0].split())[:200]
        raise ValueError(f"TensorFlow cannot decode the image: {message}") from None
    height, width, channels = (int(side) for side in shape)
    return image_format, (height, width, channels)
