"""Names, in a TensorFlow graph, the kinds of files that `viewed.decode_as_viewed` cannot read.

    unreadable_kind(encoded)      # b"TIFF", or b"" for a file that may be decoded

For clients of an exported model, who see TensorFlow's errors. A damaged file of a readable kind has no name here.
"""

import tensorflow as tf

from convoy.input_pipeline.reading.viewed import has, numbers

READABLE = "JPEG, PNG, WebP, GIF or BMP"

_KINDS = (  # position, bytes there, and kind
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftyp", "video"),
    (4, b"jP  \r\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\x00\x00\x01\x00", "icon"),
    (0, b"%PDF", "PDF"),
    (0, b"<svg", "SVG"),
    (0, b"<", "HTML or XML"),
    *((0, b"P%d" % number, "PPM") for number in range(1, 8)),
)
_READABLE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF")


def unreadable_kind(encoded: tf.Tensor) -> tf.Tensor:
    """Returns the kind of an encoded image that cannot be read as a viewer shows it, a scalar string; empty if it can.

    Args:
      encoded: scalar string.
    """
    named = [(has(encoded, at, magic), kind) for at, magic, kind in _KINDS]
    readable = tf.reduce_any([has(encoded, 0, start) for start in _READABLE_STARTS])
    bits, compression = numbers(encoded, 28, 1)[0], numbers(encoded, 30, 1)[0]
    is_bmp_read = (((bits == 8) | (bits == 24)) & (compression == 0)) | (bits == 32)
    checks = [
        (tf.strings.length(encoded) == 0, "empty"),
        (has(encoded, 8, b"WEBPVP8X") & (numbers(encoded, 20, 1)[0] & 0x02 > 0), "animated WebP"),
        (has(encoded, 0, b"BM") & ~is_bmp_read, "BMP of few colors"),
        (has(encoded, 0, b"GIF8") & _gif_is_transparent(encoded), "transparent GIF"),
        *named,
        (~readable, "unknown"),
    ]
    kind = tf.constant("")
    for is_kind, name in reversed(checks):
        kind = tf.where(is_kind, name, kind)
    return kind


def _gif_is_transparent(encoded: tf.Tensor) -> tf.Tensor:
    """Returns whether the first picture of a GIF has a transparent color, which TensorFlow shows as black.

    The format is that of the GIF89a specification, sections 18, 23 and 24.
    """
    flags = numbers(encoded, 10, 1)[0]
    colors = tf.where(flags >= 0x80, 3 * tf.bitwise.left_shift(2, flags & 7), 0)

    def byte(at: tf.Tensor) -> tf.Tensor:
        return numbers(encoded, at, 1)[0]

    def searches(at: tf.Tensor, in_blocks: tf.Tensor) -> tf.Tensor:
        return (at < tf.strings.length(encoded)) & (in_blocks | ((byte(at) == 0x21) & (byte(at + 1) != 0xF9)))

    def step(at: tf.Tensor, in_blocks: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        size = byte(at)  # of a data block; 0 after the last one
        return tf.where(in_blocks, at + 1 + size, at + 2), ~in_blocks | (size > 0)

    at, _ = tf.while_loop(searches, step, (13 + colors, False))
    return has(encoded, at, b"\x21\xf9") & (byte(at + 3) % 2 == 1)
