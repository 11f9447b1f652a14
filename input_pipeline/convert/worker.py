"""One image to one record, one list of images to one shard: the part of the converter that runs in worker processes."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from convoy.core.files import written_whole
from convoy.input_pipeline.convert import marks
from convoy.input_pipeline.convert.marks import Shard
from convoy.input_pipeline.convert.plan import content_hash
from convoy.input_pipeline.convert.sources import Source
from convoy.input_pipeline.dataset.records import FRAME_OVERHEAD, example, frame
from convoy.input_pipeline.images.pixels import MAX_FILE_BYTES, Encoded, Pixels, reason
from convoy.input_pipeline.images.worker_pool import report_progress

# Converted together; more of them gain nothing.
_IMAGES_A_GROUP = 16
_BYTES_A_GROUP = 2**21


class ShardTask(NamedTuple):
    """A shard to write.

    Attributes:
      path: where to.
      mark: where to note that it is whole.
      fingerprint: of all that its content follows from.
      images: in the order of the records.
      labels: of the images.
      pixels: what may happen to pixels.
    """

    path: Path
    mark: Path
    fingerprint: str
    images: tuple[Source, ...]
    labels: tuple[int, ...]
    pixels: Pixels


class Record(NamedTuple):
    """A serialised `tf.train.Example`, and what is known of its image: the fields of `metadata.IMAGE_TYPES`."""

    payload: bytes
    width: int
    height: int
    source_bytes: int
    content: int
    perceptual: int
    changed: bool


def write_shard(task: ShardTask) -> Shard:
    """Writes a shard and, beside it, its `.idx`: "offset size" a line, sizes of whole frames; then marks it as whole.

    Each is written under a name ending in `.tmp`, flushed to the disk, and renamed.

    Raises:
      StoppedError: the conversion was given up.
      OSError: the shard cannot be written.
    """
    rows, bad = [], []
    sha256 = hashlib.sha256()
    offset = 0
    with written_whole(task.path) as file:
        for first, images in _groups(task.images):
            report_progress(first)
            labels = task.labels[first : first + len(images)]
            for image, label, converted in zip(images, labels, records(images, labels, task.pixels), strict=True):
                if isinstance(converted, Exception):
                    bad.append((image, reason(converted)))
                    continue
                framed = frame(converted.payload)
                file.write(framed)
                sha256.update(framed)
                crc = int.from_bytes(framed[-4:], "little")
                rows.append((offset, len(converted.payload), label, crc, *converted[1:]))
                offset += len(framed)
    with written_whole(task.path.with_name(task.path.name + ".idx")) as file:
        file.write("".join(f"{start} {length + FRAME_OVERHEAD}\n" for start, length, *_ in rows).encode("ascii"))
    shard = Shard(task.path, offset, sha256.hexdigest(), marks.columns(rows), tuple(bad))
    marks.write(task.mark, shard, task.fingerprint)
    report_progress(len(task.images))
    return shard


def _groups(images: Sequence[Source]) -> Iterator[tuple[int, list[Source]]]:
    """Yields images to convert together, and the first one's number: some, unless they are large."""
    group, size = [], 0
    for i, image in enumerate(images):
        if group and (len(group) == _IMAGES_A_GROUP or size + image.size > _BYTES_A_GROUP):
            yield i - len(group), group
            group, size = [], 0
        group.append(image)
        size += image.size
    if group:
        yield len(images) - len(group), group


def records(images: Sequence[Source], labels: Sequence[int], pixels: Pixels) -> Iterator[Record | Exception]:
    """Yields each image's record.

    Of a file that is not an image that can be decoded in full, an exception of any kind; `reason` words it.
    """
    from convoy.input_pipeline.images import decoder

    files = [_read(image) for image in images]
    whole = [data for data in files if isinstance(data, bytes)]
    checked = decoder.encode_all_checked(whole, pixels)
    for image, label, data in zip(images, labels, files, strict=True):
        one = next(checked) if isinstance(data, bytes) else data
        yield one if isinstance(one, Exception) else _record(image, label, data, *one)


def _read(image: Source) -> bytes | Exception:
    if image.size > MAX_FILE_BYTES:
        return ValueError(f"a file of {image.size:,} bytes; images have up to {MAX_FILE_BYTES:,}")
    try:
        return image.read()
    except Exception as error:  # the reason is worded like any other
        return error


def _record(image: Source, label: int, data: bytes, encoded: Encoded, perceptual: int) -> Record:
    width, height = encoded.size
    payload = example(
        {
            "image/encoded": encoded.data,
            "image/format": encoded.format,
            "image/height": height,
            "image/width": width,
            "image/channels": encoded.channels,
            "image/class/label": label,
            "image/class/text": image.category,
            "image/filename": os.fsencode(image.name),
        }
    )
    return Record(payload, width, height, len(data), content_hash(data), perceptual, encoded.data is not data)
