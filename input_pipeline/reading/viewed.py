"""Decodes encoded images in a TensorFlow graph to what a viewer shows: upright, and on white where transparent.

`convoy convert` stores images that TensorFlow decodes rightly as they are. Records of other programs, and what clients
send to an exported model, may hold photographs that only their EXIF orientation turns upright, and PNGs with
transparency, which TensorFlow's decoders ignore. The EXIF format is that of CIPA DC-008-2012, section 4.6.
"""

import math
import re
from collections.abc import Callable

import tensorflow as tf

from convoy.input_pipeline.images.pixels import Limits

_SEARCHED_BYTES = 2**16 + 2**12  # the longest segment of a JPEG, and what comes before it
_MOST_SEGMENTS = 16
_MOST_ENTRIES = 128
_ORIENTATION_TAG = 0x0112
_EXIF = (0x45, 0x78, 0x69, 0x66, 0, 0)
_TIFF_HEADER = 10  # bytes from a segment's marker to its TIFF header
_SEARCHED_CHUNKS = 2**12  # before and after the pixels
_BIG_ENDIAN = (2**24, 2**16, 2**8, 1)
_PNG, _WEBP = b"\x89PNG", b"WEBP"
_WEBP_ALPHA, _WEBP_ANIMATION = 0x10, 0x02
# An entry of a TIFF directory, in either byte order: the orientation, of any type, one value, and not 1 (upright).
_TURNED = re.compile(rb"\x12\x01[\x01-\x0c]\0\x01\0\0\0(?!\x01\0)|\x01\x12\0[\x01-\x0c]\0\0\0\x01(?!\0\x01)", re.DOTALL)
_PNG_COLOR_TYPE = 13  # bytes after the name of the header chunk
MOST_PIXELS = round(Limits().max_megapixels * 1e6)
# The start of a frame (SOF) with a side that `MOST_PIXELS` may not have, wherever it is in a record.
_LARGE_JPEG = re.compile(
    rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf].{2}[\x08\x0c](..)?[%b-\xff]"
    % re.escape(bytes([math.isqrt(MOST_PIXELS) >> 8])),
    re.DOTALL,
)
_PNG_HEADER = re.compile(rb"IHDR(.{4})(.{4})", re.DOTALL)


def decode_as_viewed(encoded: tf.Tensor) -> tf.Tensor:
    """Returns an image, [height, width, 3] uint8, upright and on white.

    Args:
      encoded: scalar string: JPEG, PNG, WebP, GIF or BMP (`file_kinds.unreadable_kind`).

    Raises:
      tf.errors.InvalidArgumentError: not such an image, a damaged one, or one of more than `MOST_PIXELS`.
    """
    return tf.case(
        [
            (has(encoded, 0, b"\xff\xd8\xff"), lambda: _upright(_decode_jpeg(encoded), exif_orientation(encoded))),
            (has(encoded, 0, _PNG), lambda: _upright(_decode_png(encoded), _png_orientation(encoded))),
            (has(encoded, 8, _WEBP), lambda: _upright(_decode_webp(encoded), _webp_orientation(encoded))),
            (has(encoded, 0, b"GIF"), lambda: _decode_gif(encoded)),
            (has(encoded, 0, b"BM") & (numbers(encoded, 28, 1)[0] == 8), lambda: _decode_palette_bmp(encoded)),
        ],
        default=lambda: _stored(encoded),
    )


def may_be_shown_otherwise(record: bytes) -> bool:
    """Returns whether a JPEG or PNG in a record may be turned, transparent or too large; False is certain.

    Costs microseconds, where `decode_as_viewed` takes as long as decoding a small image.

    Args:
      record: a serialized Example, or the bytes of the image.
    """
    sizes = ([int.from_bytes(side, "big") for side in sides] for sides in _PNG_HEADER.findall(record))
    if _LARGE_JPEG.search(record) or any(width * height > MOST_PIXELS for width, height in sizes):
        return True
    if (header := record.find(b"IHDR")) >= 0:
        colors = record[header + _PNG_COLOR_TYPE : header + _PNG_COLOR_TYPE + 1]
        return colors not in (b"\0", b"\2", b"\3") or b"tRNS" in record or b"eXIf" in record
    exif = record.find(b"Exif\0\0")
    return exif >= 0 and bool(_TURNED.search(record, exif))


def exif_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Returns the EXIF orientation of a JPEG, int32, 1 (upright) to 8; 1 if it has none."""
    length = tf.minimum(tf.strings.length(encoded), _SEARCHED_BYTES)
    data = numbers(encoded, 0, length)

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
    return tf.cond(is_exif(start), lambda: _tiff_orientation(encoded, start + _TIFF_HEADER), lambda: 1)


def _tiff_orientation(encoded: tf.Tensor, tiff: tf.Tensor) -> tf.Tensor:
    """Returns the orientation in the TIFF header at byte `tiff`, int32, 1 to 8."""
    length = tf.clip_by_value(tf.strings.length(encoded) - tiff, 0, 2**16)
    data = numbers(encoded, tiff, length)

    def byte(position: tf.Tensor) -> tf.Tensor:
        return tf.where(position < length, tf.gather(data, tf.clip_by_value(position, 0, length - 1)), 0)

    def word(position: tf.Tensor) -> tf.Tensor:
        first, second = byte(position), byte(position + 1)
        return tf.where(little, first + 256 * second, 256 * first + second)

    def orientation() -> tf.Tensor:
        directory = tf.where(little, word(4), word(6))  # its low half: a segment is shorter
        entries = directory + 2 + 12 * tf.range(tf.minimum(word(directory), _MOST_ENTRIES))
        found = tf.boolean_mask(word(entries + 8), word(entries) == _ORIENTATION_TAG)
        value = tf.reduce_max(tf.concat([found[:1], [1]], 0))
        return tf.where((value >= 1) & (value <= 8), value, 1)

    little = byte(0) == 0x49
    return tf.cond(length > 0, orientation, lambda: 1)


def _png_orientation(encoded: tf.Tensor) -> tf.Tensor:
    def size(at: tf.Tensor) -> tf.Tensor:
        return tf.tensordot(numbers(encoded, at, 4), _BIG_ENDIAN, 1)

    return _chunk_orientation(encoded, b"eXIf", 8, kind_at=4, end=lambda at: at + 12 + size(at))


def _webp_orientation(encoded: tf.Tensor) -> tf.Tensor:
    def size(at: tf.Tensor) -> tf.Tensor:
        return tf.tensordot(numbers(encoded, at + 4, 4), [1, 2**8, 2**16, 2**24], 1)

    return _chunk_orientation(encoded, b"EXIF", 12, kind_at=0, end=lambda at: at + 8 + size(at) + size(at) % 2)


def _chunk_orientation(
    encoded: tf.Tensor, kind: bytes, start: int, *, kind_at: int, end: Callable[[tf.Tensor], tf.Tensor]
) -> tf.Tensor:
    """Returns the orientation in the EXIF chunk of a file of chunks; its data follow 8 bytes of size and kind."""

    def search() -> tf.Tensor:
        at = tf.while_loop(
            lambda at: (at + 8 <= tf.strings.length(encoded)) & ~has(encoded, at + kind_at, kind),
            lambda at: (tf.where(end(at) > at, end(at), tf.strings.length(encoded)),),
            (start,),
        )[0]
        return _tiff_orientation(encoded, at + 8)

    # Few have one, and a file may have thousands of chunks.
    return tf.cond(_mentions(encoded, kind), search, lambda: 1)


def _mentions(encoded: tf.Tensor, kind: bytes) -> tf.Tensor:
    """Returns whether the start or the end of a file, around its pixels, names a kind of chunk."""
    length = tf.strings.length(encoded)
    # The color profile of a PNG, which follows its header, may be long.
    profile = tf.where(has(encoded, 37, b"iCCP"), tf.tensordot(numbers(encoded, 33, 4), _BIG_ENDIAN, 1), 0)
    start = tf.strings.substr(encoded, 0, _SEARCHED_CHUNKS + profile)
    end = tf.strings.substr(encoded, tf.maximum(0, length - _SEARCHED_CHUNKS), _SEARCHED_CHUNKS)
    return tf.strings.regex_full_match(start + end, rb"\C*?" + kind + rb"\C*")


def has(encoded: tf.Tensor, at: tf.Tensor | int, magic: bytes) -> tf.Tensor:
    """Returns whether a string has `magic` at byte `at`."""
    return tf.strings.substr(encoded, tf.minimum(at, tf.strings.length(encoded)), len(magic)) == magic


def numbers(encoded: tf.Tensor, at: tf.Tensor | int, length: tf.Tensor | int) -> tf.Tensor:
    """Returns the bytes from `at` on, [length] int32, as 0 after the end."""
    part = tf.strings.substr(encoded, tf.minimum(at, tf.strings.length(encoded)), length)
    found = tf.cast(tf.io.decode_raw(part, tf.uint8), tf.int32)
    return tf.pad(found, [[0, length - tf.size(found)]])


def _stored(encoded: tf.Tensor) -> tf.Tensor:
    return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def _decode_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    with tf.control_dependencies([_within_limit(tf.image.extract_jpeg_shape(encoded)[:2])]):
        return _stored(encoded)


def _within_limit(sides: tf.Tensor) -> tf.Operation:
    """Fails if an image, of a small file perhaps, would take too much memory."""
    small = tf.reduce_prod(tf.cast(sides, tf.float32)) <= MOST_PIXELS
    return tf.debugging.Assert(small, ["an image of this height and width is too large to decode:", sides])


def _decode_png(encoded: tf.Tensor) -> tf.Tensor:
    sides = [tf.tensordot(numbers(encoded, at, 4), _BIG_ENDIAN, 1) for at in (20, 16)]
    with tf.control_dependencies([_within_limit(tf.abs(tf.stack(sides)))]):
        encoded = tf.identity(encoded)
    # Not with 4 channels in any case: TensorFlow's alpha for a palette of 4 bits is 15.
    has_alpha = numbers(encoded, 25, 1)[0] & 4 > 0
    is_keyed = _mentions(encoded, b"tRNS")
    return tf.cond(
        has_alpha | is_keyed,
        lambda: _on_white(tf.io.decode_png(encoded, channels=4)),
        lambda: tf.io.decode_png(encoded, channels=3),
    )


def _decode_gif(encoded: tf.Tensor) -> tf.Tensor:
    sides = [_little_endian(encoded, at, 2) for at in (8, 6)]
    with tf.control_dependencies([_within_limit(tf.stack(sides))]):
        return _stored(encoded)


def _little_endian(encoded: tf.Tensor, at: int, length: int) -> tf.Tensor:
    return tf.tensordot(numbers(encoded, at, length), [2 ** (8 * k) for k in range(length)], 1)


def _webp_sides(encoded: tf.Tensor) -> tf.Tensor:
    """Returns height and width, [2] int32, as RFC 9649 has them: section 2.5 lossy, 2.6 lossless, 2.7 extended."""
    bits = _little_endian(encoded, 21, 3) + 2**24 * (numbers(encoded, 24, 1)[0] & 0x0F)  # 14 for each side
    return tf.case(
        [
            (has(encoded, 12, b"VP8X"), lambda: tf.stack([_little_endian(encoded, at, 3) + 1 for at in (27, 24)])),
            (has(encoded, 12, b"VP8L"), lambda: tf.stack([bits // 2**14 + 1, bits % 2**14 + 1])),
        ],
        default=lambda: tf.stack([_little_endian(encoded, at, 2) & 0x3FFF for at in (28, 26)]),
    )


def _decode_webp(encoded: tf.Tensor) -> tf.Tensor:
    # TensorFlow decodes to the number of channels that the file has. Its header is in RFC 9649, sections 2.6 and 2.7.
    with tf.control_dependencies([_within_limit(_webp_sides(encoded))]):
        encoded = tf.identity(encoded)
    lossless = has(encoded, 12, b"VP8L") & (numbers(encoded, 24, 1)[0] & _WEBP_ALPHA > 0)
    extended = has(encoded, 12, b"VP8X") & (numbers(encoded, 20, 1)[0] & _WEBP_ALPHA > 0)

    def with_alpha() -> tf.Tensor:
        return _on_white(tf.io.decode_image(encoded, channels=4, expand_animations=False))

    return tf.cond(lossless | extended, with_alpha, lambda: _stored(encoded))


def _decode_palette_bmp(encoded: tf.Tensor) -> tf.Tensor:
    # TensorFlow takes the indices for shades of gray.
    header = numbers(encoded, 0, 18)
    first, palette = header[10] + 2**8 * header[11], 14 + header[14] + 2**8 * header[15]
    colors = tf.reshape(numbers(encoded, palette, (first - palette) // 4 * 4), [-1, 4])[:, 2::-1]
    indices = tf.io.decode_bmp(encoded)[..., 0]
    return tf.cast(tf.gather(colors, tf.cast(indices, tf.int32)), tf.uint8)


def _upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns an image by its EXIF orientation."""

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
        color, alpha = tf.cast(image[..., :3], tf.int32), tf.cast(image[..., 3:], tf.int32)
        return tf.cast((color * alpha + 255 * (255 - alpha) + 127) // 255, tf.uint8)

    return tf.cond(tf.reduce_all(image[..., 3] == 255), lambda: image[..., :3], blended)
