"""The layout of a directory of TFRecord shards without metadata, from file names and the first record.

The shards' file names, or their directories' names, contain the split (`train-00000-of-01024`, `flowers-test.tfrecord`,
`validation/01.tfrecord`). The records have the keys `image/encoded` and `image/class/label`, like the ImageNet records
of Model Garden, or `image` and `label`.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from convoy.core.errors import DataError
from convoy.core.text import counted
from convoy.input_pipeline.dataset.examples import feature_names, from_file
from convoy.input_pipeline.dataset.index import RecordKeys
from convoy.input_pipeline.dataset.layout import DATASET_INFO, Layout
from convoy.input_pipeline.dataset.records import HEADER_BYTES, walk

_TEXT_KEY = "image/class/text"
# Words in file names that identify the split.
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "eval", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NUMBERED = re.compile(
    r"(?P<stem>.+?)(?P<suffix>\.tfrecords?)?-(?P<number>\d{1,6})-of-(?P<total>\d{1,6})(\.tfrecords?)?"
)
_NAMED = re.compile(r"(?P<stem>.+)\.tfrecords?")


def folder_layout(directory: Path) -> Layout | None:
    """Returns the layout of a directory of shards, or None if it has no TFRecords.

    Raises:
      DataError: it has TFRecords that cannot be used.
      OSError: it cannot be listed.
    """
    files = sorted(_files(directory))
    inner = next((path.parent for path in files if path.name == DATASET_INFO and path.parent != directory), None)
    if inner:
        raise DataError(f"{directory} is not a dataset; did you mean its subdirectory? Pass --data={inner}")
    found: dict[str, list[Path]] = {}
    numbered: dict[tuple[Path, str], list[tuple[int, int]]] = {}  # total and number of each, by folder and stem
    for path in files:
        parsed = _NUMBERED.fullmatch(path.name) or _NAMED.fullmatch(path.name)
        if not parsed:
            continue
        parts = parsed.groupdict()
        split = _split_of(parts["stem"])
        if "number" in parts:
            if not split and parts["suffix"] and "-" in parts["stem"]:
                split = parts["stem"].rpartition("-")[2]
            if not split and "tfrecord" not in path.name:
                continue  # for example the shards of a checkpoint
            shard = (int(parts["total"]), int(parts["number"]))
            numbered.setdefault((path.parent, parts["stem"]), []).append(shard)
        if not split and path.parent != directory:
            split = _split_of(path.parent.name)
        if not split:
            raise DataError(
                f"{path}: unknown split. Put 'train', 'validation' or 'test' in its name, for example "
                "train-00000-of-00008, or in the name of its directory"
            )
        found.setdefault(split, []).append(path)
    for (folder, stem), shards in numbered.items():
        _check_complete(folder, stem, shards)
    if not found:
        compressed = next((path for path in files if ".tfrecord" in path.name and path.suffix == ".gz"), None)
        if compressed:
            raise DataError(f"{compressed} is compressed: single records cannot be read; decompress it (gunzip)")
        return None
    first = next((path for paths in found.values() for path in paths if path.stat().st_size), None)
    keys, text_key = _keys_in(first) if first else (RecordKeys(), "")
    splits = {split: tuple(paths) for split, paths in sorted(found.items())}
    return Layout(directory.absolute().name, splits, keys, None, {}, text_key)


def _check_complete(folder: Path, stem: str, shards: Sequence[tuple[int, int]]) -> None:
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


def _split_of(name: str) -> str:
    """Returns the split identified by the last matching word of a name, or ""."""
    known = [_SPLIT_WORDS[word] for word in re.findall("[a-z]+", name.lower()) if word in _SPLIT_WORDS]
    return known[-1] if known else ""


def _keys_in(shard: Path) -> tuple[RecordKeys, str]:
    """Returns the keys of image and label in the first record of a shard, and the key of the class text or ""."""
    offset, length, _ = next(walk(shard))
    try:
        with open(shard, "rb") as file:
            names = feature_names(from_file(file.fileno(), offset + HEADER_BYTES, length), length)
    except (OSError, ValueError) as error:
        raise DataError(f"{shard}: the record at offset {offset} is not a tf.train.Example ({error})") from None
    for keys, text_key in ((RecordKeys(), _TEXT_KEY), (RecordKeys("image", "label"), "")):
        if set(keys) <= set(names):
            return keys, text_key if text_key in names else ""
    raise DataError(
        f"{shard}: the records have {', '.join(names[:20]) or 'no features'}. Convoy needs "
        f"{' and '.join(RecordKeys())}, or image and label"
    )
