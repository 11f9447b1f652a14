"""Marks of finished shards, so that a conversion that was killed can resume.

A shard's mark is written after the shard itself is on disk. It contains everything that the rest of the conversion
needs from the shard, and a fingerprint of the shard's inputs. A shard whose fingerprint still matches is reused.
"""

import functools
import hashlib
import importlib.metadata
import io
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convoy import __version__
from convoy.core.files import sha256_of, write_whole
from convoy.core.npz import opened, read_array
from convoy.input_pipeline.convert.sources import Source
from convoy.input_pipeline.dataset.image_facts import IMAGE_TYPES
from convoy.input_pipeline.dataset.index import INDEX_TYPES, MULTI_LABEL_TYPES, NUM_LABELS
from convoy.input_pipeline.dataset.open import FORMAT_VERSION

Label = int | tuple[int, ...]  # of an image: one, or any number of them

# The number of a record's shard is only known at the end.
_TYPES = {name: dtype for name, dtype in INDEX_TYPES.items() if name != "shard"} | IMAGE_TYPES
_ROW = tuple(_TYPES)
_DECODERS = ("pillow", "simplejpeg", "tensorflow")  # another version may write other bytes


@dataclass(frozen=True)
class Shard:
    """A shard that was written.

    Attributes:
      path: path of the file.
      size: size in bytes.
      sha256: SHA-256 of the file, hexadecimal.
      columns: [num_records] arrays by name: those of the index except `shard`, and of `IMAGE_TYPES`. With several
        labels per image, `label` has as many entries as `num_labels` adds up to.
      bad: images that were left out, as (image, reason).
    """

    path: Path
    size: int
    sha256: str
    columns: Mapping[str, np.ndarray]
    bad: tuple[tuple[Source, str], ...]

    @property
    def num_records(self) -> int:
        """Number of records."""
        return len(self.columns["offset"])

    @property
    def image_of_label(self) -> np.ndarray:
        """Record of each entry of the column `label`."""
        numbers = np.arange(self.num_records)
        return np.repeat(numbers, self.columns[NUM_LABELS]) if NUM_LABELS in self.columns else numbers


def columns(rows: Sequence[tuple[Any, ...]], *, multi_label: bool = False) -> dict[str, np.ndarray]:
    """Returns a shard's columns; `rows` has one tuple per record, with the values in the order of the columns.

    With `multi_label`, the label of a row is a tuple of labels.
    """
    values: dict[str, Any] = dict(zip(_ROW, zip(*rows, strict=True) if rows else [()] * len(_ROW), strict=True))
    if multi_label:
        values[NUM_LABELS] = list(map(len, values["label"]))
        values["label"] = list(itertools.chain.from_iterable(values["label"]))
    return {name: np.array(values[name], dtype) for name, dtype in _types(multi_label=multi_label).items()}


def _types(*, multi_label: bool) -> dict[str, Any]:
    return {**_TYPES, NUM_LABELS: MULTI_LABEL_TYPES[NUM_LABELS]} if multi_label else _TYPES


def fingerprint(images: Sequence[Source], labels: Sequence[Label], settings: Mapping[str, Any]) -> str:
    """Returns a hash of a shard's inputs.

    Args:
      images: images of the shard, in order. A changed file is detected by its size or modification time.
      labels: labels of the images.
      settings: settings of the dataset, as in the manifest, and limits that are not the default ones.
    """
    content = hashlib.sha256(json.dumps([FORMAT_VERSION, _versions(), dict(settings)]).encode())
    facts = (
        f"{image.name}\0{image.category}\0{image.size} {image.modified} {label}\n\n"
        for image, label in zip(images, labels, strict=True)
    )
    content.update(os.fsencode("".join(facts)))
    return content.hexdigest()


@functools.cache  # reading them takes milliseconds
def _versions() -> tuple[str, ...]:
    return (__version__, *(importlib.metadata.version(name) for name in _DECODERS))


def write(path: Path, shard: Shard, fingerprint: str) -> None:
    """Writes the mark of a finished shard.

    Raises:
      OSError: it cannot be written.
    """
    facts = {
        "size": shard.size,
        "sha256": shard.sha256,
        "fingerprint": fingerprint,
        "bad": [(os.fsencode(image.name).hex(), reason) for image, reason in shard.bad],
    }
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"facts": np.frombuffer(json.dumps(facts).encode(), np.uint8), **shard.columns}
    np.savez(buffer, **arrays)
    write_whole(path, buffer.getvalue())


def read(path: Path, shard_path: Path, images: Sequence[Source], fingerprint: str) -> Shard | None:
    """Returns a finished shard; None if it is not finished, damaged or outdated.

    Args:
      path: path of the mark.
      shard_path: path of the shard.
      images: images of the shard.
      fingerprint: the expected fingerprint.
    """
    try:
        with opened(path) as archive:
            facts = json.loads(read_array(archive, "facts", np.uint8).tobytes())
            types = _types(multi_label=any(image.labels is not None for image in images))
            loaded = {name: read_array(archive, name, dtype, dimensions=1) for name, dtype in types.items()}
        if facts["fingerprint"] != fingerprint or sha256_of(shard_path) != facts["sha256"]:
            return None
        by_name = {os.fsencode(image.name).hex(): image for image in images}
        bad = tuple((by_name[name], reason) for name, reason in facts["bad"])
        return Shard(shard_path, facts["size"], facts["sha256"], loaded, bad)
    except Exception:  # a file that a crash has cut short makes zipfile and numpy raise anything
        return None
