"""One image to one record, one list of images to one shard: the part of the converter that runs in worker processes.

Bytes pass through untouched unless they must change, so that converting loses nothing: a decoder sees what the camera
or the shop wrote. What must change goes through Pillow once.
"""

import contextlib
import hashlib
import io
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator, MutableSequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from input_pipeline.records import FRAME_OVERHEAD, example, frame
from input_pipeline.sources import Source

JPEG_QUALITY = 92
ORIENTATION_TAG = 0x0112
# Formats whose bytes TensorFlow decodes as they are. A multi-picture object (MPO) is a JPEG with more behind it.
_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}
# Where a PNG holds none of these it has no orientation, and need not be decoded by Pillow to know it.
_PNG_ORIENTATION_MARKS = (b"eXIf", b"Raw profile type exif", b"tiff:Orientation")
_PNG_BIT_DEPTH_BYTE = 24

# [1 + shards] int64, shared: the first is 1 once everybody should stop, then how many images of each shard are done.
_board: MutableSequence[int] = [0]


class StoppedError(Exception):
    """The conversion was given up; the shard is not needed any more."""


@dataclass(frozen=True)
class Pixels:
    """What may happen to pixels.

    Attributes:
      image_size: side of the square that images are resized to; 0 leaves them their size.
      encoding: "keep", "jpeg", "png" or "raw" (uint8 RGB, row by row).
    """

    image_size: int
    encoding: str


@dataclass(frozen=True)
class ShardTask:
    """A shard to write: `number` is its place on the progress board, from 0; labels go with `images`."""

    number: int
    path: Path
    images: tuple[Source, ...]
    labels: tuple[int, ...]
    pixels: Pixels


@dataclass(frozen=True)
class Shard:
    """A shard as written, and the images that were left out of it as (image, reason)."""

    path: Path
    size: int
    sha256: str
    offset: np.ndarray  # [num_records] int64: start of the frame, bytes
    length: np.ndarray  # [num_records] int64: payload bytes
    label: np.ndarray  # [num_records] int32
    crc: np.ndarray  # [num_records] uint32: masked crc32c of the payload
    bad: tuple[tuple[Source, str], ...]


def start(board: MutableSequence[int]) -> None:
    """Prepares a worker process."""
    global _board
    _board = board
    # The parent answers Ctrl-C, by the board; a traceback from each worker would bury its message.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    from input_pipeline import decoder

    decoder.warm_up()


def is_ready() -> bool:
    """Returns True; to have a worker process started before there is work for it."""
    return True


def write_shard(task: ShardTask) -> Shard:
    """Writes a shard and, beside it, its `.idx`: "offset size" a line, sizes of whole frames.

    Both are written under a name ending in `.tmp`, flushed to the disk, and renamed.

    Raises:
      StoppedError: the conversion was given up.
      OSError: the shard cannot be written.
    """
    offsets, lengths, labels, crcs, bad = [], [], [], [], []
    sha256 = hashlib.sha256()
    offset = 0
    with _written_whole(task.path) as file:
        for i, (image, label) in enumerate(zip(task.images, task.labels, strict=True)):
            _board[1 + task.number] = i
            if _board[0]:
                raise StoppedError
            try:
                payload = record(image, label, task.pixels)
            except Exception as error:  # whatever a decoder throws at a broken image, the image is to blame
                bad.append((image, reason(error)))
                continue
            framed = frame(payload)
            file.write(framed)
            sha256.update(framed)
            offsets.append(offset)
            lengths.append(len(payload))
            labels.append(label)
            crcs.append(int.from_bytes(framed[-4:], "little"))
            offset += len(framed)
    with _written_whole(task.path.with_name(task.path.name + ".idx")) as file:
        lines = (f"{start} {length + FRAME_OVERHEAD}\n" for start, length in zip(offsets, lengths, strict=True))
        file.write("".join(lines).encode("ascii"))
    _board[1 + task.number] = len(task.images)
    return Shard(
        path=task.path,
        size=offset,
        sha256=sha256.hexdigest(),
        offset=np.array(offsets, np.int64),
        length=np.array(lengths, np.int64),
        label=np.array(labels, np.int32),
        crc=np.array(crcs, np.uint32),
        bad=tuple(bad),
    )


def record(image: Source, label: int, pixels: Pixels) -> bytes:
    """Returns an image's record, a serialised `tf.train.Example`.

    Raises:
      Exception: of any kind, where the file is not an image that can be decoded in full; `reason` words it.
    """
    with open(image.path, "rb") as file:
        data = file.read()
    if not data:
        raise ValueError("the file is empty")
    encoded, image_format, (width, height), channels = encode(data, pixels)
    return example(
        {
            "image/encoded": encoded,
            "image/format": image_format,
            "image/height": height,
            "image/width": width,
            "image/channels": channels,
            "image/class/label": label,
            "image/class/text": image.category,
            "image/filename": os.fsencode(image.name),
        }
    )


def encode(data: bytes, pixels: Pixels) -> tuple[bytes, str, tuple[int, int], int]:
    """Returns an image's bytes as they go into the record.

    Args:
      data: the file's bytes.
      pixels: what may happen to them.

    Returns:
      (bytes, format, (width, height), channels): format is "jpeg", "png" or "raw".

    Raises:
      Exception: the bytes are no image, or cannot be decoded in full.
    """
    from input_pipeline import decoder

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data)) as image:
            image_format = _FORMATS.get(image.format, "")
            size, channels = image.size, len(image.getbands())
            target = _target_format(image, pixels.encoding)
            if image_format != target or _must_change(image, data, pixels.image_size):
                rgb = _as_rgb(image, pixels.image_size)
                data, size, channels = _encoded(rgb, target), rgb.size, 3
    if target != "raw":
        decoder.check(data, target)
    return data, target, size, channels


def reason(error: Exception) -> str:
    """Returns why an image was left out, in one line and without what differs between runs (addresses)."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or of a format that Pillow does not know"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:300] or type(error).__name__


def _target_format(image: Image.Image, encoding: str) -> str:
    if encoding != "keep":
        return encoding
    # What was lossy becomes JPEG where it must change, and what was lossless PNG.
    return "jpeg" if image.format in ("JPEG", "MPO", "WEBP", "AVIF") else "png"


def _must_change(image: Image.Image, data: bytes, image_size: int) -> bool:
    """Says whether TensorFlow's decoder would give other pixels than a viewer shows, or another size was asked for."""
    if image_size and image.size != (image_size, image_size):
        return True
    if image.mode not in ("RGB", "L") or "transparency" in image.info:
        return True
    if image.format == "PNG":
        # Pillow opens 16-bit RGB under mode "RGB" too, so the depth is read from the header.
        return (
            data[_PNG_BIT_DEPTH_BYTE] != 8
            or getattr(image, "is_animated", False)
            or (any(mark in data for mark in _PNG_ORIENTATION_MARKS) and _orientation(image) != 1)
        )
    return _orientation(image) != 1


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION_TAG, 1) or 1
    except Exception:  # metadata that cannot be parsed says nothing about the pixels
        return 1


def _as_rgb(image: Image.Image, image_size: int) -> Image.Image:
    """Decodes the first frame: oriented, on white, 8-bit RGB, resized to a square with antialiasing (bilinear)."""
    orientation = _orientation(image)
    if image_size:
        # Lets libjpeg skip the finest frequencies, which a resize to less than half throws away anyway.
        image.draft(image.mode, (2 * image_size, 2 * image_size))
    image.load()
    if orientation != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    elif "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    image = image.convert("RGB")
    if image_size and image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return image


def _encoded(rgb: Image.Image, target: str) -> bytes:
    if target == "raw":
        return rgb.tobytes()
    buffer = io.BytesIO()
    rgb.info.clear()  # or Pillow would carry orientation, transparency and comments over
    if target == "jpeg":
        rgb.save(buffer, "JPEG", quality=JPEG_QUALITY)
    else:
        rgb.save(buffer, "PNG")
    return buffer.getvalue()


@contextlib.contextmanager
def _written_whole(path: Path) -> Iterator[io.BufferedWriter]:
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb", buffering=2**20) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
