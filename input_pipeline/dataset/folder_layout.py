"""The layout of a directory of TFRecord shards without metadata, from file names and the first record.

Shards are recognized by their content, whatever their names. The names of the files or of their directories contain the
split (`train-00000-of-01024`, `flowers-test.tfrecord`, `validation/01.tfrec`). The records have the keys
`image/encoded` and `image/class/label`, like the ImageNet records of Model Garden, or `image` and `label`, or those
that the user names.
"""

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from convoy.core.errors import DataError
from convoy.core.reading import open_file
from convoy.core.text import counted
from convoy.input_pipeline.dataset.examples import Values, from_file, read_features
from convoy.input_pipeline.dataset.index import RecordKeys
from convoy.input_pipeline.dataset.layout import COPY, DATASET_INFO, Layout, RecordFormat
from convoy.input_pipeline.dataset.records import HEAD_BYTES, HEADER_BYTES, compression_of, walk
from convoy.input_pipeline.images.kinds import is_image

_TEXT_KEY = "image/class/text"
# Words in file names that identify the split.
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "eval", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NUMBERED = re.compile(
    r"(?P<stem>.+?)(?P<suffix>\.tfrec\w*)?-(?P<number>\d{1,6})-of-(?P<total>\d{1,6})(?P<end>(\.\w+)*)"
)
_NAMED = re.compile(r".+\.tfrec\w*(\.gz)?")
# Records too, but not of a dataset: TensorBoard's.
_EVENTS = ".tfevents."
# Not opened to look for records, since there may be many.
_OTHER_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".npy", ".txt", ".xml"))
_IMAGE_KEYS = ("image/encoded", "image")
_LABEL_KEYS = ("image/class/label", "label")


def folder_layout(directory: Path, record_format: RecordFormat, default_split: str = "") -> Layout | None:
    """Returns the layout of a directory of shards, or None if it has no TFRecords.

    Args:
      directory: the directory.
      record_format: what the user says about the records.
      default_split: the split of all shards if no name contains one.

    Raises:
      DataError: it has TFRecords that cannot be used.
      OSError: it cannot be listed.
    """
    inner = {path.parent for path in _files(directory) if path.name == DATASET_INFO} - {directory}
    if inner:
        raise DataError(f"{directory} is not a dataset; did you mean its subdirectory? Pass --data={min(inner)}")
    found: dict[str, list[Path]] = {}
    without_split: list[Path] = []
    numbered: dict[tuple[Path, str], list[tuple[int, int]]] = {}  # total and number of each, by folder and stem
    for path, compression in compression_by_file(directory).items():
        if compression:
            raise DataError(
                f"{path} is {compression}-compressed: single records cannot be read. Decompress it, or convert the "
                f"folder, which does: convoy convert --tfrecords={directory} --output=DATA"
            )
        parsed = _NUMBERED.fullmatch(path.name)
        split = split_of(parsed["stem"] if parsed else path.name)
        if parsed:
            if not split and parsed["suffix"] and "-" in parsed["stem"]:
                split = parsed["stem"].rpartition("-")[2]
            numbered.setdefault((path.parent, parsed["stem"]), []).append((int(parsed["total"]), int(parsed["number"])))
        if not split and path.parent != directory:
            split = split_of(path.parent.name)
        if split:
            found.setdefault(split, []).append(path)
        else:
            without_split.append(path)
    if without_split and default_split and not found:
        found[default_split] = without_split
    elif without_split:
        raise DataError(
            f"{without_split[0]}: unknown split. Put 'train', 'validation' or 'test' in its name, for example "
            "train-00000-of-00008, or in the name of its directory"
        )
    for (folder, stem), shards in numbered.items():
        check_complete(folder, stem, shards)
    if not found:
        return None
    first = next((path for paths in found.values() for path in paths if path.stat().st_size), None)
    keys, text_key = _keys_in(first, record_format) if first else (RecordKeys(), "")
    splits = {split: tuple(paths) for split, paths in sorted(found.items())}
    return Layout(directory.absolute().name, splits, keys, None, {}, text_key)


def compression_by_file(directory: Path) -> dict[Path, str]:
    """Returns how the records of each shard in a directory and its subdirectories are compressed (`compression_of`).

    Raises:
      OSError: the directory or a file cannot be read.
    """
    found = {path: _compression(path) for path in sorted(_files(directory))}
    return {path: compression for path, compression in found.items() if compression is not None}


def _compression(path: Path) -> str | None:
    """Returns how the records in a file are compressed (`compression_of`); None if it has none."""
    if path.suffix.lower() in _OTHER_SUFFIXES or _EVENTS in path.name:
        return None
    try:
        with open(path, "rb") as file:
            compression = compression_of(file.read(HEAD_BYTES))
    except OSError:
        compression = None
    if compression is None and _is_named_like_a_shard(path.name):
        return ""  # empty, damaged or unreadable, which reading it reports
    return compression


def _is_named_like_a_shard(name: str) -> bool:
    parsed = _NUMBERED.fullmatch(name)
    if not parsed or parsed["end"]:
        return bool(_NAMED.fullmatch(name))
    return bool(parsed["suffix"] or split_of(parsed["stem"]))  # unlike the shards of a checkpoint


def check_complete(folder: Path, stem: str, shards: Sequence[tuple[int, int]]) -> None:
    """Checks that a set of shards, given as (total, number), is complete and without duplicates."""
    totals, numbers = sorted({total for total, _ in shards}), {number for _, number in shards}
    if len(totals) > 1:
        raise DataError(
            f"{folder} has shards {stem!r} of a set of {totals[0]} and of a set of {totals[1]}, so images may be "
            "duplicated: move the outdated set elsewhere"
        )
    (total,) = totals
    if len(numbers) != total or max(numbers) >= total:
        missing = min(set(range(total)) - numbers, default=total)
        raise DataError(f"{folder}: shard {missing} of the {total} shards {stem!r} is missing; copy them again")
    if len(shards) != total:
        twice = next(number for _, number in shards if shards.count((total, number)) > 1)
        raise DataError(
            f"{folder} has shard {twice} of {counted(total, 'shard')} {stem!r} twice, with different suffixes: move "
            "the outdated set elsewhere"
        )


def _files(directory: Path) -> Iterable[Path]:
    """Yields the files of a directory and of its subdirectories, except hidden entries."""
    for entry in os.scandir(directory):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from (Path(inner.path) for inner in os.scandir(entry.path) if inner.is_file())
        elif entry.is_file():
            yield Path(entry.path)


def split_of(name: str) -> str:
    """Returns the split identified by the last matching word of a name, or ""."""
    known = [_SPLIT_WORDS[word] for word in re.findall("[a-z]+", name.lower()) if word in _SPLIT_WORDS]
    return known[-1] if known else ""


def _keys_in(shard: Path, record_format: RecordFormat) -> tuple[RecordKeys, str]:
    """Returns the keys of image and label in the first record of a shard, and the key of the class text or ""."""
    offset, length, _ = next(walk(shard, COPY))
    try:
        with open_file(shard) as file:
            features = read_features(from_file(file.fileno(), offset + HEADER_BYTES, length), length)
    except (OSError, ValueError) as error:
        raise DataError(f"{shard}: the record at offset {offset} is not a tf.train.Example ({error})") from None
    images = [record_format.image_key] if record_format.image_key else _IMAGE_KEYS
    labels = [record_format.label_key] if record_format.label_key else _LABEL_KEYS
    image = next((key for key in images if key in features), "")
    label = next((key for key in labels if key in features), "")
    if not image or not label:
        raise DataError(_missing_keys(shard, features, images if not image else (), labels if not label else ()))
    return RecordKeys(image, label), _TEXT_KEY if _TEXT_KEY in features and label == _LABEL_KEYS[0] else ""


def _missing_keys(shard: Path, features: Mapping[str, Values], images: Sequence[str], labels: Sequence[str]) -> str:
    """Returns the message about a record without a feature named like one of `images` or `labels`, where these are."""
    missing = " and ".join(" or ".join(map(repr, keys)) for keys in (images, labels) if keys)
    likely = {}
    if images:
        candidates = [key for key, values in features.items() if _may_be_image(values)]
        likely["image_key"] = min(candidates, key=len, default="NAME")
    if labels:
        candidates = [key for key, values in features.items() if _may_be_label(key, values)]
        likely["label_key"] = min(candidates, key=_unlike_a_label, default="NAME")
    return (
        f"{shard}: the records have no {missing}; they have {', '.join(sorted(features)[:20]) or 'no features'}. "
        f"Name the feature with {' '.join(f'--{flag}={shlex.quote(key)}' for flag, key in likely.items())}"
    )


def _may_be_image(values: Values) -> bool:
    return len(values) == 1 and isinstance(values[0], bytes) and is_image(values[0])


def _may_be_label(key: str, values: Values) -> bool:
    return len(values) == 1 and isinstance(values[0], int) and not re.search("height|width|channels|depth|size", key)


def _unlike_a_label(key: str) -> tuple[bool, int]:
    return not re.search("label|class|category|target", key.lower()), len(key)
