"""Decodes encoded images in a TensorFlow graph to what a viewer shows: upright, and on white where transparent.

`convoy convert` stores images that TensorFlow decodes rightly as they are. Records of other programs, and what clients
send to an exported model, may hold photographs that only their EXIF orientation turns upright, and PNGs with
transparency, which TensorFlow's decoders ignore. The EXIF format is that of CIPA DC-008-2012, section 4.6.
"""

import tensorflow as tf

_SEARCHED_BYTES = 2**16 + 2**12  # the longest segment of a JPEG, and what comes before it
_MOST_SEGMENTS = 16
_MOST_ENTRIES = 128
_ORIENTATION_TAG = 0x0112
_EXIF = (0x45, 0x78, 0x69, 0x66, 0, 0)
_TIFF_HEADER = 10  # bytes from a segment's marker to its TIFF header


def decode_as_viewed(encoded: tf.Tensor) -> tf.Tensor:
    """Returns an image, [height, width, 3] uint8, upright and on white.

    Args:
      encoded: scalar string: JPEG, PNG, GIF or BMP. The orientation of a PNG is not applied.
    """
    return tf.case(
        [
            (tf.strings.substr(encoded, 0, 4) == b"\x89PNG", lambda: _on_white(tf.io.decode_png(encoded, channels=4))),
            (tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff", lambda: _upright(encoded)),
        ],
        default=lambda: _stored(encoded),
    )


def exif_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Returns the EXIF orientation of a JPEG, int32, 1 (upright) to 8; 1 if it has none."""
    length = tf.minimum(tf.strings.length(encoded), _SEARCHED_BYTES)
    data = tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, 0, length), tf.uint8), tf.int32)

    def byte(position: tf.Tensor) -> tf.Tensor:
        return tf.where(position < length, tf.gather(data, tf.clip_by_value(position, 0, length - 1)), 0)

    def big_endian(position: tf.Tensor) -> tf.Tensor:
        return 256 * byte(position) + byte(position + 1)

    def is_exif(start: tf.Tensor) -> tf.Tensor:
        return tf.reduce_all([byte(start + 1) == 0xE1, *(byte(start + 4 + k) == _EXIF[k] for k in range(len(_EXIF)))])

    def is_before_exif(start: tf.Tensor) -> tf.Tensor:
        # A segment with a length: not the start of the pixels (SOS), nor past the end.
        has_length = (byte(start) == 0xFF) & (byte(start + 1) >= 0xC0) & (byte(start + 1) != 0xDA)
        return has_length & (start < length) & ~is_exif(start)

    start = tf.while_loop(
        is_before_exif, lambda start: (start + 2 + big_endian(start + 2),), (2,), maximum_iterations=_MOST_SEGMENTS
    )[0]

    def from_tiff() -> tf.Tensor:
        tiff = start + _TIFF_HEADER
        little = byte(tiff) == 0x49

        def word(position: tf.Tensor) -> tf.Tensor:
            first, second = byte(position), byte(position + 1)
            return tf.where(little, first + 256 * second, 256 * first + second)

        directory = tiff + tf.where(little, word(tiff + 4), word(tiff + 6))  # its low half: a segment is shorter
        entries = directory + 2 + 12 * tf.range(tf.minimum(word(directory), _MOST_ENTRIES))
        found = tf.boolean_mask(word(entries + 8), word(entries) == _ORIENTATION_TAG)
        value = tf.reduce_max(tf.concat([found[:1], [1]], 0))
        return tf.where((value >= 1) & (value <= 8), value, 1)

    return tf.cond(is_exif(start), from_tiff, lambda: 1)


def _stored(encoded: tf.Tensor) -> tf.Tensor:
    return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def _upright(encoded: tf.Tensor) -> tf.Tensor:
    image, orientation = _stored(encoded), exif_orientation(encoded)

    def exchanged() -> tf.Tensor:
        # Not by `tf.transpose`: wherever it is in a graph, TensorFlow may print that oneDNN has none for bytes.
        height, width = tf.shape(image)[0], tf.shape(image)[1]
        places = tf.range(width)[:, tf.newaxis] + width * tf.range(height)
        return tf.gather(tf.reshape(image, [-1, 3]), places)

    def turned() -> tf.Tensor:
        # 5 to 8 are 1 to 4 with rows and columns exchanged.
        swapped = tf.cond(orientation > 4, exchanged, lambda: image)
        mirrored = (orientation == 2) | (orientation == 3) | (orientation == 6) | (orientation == 7)
        flipped = (orientation == 3) | (orientation == 4) | (orientation == 7) | (orientation == 8)
        swapped = tf.cond(mirrored, lambda: tf.reverse(swapped, [1]), lambda: swapped)
        return tf.cond(flipped, lambda: tf.reverse(swapped, [0]), lambda: swapped)

    return tf.cond(orientation == 1, lambda: image, turned)


def _on_white(image: tf.Tensor) -> tf.Tensor:
    """Blends [height, width, 4] uint8 with white, rounding as Pillow's `alpha_composite` to within 1."""

    def blended() -> tf.Tensor:
        colour, alpha = tf.cast(image[..., :3], tf.int32), tf.cast(image[..., 3:], tf.int32)
        return tf.cast((colour * alpha + 255 * (255 - alpha) + 127) // 255, tf.uint8)

    return tf.cond(tf.reduce_all(image[..., 3] == 255), lambda: image[..., :3], blended)
