"""Which shards of a conversion are whole, for the next start after a kill.

A shard's mark is written after the shard itself is on the disk. It holds all that the rest of the conversion needs to
know of the shard, and a fingerprint of what the shard's content follows from: a mark that still fits stands for the
work.
"""

import hashlib
import importlib.metadata
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convoy import __version__
from convoy.core.files import sha256_of, write_whole
from convoy.input_pipeline.convert.metadata import IMAGE_TYPES
from convoy.input_pipeline.convert.sources import Source
from convoy.input_pipeline.dataset.open import FORMAT_VERSION, INDEX_TYPES

# Which shard a record is in is known once all are there.
_TYPES = {name: dtype for name, dtype in INDEX_TYPES.items() if name != "shard"} | IMAGE_TYPES
_DECODERS = ("pillow", "tensorflow")  # whose next version may write other bytes


@dataclass(frozen=True)
class Shard:
    """A shard as written.

    Attributes:
      path: of the file.
      size: in bytes.
      sha256: of the file, as hex.
      columns: [num_records] arrays by name: those of the index but `shard`, and of `metadata.IMAGE_TYPES`.
      bad: the images that were left out of it, as (image, reason).
    """

    path: Path
    size: int
    sha256: str
    columns: Mapping[str, np.ndarray]
    bad: tuple[tuple[Source, str], ...]

    @property
    def num_records(self) -> int:
        """How many records it holds."""
        return len(self.columns["label"])


def columns(rows: Sequence[tuple]) -> dict[str, np.ndarray]:
    """Returns a shard's columns from a row of values a record, in the order of the columns."""
    values = zip(*rows, strict=True) if rows else [()] * len(_TYPES)
    return {name: np.array(column, dtype) for (name, dtype), column in zip(_TYPES.items(), values, strict=True)}


def fingerprint(images: Sequence[Source], labels: Sequence[int], settings: Mapping[str, Any]) -> str:
    """Returns a hash of what a shard's content follows from.

    Args:
      images: of the shard, in order; a file that has changed shows by its size or its time.
      labels: of the images.
      settings: of the conversion.
    """
    versions = [__version__, *(importlib.metadata.version(name) for name in _DECODERS)]
    content = hashlib.sha256(json.dumps([FORMAT_VERSION, versions, dict(settings)]).encode())
    for image, label in zip(images, labels, strict=True):
        words = (os.fsencode(image.name), image.category.encode(), b"%d %d %d" % (image.size, image.modified, label))
        content.update(b"\0".join(words) + b"\n\n")
    return content.hexdigest()


def write(path: Path, shard: Shard, of: str) -> None:
    """Notes that a shard with the fingerprint `of` is whole.

    Raises:
      OSError: it cannot be written.
    """
    facts = {"size": shard.size, "sha256": shard.sha256, "fingerprint": of}
    facts["bad"] = [(os.fsencode(image.name).hex(), reason) for image, reason in shard.bad]
    buffer = io.BytesIO()
    np.savez(buffer, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **shard.columns)
    write_whole(path, buffer.getvalue())


def read(path: Path, shard_path: Path, images: Sequence[Source], of: str) -> Shard | None:
    """Returns the shard that a mark stands for; None where there is none, or what it says does not hold (any more).

    Args:
      path: of the mark.
      shard_path: of the shard.
      images: that the shard is to be made of.
      of: the fingerprint that it is to have.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            facts = json.loads(file["facts"].tobytes())
            loaded = {name: file[name] for name in _TYPES}
        if facts["fingerprint"] != of:
            return None
        if sha256_of(shard_path) != facts["sha256"]:
            return None
        by_name = {os.fsencode(image.name).hex(): image for image in images}
        bad = tuple((by_name[name], reason) for name, reason in facts["bad"])
        return Shard(shard_path, facts["size"], facts["sha256"], loaded, bad)
    except Exception:  # whatever is wrong with a file that a crash may have cut short, the shard is written anew
        return None
