"""Checks images as TensorFlow decodes them, so that training can read every accepted image.

    encoded, perceptual = encode_checked(file.read(), Pixels(image_size=0, encoding="keep"))

Most images are checked by decoders that accept less than TensorFlow's (`strict_decoder`). TensorFlow is imported for
the first image that they do not accept: its import takes as long as the conversion of thousands of images.

libjpeg continues after damaged data, fills in missing pixels, and reports it on standard error only. While an image is
encoded and checked, file descriptor 2 is therefore redirected to a file and read, which also keeps the log clean.
An image that would cause such a message at every decoding is not stored unchanged: if data is missing or invalid it is
rejected, and if all data is there (stray bytes between segments, an unusual header, a kind of JPEG that only Pillow
reads) Pillow re-encodes it. A flipped bit without either effect cannot be detected: JPEG has no checksum.
"""

import contextlib
import functools
import math
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from convoy.input_pipeline.images import strict_decoder
from convoy.input_pipeline.images.perceptual import perceptual_hash, perceptual_hashes
from convoy.input_pipeline.images.pixels import Encoded, Pixels, Size, encode_where_checked

# TensorFlow decodes PNGs in half the time of the strict decoder: after so many pixels, its import would have paid off.
_STRICT_PNG_PIXELS = 2**27
_PIXELS_TOGETHER = 2**24  # small files may have more pixels than fit into memory
# Messages of libjpeg (its jerror.h) and TensorFlow for missing or invalid pixels ...
_MISSING = ("premature end", "Premature end", "Input file read error")
_INVALID = ("bad Huffman code", "bad arithmetic code", "instead of RST", "inconsistent progression")
# ... and for features that TensorFlow's libjpeg lacks.
_UNKNOWN_TO_TENSORFLOW = ("arithmetic coding", "Unsupported JPEG process")
# Lines of TensorFlow that do not concern the image, and of libtiff, which Pillow ignores too.
_TENSORFLOW = re.compile(r"[A-Z]\d{4} |\d{4}-\d\d-\d\d |WARNING: All log messages")
_LIBTIFF = re.compile(r"^(JPEGLib|TIFF\w*|\w*Decode\w*|\w*Unpack\w*): .{1,200}", re.MULTILINE)

_png_pixels = 0  # that this process has checked


def encode_checked(data: bytes, pixels: Pixels) -> tuple[Encoded, int]:
    """Returns the result of `pixels.encode`, checked by decoding it in full, and its perceptual hash.

    Not thread-safe: standard error of the whole process is redirected during the call.

    Raises:
      Exception: of any kind: not an image, or a damaged one. `pixels.reason` describes it.
    """
    capture, stderr = _capture(os.getpid())
    os.dup2(capture.fileno(), 2)
    decoded = np.empty(0, np.uint8)

    def check(data: bytes, image_format: str, size: Size) -> bool:
        nonlocal decoded
        decoded, is_clean = _checked(data, image_format, size)
        return is_clean

    try:
        encoded, reencoded = encode_where_checked(data, pixels, check)
        if capture.tell() and (message := _LIBTIFF.search(_captured(capture, 0))):
            raise ValueError(f"damaged ({message[0]})")
        return encoded, perceptual_hash(decoded if reencoded is None else reencoded)
    finally:
        os.dup2(stderr, 2)
        if capture.tell():
            _discard(capture, 0)


def encode_all_checked(images: Sequence[bytes], pixels: Pixels) -> Iterator[tuple[Encoded, int] | Exception]:
    """Yields the result or exception of `encode_checked` for each image.

    Pillow, TensorFlow and NumPy each process several images before the next library takes over: alternating per image
    would evict each other's code from the processor's caches, which costs as much as decoding a small image.
    """
    capture, stderr = _capture(os.getpid())
    start = 0
    while start < len(images):
        together: list[_Unchecked | None] = []
        area = 0
        os.dup2(capture.fileno(), 2)
        try:
            while start + len(together) < len(images) and area < _PIXELS_TOGETHER:
                unchecked = _encoded_unchecked(images[start + len(together)], pixels)
                together.append(unchecked)
                area += math.prod(unchecked[0].size) if unchecked else 0
            decoded = [_decoded_clean(*one[1:]) if one else None for one in together]
        finally:
            os.dup2(stderr, 2)
        hashes = iter(perceptual_hashes([seen for seen in decoded if seen is not None]))
        for data, one, seen in zip(images[start:], together, decoded, strict=False):
            try:
                # Images that need more than the fast path are processed again, step by step.
                result: tuple[Encoded, int] | Exception = (
                    encode_checked(data, pixels) if seen is None or one is None else (one[0], next(hashes))
                )
            except ImportError:  # of TensorFlow: no fault of the image
                raise
            except Exception as error:  # any other error of a decoder means that the image is bad
                result = error
            yield result
        start += len(together)


# An encoded image, its pixels if it was re-encoded, and what remains to be checked.
_Unchecked = tuple[Encoded, np.ndarray | None, list[tuple[bytes, str, Size]]]


def _encoded_unchecked(data: bytes, pixels: Pixels) -> _Unchecked | None:
    """Encodes an image without checking it; None if Pillow or libjpeg reported a problem."""
    capture, _ = _capture(os.getpid())
    to_check: list[tuple[bytes, str, Size]] = []

    def defer(data: bytes, image_format: str, size: Size) -> bool:
        to_check.append((data, image_format, size))
        return True

    with contextlib.suppress(Exception):
        encoded, pixels_of_new = encode_where_checked(data, pixels, defer)
        if not capture.tell():
            return encoded, pixels_of_new, to_check
    _discard(capture, 0)
    return None


def _decoded_clean(reencoded: np.ndarray | None, to_check: Sequence[tuple[bytes, str, Size]]) -> np.ndarray | None:
    """Returns the pixels of an image, [height, width, 3] uint8; None if a check fails."""
    decoded = reencoded
    for data, image_format, size in to_check:
        try:
            seen, is_clean = _checked(data, image_format, size)
        except ValueError:
            return None
        if not is_clean:
            return None
        if reencoded is None:
            decoded = seen
    return decoded


@functools.cache  # per process, since forked processes would share the file position
def _capture(process: int) -> tuple[BinaryIO, int]:
    """Returns a file that captures standard error, and a duplicate of the original descriptor."""
    return tempfile.TemporaryFile(buffering=0), os.dup(2)


def _checked(data: bytes, image_format: str, size: Size) -> tuple[np.ndarray, bool]:
    """Decodes an image, a JPEG at its `perceptual.decode_ratio`.

    Returns:
      The pixels, [height, width, 3] uint8, and whether the decoder reported nothing (see `check` of
      `pixels.encode_where_checked`).

    Raises:
      ValueError: the image is damaged.
    """
    global _png_pixels
    _png_pixels += math.prod(size) if image_format == "png" else 0
    if image_format == "jpeg" or _png_pixels < _STRICT_PNG_PIXELS:
        strictly = strict_decoder.decoded(data, image_format, size)
        if strictly is not None:
            return strictly, True
    from convoy.input_pipeline.images import tensorflow_decoder

    capture, _ = _capture(os.getpid())
    start = capture.tell()
    decoded, failure = tensorflow_decoder.decoded(data, image_format, size)
    if not failure and capture.tell() == start:
        return decoded, True
    captured = _captured(capture, start)
    _discard(capture, start)
    message = next((line for line in captured.splitlines() if line.strip() and not _TENSORFLOW.match(line)), "")
    if any(sign in captured for sign in _MISSING) or (failure and _is_cut_off(data, image_format)):
        raise ValueError("truncated")
    if any(sign in captured for sign in _UNKNOWN_TO_TENSORFLOW):
        return decoded, False
    if failure or any(sign in captured for sign in _INVALID):
        if image_format == "png":
            raise ValueError("damaged PNG (its structure or a checksum)")
        raise ValueError(f"damaged JPEG ({' '.join((message or failure).split())[:200]})")
    return decoded, not message


def _captured(capture: BinaryIO, start: int) -> str:
    capture.seek(start)
    return capture.read().decode("utf-8", "replace")


def _discard(capture: BinaryIO, start: int) -> None:
    capture.seek(start)
    capture.truncate()


def _is_cut_off(data: bytes, image_format: str) -> bool:
    if image_format == "jpeg":
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda") or b"\xff\xda" not in data  # end, start of scan
    return b"IEND" not in data[-64:]
