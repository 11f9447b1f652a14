"""One image to one record, one list of images to one shard: the part of the converter that runs in worker processes."""

import hashlib
import os
from collections.abc import MutableSequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from input_pipeline.files import written_whole
from input_pipeline.pixels import Pixels, encode, reason
from input_pipeline.processes import follow_parent
from input_pipeline.records import FRAME_OVERHEAD, example, frame
from input_pipeline.sources import Source

# [1 + shards] int64, shared: the first is 1 once everybody should stop, then how many images of each shard are done.
_board: MutableSequence[int] = [0]


class StoppedError(Exception):
    """The conversion was given up; the shard is not needed any more."""


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
    follow_parent()  # which answers Ctrl-C by the board
    from input_pipeline.converter import decoder

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
    with written_whole(task.path) as file:
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
    with written_whole(task.path.with_name(task.path.name + ".idx")) as file:
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
    if image_format != "raw":
        from input_pipeline.converter import decoder

        decoder.check(encoded, image_format)
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
