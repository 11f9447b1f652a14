"""The layout of a directory that TFDS wrote, from its dataset_info.json and features.json."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from convoy.core.errors import DataError
from convoy.core.reading import read_file, read_json
from convoy.core.text import counted
from convoy.input_pipeline.dataset.index import LARGEST_LABEL, RecordKeys
from convoy.input_pipeline.dataset.layout import DATASET_INFO, FEATURES, PREPARE, Layout, RecordFormat

SHARD_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_MOST_SHARDS = 10**6


def tfds_layout(directory: Path, record_format: RecordFormat) -> Layout:
    """Returns the layout of a TFDS directory; `record_format` is what the user says about it.

    Raises:
      DataError: it cannot be used.
    """
    info, features = (_json(directory / name) for name in (DATASET_INFO, FEATURES))
    try:
        file_format = str(info.get("fileFormat") or "tfrecord")
        if file_format.lower() != "tfrecord":
            raise DataError(
                f"{directory} is a TFDS dataset with file format {file_format!r}. Prepare it with "
                "file_format='tfrecord'"
            )
        name = _file_word(info["name"])
        splits, records = {}, {}
        for entry in info["splits"]:
            split = _file_word(entry["name"])
            lengths = tuple(int(length) for length in entry["shardLengths"])
            if not lengths or len(lengths) > _MOST_SHARDS or min(lengths) < 0:
                raise ValueError(f"split {split} has {counted(len(lengths), 'shard')}")
            template = str(entry.get("filepathTemplate") or SHARD_TEMPLATE)
            files = [_shard_file(template, name, split, i, len(lengths)) for i in range(len(lengths))]
            splits[split], records[split] = tuple(directory / file for file in files), lengths
        if not splits:
            raise ValueError("it has no splits")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(f"{directory / DATASET_INFO} cannot be used ({error!r}); prepare the dataset again") from None
    try:
        keys, number = find_keys(directory, features, record_format)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{directory / FEATURES} cannot be used ({error!r}); prepare the dataset again") from None
    names = _class_names(directory, keys.label, number)
    return Layout(name, splits, keys, names, records, fix=PREPARE)


def find_keys(dataset: object, features: Mapping[str, Any], record_format: RecordFormat) -> tuple[RecordKeys, int]:
    """Returns the keys of images and labels, and the number of classes, 0 if it is not stated.

    Args:
      dataset: its directory or name, for messages.
      features: content of its features.json.
      record_format: what the user says about it.

    Raises:
      DataError: it has no images with labels, or several.
      KeyError, TypeError, ValueError, AttributeError, RecursionError: the content is not that of TFDS.
    """
    flat = dict(_flat_features(features, ()))
    image = _find_key(dataset, flat, "Image", "image", record_format.image_key)
    label = _find_key(dataset, flat, "ClassLabel", "label", record_format.label_key)
    dtype = flat[image].get("image", {}).get("dtype") or "uint8"
    if dtype != "uint8":
        raise DataError(f"{dataset}: the images in {image!r} are {dtype}; Convoy reads only uint8 images")
    number = int(flat[label].get("classLabel", {}).get("numClasses") or 0)
    if not 0 <= number <= LARGEST_LABEL:
        raise ValueError(f"{counted(number, 'class', 'classes')}")
    return RecordKeys(image, label), number


def _json(path: Path) -> Any:  # noqa: ANN401 (any JSON value)
    try:
        return read_json(path)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; prepare the TFDS dataset again, with a version that writes it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}); prepare the dataset again") from None


def _file_word(name: object) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
        raise ValueError(f"{name!r} cannot be part of a file name")
    return name


def _shard_file(template: str, name: str, split: str, number: int, total: int) -> str:
    values = {
        "DATASET": name,
        "SPLIT": split,
        "FILEFORMAT": "tfrecord",
        "SHARD_INDEX": f"{number:05d}",
        "NUM_SHARDS": f"{total:05d}",
        "SHARD_X_OF_Y": f"{number:05d}-of-{total:05d}",
    }
    return _file_word(re.sub(r"\{(\w+)\}", lambda match: values[match[1]], template))


def _flat_features(features: Mapping[str, Any], path: tuple[str, ...]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Yields features by record key; the keys of nested features are joined by slashes."""
    nested = features.get("featuresDict")
    if nested is None:
        yield "/".join(path), features
        return
    for name, inner in nested["features"].items():
        yield from _flat_features(inner, (*path, name))


def _find_key(dataset: object, flat: Mapping[str, Mapping[str, Any]], kind: str, default: str, given: str) -> str:
    """Returns the key `given`, or that of the only feature of a kind, or among several the one named `default`."""
    keys = [key for key, feature in flat.items() if feature["pythonClassName"].split(".")[-1] == kind]
    flag = f"--{default}_key"
    if given and given not in keys:
        raise DataError(
            f"{flag}={given}: {dataset} has no {kind} feature of that name; it has {', '.join(keys) or 'none'}"
        )
    if given or len(keys) == 1:
        return given or keys[0]
    if default in keys:
        return default
    found = f"{counted(len(keys), f'{kind} feature')} ({', '.join(keys)})" if keys else f"no {kind} feature"
    fix = f"Name one with {flag}" if keys else "Convoy needs an Image and a ClassLabel feature"
    raise DataError(f"{dataset} has {found}; its features are {', '.join(sorted(flat)[:20])}. {fix}")


def _class_names(directory: Path, label: str, number: int) -> tuple[str, ...] | None:
    path = directory / f"{label.replace('/', '.')}.labels.txt"
    try:
        names = tuple(read_file(path).decode().split("\n"))
    except FileNotFoundError:
        return tuple(map(str, range(number))) if number else None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); prepare the dataset again") from None
    names = names[:-1] if names[-1] == "" else names
    if number and len(names) != number:
        raise DataError(
            f"{path} has {counted(len(names), 'line')}, {FEATURES} states {counted(number, 'class', 'classes')}; "
            "prepare it again"
        )
    return names
