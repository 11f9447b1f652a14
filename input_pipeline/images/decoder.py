"""TensorFlow's image decoders, as a check of what passes through: what they accept, training will be able to read.

    encoded, perceptual = encode_checked(file.read(), Pixels(image_size=0, encoding="keep"))

This is the one module of the converter that imports TensorFlow. Only worker processes import it.

libjpeg goes on at damaged data, makes up what is missing, and tells of it on standard error only; so that is where it
is heard. While an image is encoded and checked, file descriptor 2 leads into a file, which also keeps such lines off
the screen. An image of which training would hear at every decoding is not passed on as it is: where data is missing or
senseless it is refused, and where all is there (stray bytes between segments, an odd header, a kind of JPEG that only
Pillow reads) Pillow makes a clean one of it. A flipped bit that leads to neither cannot be noticed: a JPEG has no
checksum.
"""

import contextlib
import functools
import math
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from convoy.input_pipeline.images.perceptual import decode_ratio, perceptual_hash
from convoy.input_pipeline.images.pixels import Encoded, Pixels, Size, encode_where_checked
from convoy.input_pipeline.tf_startup import start_tensorflow

# Conversion is one image a process: a GPU, and threads that wait on each other, would only cost memory.
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"


start_tensorflow()
import tensorflow as tf  # noqa: E402

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)

_PIXELS_TOGETHER = 2**24  # a few files of a few kilobytes may be of more pixels than there is memory
# What libjpeg (its jerror.h) and TensorFlow say where not all pixels are those of the image ...
_MISSING = ("premature end", "Premature end", "Input file read error")
_SENSELESS = ("bad Huffman code", "bad arithmetic code", "instead of RST", "inconsistent progression")
# ... and where TensorFlow's libjpeg lacks what Pillow's has.
_UNKNOWN_TO_TENSORFLOW = ("arithmetic coding", "Unsupported JPEG process")
# Lines of TensorFlow's own, which say nothing of the image, and libtiff's, to which Pillow does not listen either.
_TENSORFLOW = re.compile(r"[A-Z]\d{4} |\d{4}-\d\d-\d\d |WARNING: All log messages")
_LIBTIFF = re.compile(r"^(JPEGLib|TIFF\w*|\w*Decode\w*|\w*Unpack\w*): .{1,200}", re.MULTILINE)


def warm_up() -> None:
    """Starts TensorFlow's runtime, which takes a moment."""
    tf.constant(0)


def encode_checked(data: bytes, pixels: Pixels) -> tuple[Encoded, int]:
    """Returns what `pixels.encode` does, after TensorFlow has decoded it in full, and its perceptual hash.

    Not for threads: meanwhile, nothing of this process comes out on standard error.

    Raises:
      Exception: of any kind; the bytes are no image, or one that is damaged. `pixels.reason` words it.
    """
    aside, stderr = _aside(os.getpid())
    os.dup2(aside.fileno(), 2)
    decoded = np.empty(0, np.uint8)

    def check(data: bytes, image_format: str, size: Size) -> bool:
        nonlocal decoded
        decoded, is_clean = _checked(data, image_format, decode_ratio(*size))
        return is_clean

    try:
        encoded, anew = encode_where_checked(data, pixels, check)
        if aside.tell() and (told := _LIBTIFF.search(_heard(aside, 0))):
            raise ValueError(f"damaged ({told[0]})")
        return encoded, perceptual_hash(decoded if anew is None else anew)
    finally:
        os.dup2(stderr, 2)
        if aside.tell():
            _forget(aside, 0)


def encode_all_checked(images: Sequence[bytes], pixels: Pixels) -> Iterator[tuple[Encoded, int] | Exception]:
    """Yields what `encode_checked` returns, or raises, of each image.

    Pillow does its part of several images, then TensorFlow its, then numpy: in turn for each image, they would push
    each other's code out of the processor's caches, which costs as long as a small image's decoding.
    """
    aside, stderr = _aside(os.getpid())
    start = 0
    while start < len(images):
        together, area = [], 0
        os.dup2(aside.fileno(), 2)
        try:
            while start + len(together) < len(images) and area < _PIXELS_TOGETHER:
                together.append(_encoded_unchecked(images[start + len(together)], pixels))
                area += math.prod(together[-1][0].size) if together[-1] else 0
            decoded = [_decoded_clean(*one[1:]) if one else None for one in together]
        finally:
            os.dup2(stderr, 2)
        for data, one, seen in zip(images[start:], together, decoded, strict=False):
            try:
                # Whatever is not plain sailing is done anew, step by step.
                result = encode_checked(data, pixels) if seen is None else (one[0], perceptual_hash(seen))
            except Exception as error:  # whatever a decoder throws at a broken image, the image is to blame
                result = error
            yield result
        start += len(together)


def _encoded_unchecked(
    data: bytes, pixels: Pixels
) -> tuple[Encoded, np.ndarray | None, list[tuple[bytes, str, Size]]] | None:
    """Returns an image as encoded, its pixels where it was encoded anew, and what of it is to be checked.

    None where something was wrong.
    """
    aside, _ = _aside(os.getpid())
    asked = []

    def ask(*question: Any) -> bool:  # noqa: ANN401
        asked.append(question)
        return True

    with contextlib.suppress(Exception):
        encoded, anew = encode_where_checked(data, pixels, ask)
        if not aside.tell():
            return encoded, anew, asked
    _forget(aside, 0)
    return None


def _decoded_clean(anew: np.ndarray | None, asked: Sequence[tuple[bytes, str, Size]]) -> np.ndarray | None:
    """Returns an image's pixels, [height, width, 3] uint8; None where what is asked about is not clean."""
    decoded = anew
    for data, image_format, size in asked:
        try:
            seen, is_clean = _checked(data, image_format, decode_ratio(*size))
        except ValueError:
            return None
        if not is_clean:
            return None
        if anew is None:
            decoded = seen
    return decoded


@functools.cache  # by process, because forked ones would share a place in the file
def _aside(process: int) -> tuple[BinaryIO, int]:
    """Returns a file for what comes on standard error meanwhile, and standard error itself."""
    return tempfile.TemporaryFile(buffering=0), os.dup(2)


def _checked(data: bytes, image_format: str, ratio: int) -> tuple[np.ndarray, bool]:
    """Decodes an image, a JPEG to one `ratio`-th of its sides.

    Every entropy-coded bit is read, as for the full size, and few pixels are computed.

    Returns:
      ([height, width, 3] uint8, whether it is clean), as `pixels.encode` wants it of its `check`.

    Raises:
      ValueError: it is damaged.
    """
    aside, _ = _aside(os.getpid())
    heard = aside.tell()
    failure, decoded = "", np.empty(0, np.uint8)
    try:
        if image_format == "jpeg":
            # Given a tensor, and 1.0 where the default is 1, TensorFlow takes its short way to an operation.
            contents = tf.constant(data)
            decoded = tf.raw_ops.DecodeJpeg(contents=contents, channels=3, ratio=ratio, acceptable_fraction=1.0).numpy()
        else:
            decoded = tf.raw_ops.DecodePng(contents=tf.constant(data), channels=3).numpy()
    except tf.errors.OpError as error:
        failure = error.message.split(" [Op:")[0].split("}} ")[-1]
    if not failure and aside.tell() == heard:
        return decoded, True
    said = _heard(aside, heard)
    _forget(aside, heard)
    told = next((line for line in said.splitlines() if line.strip() and not _TENSORFLOW.match(line)), "")
    if any(sign in said for sign in _MISSING) or (failure and _lacks_its_end(data, image_format)):
        raise ValueError("truncated")
    if any(sign in said for sign in _UNKNOWN_TO_TENSORFLOW):
        return decoded, False
    if failure or any(sign in said for sign in _SENSELESS):
        if image_format == "png":
            raise ValueError("damaged PNG (its structure or a checksum)")
        raise ValueError(f"damaged JPEG ({' '.join((told or failure).split())[:200]})")
    return decoded, not told


def _heard(aside: BinaryIO, start: int) -> str:
    aside.seek(start)
    return aside.read().decode("utf-8", "replace")


def _forget(aside: BinaryIO, start: int) -> None:
    aside.seek(start)
    aside.truncate()


def _lacks_its_end(data: bytes, image_format: str) -> bool:
    if image_format == "jpeg":
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda") or b"\xff\xda" not in data  # end, start of scan
    return b"IEND" not in data[-64:]
