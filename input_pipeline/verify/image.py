"""Decoding of an encoded image by TensorFlow, as in training, and its format and shape."""

import tensorflow as tf

_STARTS = {b"\xff\xd8\xff": "jpeg", b"\x89PNG\r\n\x1a\n": "png", b"GIF8": "gif", b"BM": "bmp", b"RIFF": "webp"}


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
