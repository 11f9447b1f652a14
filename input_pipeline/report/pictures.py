"""Thumbnails as data URIs, of records and of source files.

Records are decoded as in training. A truncated source file gives a thumbnail of the part that decodes.
"""

import base64
import contextlib
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from convoy.core.errors import ConvoyError, DataError
from convoy.input_pipeline.dataset.examples import from_bytes, read_features
from convoy.input_pipeline.dataset.open import Split
from convoy.input_pipeline.dataset.records import FRAME_OVERHEAD, checked_payloads
from convoy.input_pipeline.dataset.storage import Shards
from convoy.input_pipeline.images.pixels import FORMATS

SIDE = 96  # pixels of the longer side
_QUALITY = 72
# Source files beyond these limits get no thumbnail: a report must not take long.
_MAX_FILE_BYTES = 50_000_000
_MAX_PIXELS = 16_000_000  # to decode; a large JPEG is decoded at an eighth of its size

_Features = Mapping[str, int | float | bytes]


@dataclass(frozen=True)
class Picture:
    """An image to show. `uri` is empty if there is no thumbnail; names are not escaped yet."""

    uri: str
    name: str
    category: str
    split: str


def of_records(
    splits: Mapping[str, Split], class_names: Sequence[str], wanted: Iterable[tuple[str, int]], *, delimiter: str = ""
) -> dict[tuple[str, int], Picture]:
    """Reads records and makes their thumbnails.

    Args:
      splits: splits by name.
      class_names: class names by label.
      wanted: (split, number of the record) pairs, in any order.
      delimiter: what separates the labels of an image in its category.

    Returns:
      One picture for each pair; without a thumbnail if the record is damaged or missing.
    """
    by_shard: dict[tuple[str, int], list[int]] = {}
    for name, position in sorted(set(wanted)):
        by_shard.setdefault((name, int(splits[name].shard[position])), []).append(position)
    pictures = {}
    for (name, shard), positions in by_shard.items():
        split = splits[name]
        for position, payload in zip(positions, _payloads(split, shard, positions), strict=True):
            features = _features(payload)
            uri = _thumbnail(partial(_decoded, features, split.keys.image))
            filename = features.get("image/filename")
            shown = os.fsdecode(filename) if isinstance(filename, bytes) else ""
            category = delimiter.join(class_names[label] for label in split.labels_of(position))
            pictures[name, position] = Picture(uri, shown, category, name)
    return pictures


def of_file(path: Path) -> str:
    """Returns the thumbnail of a source file; "" if it cannot be decoded at all."""
    return _thumbnail(partial(_opened, path))


def _payloads(split: Split, shard: int, positions: Sequence[int]) -> Iterator[bytes]:
    """Yields payloads of a shard's records; b"" for a record that is damaged or missing."""
    if split.source:
        yield from split.source.records(positions)
        return
    try:
        shards = Shards([split.shard_paths[shard]])
    except DataError:
        yield from (b"" for _ in positions)
        return
    with contextlib.closing(shards):
        for position in positions:
            offset, size = int(split.offset[position]), int(split.length[position]) + FRAME_OVERHEAD
            try:
                yield checked_payloads([shards.read(0, offset, size)], split.locations(np.array([position])))[0]
            except ConvoyError:
                yield b""


def _thumbnail(open_image: Callable[[], Image.Image]) -> str:
    try:
        image = open_image()
        image.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
        return data_uri(image.convert("RGB"), quality=_QUALITY)
    except Exception:  # decoders raise anything for a damaged image
        return ""


def data_uri(image: Image.Image, **options: int) -> str:
    """Returns an RGB image as the data URI of a JPEG; `options` are those of Pillow's encoder."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _decoded(features: _Features, key: str) -> Image.Image:
    encoded = features[key]
    if not isinstance(encoded, bytes):
        raise ValueError(f"{key} has no bytes")
    if features.get("image/format") == b"raw":
        return Image.frombytes("RGB", (int(features["image/width"]), int(features["image/height"])), encoded)
    return Image.open(io.BytesIO(encoded), formats=FORMATS)


def _opened(path: Path) -> Image.Image:
    found = path.stat()  # before opening it: opening a pipe blocks
    if not stat.S_ISREG(found.st_mode) or not 0 < found.st_size <= _MAX_FILE_BYTES:
        raise ValueError
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large images; they are rejected below
        # Pillow runs external programs for some other formats.
        image: Image.Image = Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS)
    image.draft("RGB", (2 * SIDE, 2 * SIDE))
    if image.width * image.height > _MAX_PIXELS:
        raise ValueError
    with _truncated_images_allowed():
        image.load()
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


@contextlib.contextmanager
def _truncated_images_allowed() -> Iterator[None]:
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _features(payload: bytes) -> _Features:
    """Returns the first value of each feature of a record; {} if it is not a tf.train.Example."""
    try:
        features = read_features(from_bytes(payload), len(payload))
    except ValueError:
        return {}
    return {name: values[0] for name, values in features.items() if values}
