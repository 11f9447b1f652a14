"""What the records of other tools have instead of one encoded image: pixels, floats, several images.

image_problem(features, "image")  # "'image' is 6,912 floats, not an encoded image"
"""

import math
from collections.abc import Mapping

from convoy.core.errors import DataError
from convoy.core.reading import open_file
from convoy.core.text import counted
from convoy.input_pipeline.dataset.examples import Values, from_bytes, read_features
from convoy.input_pipeline.dataset.index import Scan
from convoy.input_pipeline.dataset.layout import Layout
from convoy.input_pipeline.dataset.records import HEADER_BYTES
from convoy.input_pipeline.images.kinds import is_image, kind_of

ENCODE = "Write each record with one encoded image, such as from tf.io.encode_png"
_LOOKED_AT = 3  # records
_SMALLEST_SIDE = 8  # pixels; shorter bytes are not taken for pixels
_CHANNELS = (3, 1, 4)


def check_first_images(layout: Layout, split: str, found: Scan) -> None:
    """Checks that not all of the first records of a split have something else than one encoded image.

    Damaged records are left to the reader.

    Raises:
      DataError: they have; names what.
    """
    problems = []
    for number in range(min(_LOOKED_AT, len(found.arrays["label"]))):
        shard, offset, length = (int(found.arrays[name][number]) for name in ("shard", "offset", "length"))
        try:
            with open_file(layout.splits[split][shard]) as file:
                file.seek(offset + HEADER_BYTES)
                problems.append(image_problem(read_features(from_bytes(file.read(length)), length), layout.keys.image))
        except (OSError, ValueError):
            return
    if problems and all(problems):
        name = layout.splits[split][int(found.arrays["shard"][0])]
        raise DataError(f"{name}: in the first records, {problems[0]}. {ENCODE}")


def image_problem(features: Mapping[str, Values], key: str) -> str:
    """Returns what a record has instead of one encoded image; "" if it has one or its bytes are unknown."""
    values = features.get(key)
    if values is None:
        return f"the record has no {key!r}"
    if not values:
        return f"{key!r} is an empty list"
    kind = {bytes: "images", float: "floats", int: "integers"}[type(values[0])]
    if len(values) > 1 or kind != "images":
        whole = ": the record has more than one" if kind == "images" else ", not an encoded image"
        return f"{key!r} is {counted(len(values), kind[:-1])}{whole}"
    data = values[0]
    assert isinstance(data, bytes)
    if is_image(data) or features.get("image/format") in ([b"raw"], [b"RAW"]):
        return ""
    if size := _pixels_size(features, len(data)):
        return f"{key!r} is {len(data):,} bytes, as many as raw pixels of {size} have, not an encoded image"
    kind = kind_of(data)
    return f"{key!r} is {kind}" if kind and "damaged" not in kind and "zero bytes" not in kind else ""


def _pixels_size(features: Mapping[str, Values], length: int) -> str:
    """Returns the sides and channels of an image whose raw pixels have this many bytes; "" if it is none."""
    sides = [_side(features, "height"), _side(features, "width")]
    for channels in _CHANNELS:
        side = math.isqrt(length // channels)
        for height, width in (sides, (side, side)):
            if min(height, width) >= _SMALLEST_SIDE and height * width * channels == length:
                return f"{height}x{width}x{channels}"
    return ""


def _side(features: Mapping[str, Values], name: str) -> int:
    found = [values[0] for key, values in features.items() if name in key.lower() and len(values) == 1]
    return found[0] if found and isinstance(found[0], int) else 0
