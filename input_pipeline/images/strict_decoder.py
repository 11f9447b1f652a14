"""Decoders without TensorFlow that accept only images that TensorFlow decodes without a message, to the same pixels.

    pixels = decoded(file.read(), "jpeg", (width, height))     # None: TensorFlow may decode it or not

JPEGs are decoded by libjpeg-turbo, which TensorFlow has too (`jpeg`). PNGs are decoded by Pillow, which ignores some
faults that libpng reports: the structure, all checksums and the compressed data are checked before.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from convoy.input_pipeline.images.jpeg import decoded_jpeg
from convoy.input_pipeline.images.kinds import jpeg_header
from convoy.input_pipeline.images.perceptual import decode_ratio
from convoy.input_pipeline.images.pixels import Size

_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_HEADER = struct.Struct(">IIBBBBB")  # width, height, depth, color type, compression, filter, interlacing
_FIRST_CHUNK = 8
_CHUNK = struct.Struct(">I4s")
_CHECKSUM_BYTES = 4
_CHANNELS = {0: 1, 2: 3}  # by color type: gray, RGB
_FILTERS = 5
# Chunks whose content libpng takes as it is, and the lengths that it expects.
_NEUTRAL_CHUNKS = {b"pHYs": range(9, 10), b"tEXt": range(2, 4096)}


def decoded(data: bytes, image_format: str, size: Size) -> np.ndarray | None:
    """Decodes an image as TensorFlow does (`tensorflow_decoder.decoded`).

    Args:
      data: bytes of the image file.
      image_format: "jpeg" or "png".
      size: its width and height.

    Returns:
      The pixels, [height, width, 3] uint8, a JPEG's at its `decode_ratio`; None if the image is not accepted. It may
      still be sound.
    """
    try:
        if image_format == "jpeg":
            return _jpeg(data, size)
        return _png(data)
    except Exception:  # of any kind: an error or a warning of a decoder
        return None


def _jpeg(data: bytes, size: Size) -> np.ndarray | None:
    header = jpeg_header(data)
    return decoded_jpeg(data, header, decode_ratio(*size), fast=True) if header else None


def _png(data: bytes) -> np.ndarray | None:
    width, height, depth, color, *methods = _PNG_HEADER.unpack_from(data, len(_PNG_START))
    if not data.startswith(_PNG_START) or depth != 8 or color not in _CHANNELS or any(methods):
        return None
    compressed = _compressed_pixels(data)
    row = 1 + width * _CHANNELS[color]
    decompressor = zlib.decompressobj()
    rows = decompressor.decompress(compressed, height * row + 1)  # no more, whatever follows
    if not decompressor.eof or decompressor.unused_data or len(rows) != height * row or max(rows[::row]) >= _FILTERS:
        return None
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.asarray(image.convert("RGB"))


def _compressed_pixels(data: bytes) -> bytes:
    """Returns the compressed pixels of a PNG; b"" if it is not whole, or has other chunks or another order."""
    pixels: list[bytes] = []
    seen = [b""]
    at = _FIRST_CHUNK
    while at < len(data):
        length, name = _CHUNK.unpack_from(data, at)
        start = at + _CHUNK.size
        end = start + length
        if zlib.crc32(data[at + _CHECKSUM_BYTES : end]).to_bytes(4, "big") != data[end : end + _CHECKSUM_BYTES]:
            break
        at = end + _CHECKSUM_BYTES
        if name == b"IDAT":
            pixels.append(data[start:end])
        elif pixels:
            is_whole = name == b"IEND" and not length and at == len(data)
            return b"".join(pixels) if is_whole else b""
        elif name in seen or (name != b"IHDR" and length not in _NEUTRAL_CHUNKS.get(name, ())):
            break
        seen.append(name)
    return b""
