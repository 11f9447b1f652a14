"""One image to one record, one list of images to one shard: the part of the converter that runs in worker processes."""

import hashlib
import os
from collections.abc import MutableSequence
from pathlib import Path
from typing import NamedTuple

from input_pipeline.converter import marks
from input_pipeline.converter.marks import Shard
from input_pipeline.converter.plan import content_hash
from input_pipeline.files import written_whole
from input_pipeline.pixels import MAX_FILE_BYTES, Pixels, reason
from input_pipeline.processes import follow_parent
from input_pipeline.records import FRAME_OVERHEAD, example, frame
from input_pipeline.sources import Source

# Shared with the parent, int64: 1 once everybody should stop, then for each shard how many of its images are done, then
# for each shard the process that writes it.
_board: MutableSequence[int] = [0]


class StoppedError(Exception):
    """The conversion was given up; the shard is not needed any more."""


class ShardTask(NamedTuple):
    """A shard to write.

    Attributes:
      path: where to.
      mark: where to note that it is whole.
      fingerprint: of all that its content follows from.
      images: in the order of the records.
      labels: of the images.
      pixels: what may happen to pixels.
      number: its place on the progress board, from 0.
    """

    path: Path
    mark: Path
    fingerprint: str
    images: tuple[Source, ...]
    labels: tuple[int, ...]
    pixels: Pixels
    number: int = 0


class Record(NamedTuple):
    """A serialised `tf.train.Example`, and what is known of its image: the fields of `metadata.IMAGE_TYPES`."""

    payload: bytes
    width: int
    height: int
    source_bytes: int
    content: int
    perceptual: int
    changed: bool


def start(board: MutableSequence[int]) -> None:
    """Prepares a worker process."""
    global _board
    _board = board
    follow_parent()  # which answers Ctrl-C by the board
    from input_pipeline.converter import decoder

    decoder.warm_up()


def write_shard(task: ShardTask) -> Shard:
    """Writes a shard and, beside it, its `.idx`: "offset size" a line, sizes of whole frames; then marks it as whole.

    Each is written under a name ending in `.tmp`, flushed to the disk, and renamed.

    Raises:
      StoppedError: the conversion was given up.
      OSError: the shard cannot be written.
    """
    shards = (len(_board) - 1) // 2
    _board[1 + shards + task.number] = os.getpid()
    rows, bad = [], []
    sha256 = hashlib.sha256()
    offset = 0
    with written_whole(task.path) as file:
        for i, (image, label) in enumerate(zip(task.images, task.labels, strict=True)):
            _board[1 + task.number] = i
            if _board[0]:
                raise StoppedError
            try:
                converted = record(image, label, task.pixels)
            except Exception as error:  # whatever a decoder throws at a broken image, the image is to blame
                bad.append((image, reason(error)))
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
    _board[1 + task.number] = len(task.images)
    return shard


def record(image: Source, label: int, pixels: Pixels) -> Record:
    """Returns an image's record.

    Raises:
      Exception: of any kind, where the file is not an image that can be decoded in full; `reason` words it.
    """
    if image.size > MAX_FILE_BYTES:
        raise ValueError(f"a file of {image.size:,} bytes; images have up to {MAX_FILE_BYTES:,}")
    data = image.read()
    from input_pipeline.converter import decoder

    (encoded, image_format, (width, height), channels), perceptual = decoder.encode_checked(data, pixels)
    payload = example(
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
    return Record(payload, width, height, len(data), content_hash(data), perceptual, encoded is not data)
