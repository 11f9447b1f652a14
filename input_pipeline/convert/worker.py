"""Conversion of one shard's images to records, and their perceptual hashes, in a worker process."""

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convoy.core.files import write_whole, written_whole
from convoy.input_pipeline.convert import marks
from convoy.input_pipeline.convert.marks import Label, Shard
from convoy.input_pipeline.convert.plan import content_hash
from convoy.input_pipeline.convert.sources import Source
from convoy.input_pipeline.dataset.index import idx_lines
from convoy.input_pipeline.dataset.records import FOOTER_BYTES, example, frame
from convoy.input_pipeline.images import decoder
from convoy.input_pipeline.images.perceptual import FLAT
from convoy.input_pipeline.images.pixels import Encoded, Limits, Pixels, reason
from convoy.input_pipeline.images.worker_pool import report_progress

# Limits of a group of images that is converted together; larger groups are not faster.
_GROUP_IMAGES = 16
_GROUP_BYTES = 2**21


class ShardTask(NamedTuple):
    """A shard to write.

    Attributes:
      path: path of the shard.
      mark: path of its mark.
      fingerprint: fingerprint of its inputs (`marks.fingerprint`).
      images: images in the order of the records.
      labels: labels of the images.
      pixels: size and encoding of the images.
    """

    path: Path
    mark: Path
    fingerprint: str
    images: tuple[Source, ...]
    labels: tuple[Label, ...]
    pixels: Pixels


class HashTask(NamedTuple):
    """Images to hash as `ShardTask` would store them; `path` is the file of their hashes."""

    path: Path
    images: tuple[Source, ...]
    pixels: Pixels


class Record(NamedTuple):
    """A serialized `tf.train.Example` and the facts of its image, as in `IMAGE_TYPES`."""

    payload: bytes
    width: int
    height: int
    source_bytes: int
    content: int
    perceptual: int
    changed: bool


def write_shard(task: ShardTask) -> Shard:
    """Writes a shard, its `.idx` file (`idx_lines`), and its mark.

    Each file is written under a name ending in `.tmp`, flushed to disk, and renamed.

    Raises:
      StoppedError: the conversion was cancelled.
      OSError: a file cannot be written.
    """
    with written_whole(task.path) as file:
        shard = _converted(task, file.write)
    write_whole(task.path.with_name(task.path.name + ".idx"), idx_lines(shard.columns))
    marks.write(task.mark, shard, task.fingerprint)
    report_progress(len(task.images))
    return shard


def check_shard(task: ShardTask) -> Shard:
    """Returns what `write_shard` would, and writes nothing.

    Raises:
      StoppedError: the conversion was cancelled.
    """
    shard = _converted(task, lambda framed: None)
    report_progress(len(task.images))
    return shard


def _converted(task: ShardTask, write: Callable[[bytes], object]) -> Shard:
    """Returns a shard whose framed records are passed to `write`."""
    rows: list[tuple[Label | bool, ...]] = []
    bad: list[tuple[Source, str]] = []
    sha256 = hashlib.sha256()
    offset = 0
    for first, images in _groups(task.images):
        report_progress(first)
        labels = task.labels[first : first + len(images)]
        for image, label, converted in zip(images, labels, records(images, labels, task.pixels), strict=True):
            if isinstance(converted, Exception):
                bad.append((image, reason(converted)))
                continue
            framed = frame(converted.payload)
            write(framed)
            sha256.update(framed)
            crc = int.from_bytes(framed[-FOOTER_BYTES:], "little")
            payload, *facts = converted
            rows.append((offset, len(payload), label, crc, *facts))
            offset += len(framed)
    columns = marks.columns(rows, multi_label=any(image.labels is not None for image in task.images))
    return Shard(task.path, offset, sha256.hexdigest(), columns, tuple(bad))


def write_hashes(task: HashTask) -> None:
    """Writes the perceptual hash of each image, `FLAT` for those that cannot be decoded.

    Raises:
      StoppedError: the conversion was cancelled.
      OSError: the file cannot be written.
    """
    hashes: list[int] = []
    for first, images in _groups(task.images):
        report_progress(first)
        hashes += [FLAT if isinstance(one, Exception) else one[2] for one in _encoded(images, task.pixels)]
    buffer = io.BytesIO()
    np.savez(buffer, hashes=np.array(hashes, np.uint64))
    write_whole(task.path, buffer.getvalue())
    report_progress(len(task.images))


def _groups(images: Sequence[Source]) -> Iterator[tuple[int, list[Source]]]:
    """Yields groups of images to convert together, each with the number of its first image."""
    group: list[Source] = []
    size = 0
    for i, image in enumerate(images):
        if group and (len(group) == _GROUP_IMAGES or size + image.size > _GROUP_BYTES):
            yield i - len(group), group
            group, size = [], 0
        group.append(image)
        size += image.size
    if group:
        yield len(images) - len(group), group


def records(images: Sequence[Source], labels: Sequence[Label], pixels: Pixels) -> Iterator[Record | Exception]:
    """Yields the record of each image, or an exception of any type if the image cannot be decoded in full.

    `pixels.reason` gives the text of the exception.
    """
    for image, label, one in zip(images, labels, _encoded(images, pixels), strict=True):
        yield one if isinstance(one, Exception) else _record(image, label, *one)


def _encoded(images: Sequence[Source], pixels: Pixels) -> Iterator[tuple[bytes, Encoded, int] | Exception]:
    """Yields the file, record bytes and perceptual hash of each image, or an exception as `records`."""
    files = [_read(image, pixels.limits) for image in images]
    whole = [data for data in files if isinstance(data, bytes)]
    checked = decoder.encode_all_checked(whole, pixels)
    for data in files:
        if isinstance(data, Exception):
            yield data
            continue
        encoded = next(checked)
        yield encoded if isinstance(encoded, Exception) else (data, *encoded)


def _read(image: Source, limits: Limits) -> bytes | Exception:
    try:
        limits.check_file(image.size)
        return image.read()
    except Exception as error:  # reported like a decoding error
        return error


def _record(image: Source, label: Label, data: bytes, encoded: Encoded, perceptual: int) -> Record:
    width, height = encoded.size
    payload = example(
        {
            "image/encoded": encoded.data,
            "image/format": encoded.format,
            "image/height": height,
            "image/width": width,
            "image/channels": encoded.channels,
            "image/class/label": label,
            "image/class/text": image.category if image.labels is None else image.labels,
            "image/filename": os.fsencode(image.name),
        }
    )
    return Record(payload, width, height, len(data), content_hash(data), perceptual, encoded.data is not data)
