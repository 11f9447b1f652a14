"""The files of a dataset directory that describe its shards: manifest, index, and the files that TFDS reads.

TFDS opens a directory by dataset_info.json (splits and shards), features.json (features of a record) and a file of
label names. They are plain JSON and text, so that TFDS is not imported here. The features are nested as
`image -> {encoded, class -> {label, text}, ...}`, which TFDS flattens to the keys `image/encoded`,
`image/class/label` and so on.
"""

import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from convoy.core.files import write_whole
from convoy.core.text import counted
from convoy.input_pipeline.convert.plan import content_hash
from convoy.input_pipeline.convert.summary import GroupSummary
from convoy.input_pipeline.dataset.image_facts import GROUP, IMAGE_TYPES, images_path
from convoy.input_pipeline.dataset.index import NUM_LABELS, index_types
from convoy.input_pipeline.dataset.layout import DATASET_INFO, FEATURES
from convoy.input_pipeline.dataset.open import FORMAT_VERSION, MANIFEST, index_path
from convoy.input_pipeline.dataset.tfds_layout import SHARD_TEMPLATE

VERSION = "1.0.0"
# TFDS looks for the first name, readers of flat records for the second.
LABEL_FILES = ("image.class.label.labels.txt", "image-class-label.labels.txt")
_FEATURES = "tensorflow_datasets.core.features"


def dataset_name(text: str) -> str:
    """Returns `text` as a name that TFDS accepts: lower case, digits and underscores, starting with a letter."""
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return name if name[:1].isalpha() else f"data_{name}".rstrip("_")


def shard_name(name: str, split: str, number: int, shards: int) -> str:
    """Returns the file name of a shard; `number` counts from 0."""
    return f"{name}-{split}.tfrecord-{number:05d}-of-{shards:05d}"


def class_weights(counts: Sequence[int]) -> list[float]:
    """Returns inverse-frequency weights, one per class; their mean over the images is 1. Empty classes have 0."""
    present = sum(1 for count in counts if count)
    return [sum(counts) / (present * count) if count else 0.0 for count in counts]


def positive_weights(counts: Sequence[int], num_images: int) -> list[float]:
    """Returns what the images with a class weigh against those without it: their number over the number of the former.

    1 for a class without images, and more than 0 for one that all images have.
    """
    return [max(num_images - count, 1) / count if count else 1.0 for count in counts]


def new_manifest(
    name: str, class_names: Sequence[str], settings: Mapping[str, Any], *, label_delimiter: str = ""
) -> dict[str, Any]:
    """Returns the manifest of a dataset without splits.

    Args:
      name: name of the dataset in file names.
      class_names: class names by label.
      settings: shared by all splits.
      label_delimiter: what separates the labels of an image in one text; "" with one label per image.
    """
    return {
        "format_version": FORMAT_VERSION,
        "name": name,
        **({"multi_label": True, "label_delimiter": label_delimiter} if label_delimiter else {}),
        "settings": dict(settings),
        "class_names": list(class_names),
        "splits": {},
    }


def grouping(flags: str, grouped: GroupSummary) -> dict[str, Any]:
    """Returns what a manifest records of the groups of images that were kept in one split, and the flags for that."""
    return {"by": flags, **{name: value for name, value in asdict(grouped).items() if name != "missed"}}


def write_index(directory: Path, split: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes index-SPLIT.npz; equal arrays give equal bytes."""
    _write_arrays(index_path(directory, split), arrays, index_types(multi_label=NUM_LABELS in arrays))


def write_images(directory: Path, split: str, arrays: Mapping[str, np.ndarray], groups: Sequence[str] = ()) -> None:
    """Writes images-SPLIT.npz, with the hashes of the images' groups if any has one; equal arrays give equal bytes."""
    types: dict[str, Any] = dict(IMAGE_TYPES)
    if any(groups):
        hashes = {group: content_hash(os.fsencode(group)) for group in set(groups) - {""}}
        # With its type: NumPy makes floats of small and large numbers together.
        of_image = np.array([hashes.get(group, 0) for group in groups], np.uint64)
        types[GROUP], arrays = np.uint64, {**arrays, GROUP: of_image}
    _write_arrays(images_path(directory, split), arrays, types)


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray], types: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()
    typed: dict[str, Any] = {name: np.asarray(arrays[name], dtype) for name, dtype in types.items()}
    np.savez(buffer, **typed)
    write_whole(path, buffer.getvalue())


def write_descriptions(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the files that TFDS reads, then manifest.json, each atomically."""
    labels = "".join(f"{name}\n" for name in manifest["class_names"]).encode("utf-8")
    for file in LABEL_FILES:
        write_whole(directory / file, labels)
    write_whole(directory / FEATURES, _json(_features(manifest)))
    write_whole(directory / DATASET_INFO, _json(_dataset_info(manifest)))
    write_whole(directory / MANIFEST, _json(manifest))


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8")


def _dataset_info(manifest: Mapping[str, Any]) -> dict[str, Any]:
    # 64-bit integers are strings in the JSON form of protocol buffers.
    splits = [
        {
            "name": name,
            "filepathTemplate": SHARD_TEMPLATE,
            "shardLengths": [str(shard["images"]) for shard in split["shards"]],
            "numBytes": str(sum(shard["bytes"] for shard in split["shards"])),
        }
        for name, split in sorted(manifest["splits"].items())
    ]
    return {
        "name": manifest["name"],
        "version": VERSION,
        "description": f"Images of {counted(len(manifest['class_names']), 'class', 'classes')}, converted by Convoy.",
        "fileFormat": "tfrecord",
        "splits": splits,
    }


def _features(manifest: Mapping[str, Any]) -> dict[str, Any]:
    integer = _feature("scalar.Scalar", tensor={"shape": {}, "dtype": "int64", "encoding": "none"})
    text = _feature("text_feature.Text", text={})
    size = manifest["settings"]["image_size"]
    if manifest["settings"]["encoding"] != "raw":
        shape = {"dimensions": ["-1", "-1", "3"]}
        encoded = _feature("image_feature.Image", image={"shape": shape, "dtype": "uint8"})
    elif size:
        shape = {"dimensions": [str(size), str(size), "3"]}
        encoded = _feature("tensor_feature.Tensor", tensor={"shape": shape, "dtype": "uint8", "encoding": "bytes"})
    else:
        encoded = text  # raw pixels of varying shape: TFDS can only return the bytes
    label = _feature("class_label_feature.ClassLabel", classLabel={"numClasses": str(len(manifest["class_names"]))})
    name = text
    if manifest.get("multi_label"):
        label, name = _list_of(label), _list_of(text)
    image = {
        "channels": integer,
        "class": _nested({"label": label, "text": name}),
        "encoded": encoded,
        "filename": text,
        "format": text,
        "height": integer,
        "width": integer,
    }
    return _nested({"image": _nested(image)})


def _nested(features: Mapping[str, Any]) -> dict[str, Any]:
    return _feature("features_dict.FeaturesDict", featuresDict={"features": dict(features)})


def _list_of(feature: Mapping[str, Any]) -> dict[str, Any]:
    return _feature("sequence_feature.Sequence", sequence={"feature": feature, "length": "-1"})


def _feature(python_class: str, **content: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"pythonClassName": f"{_FEATURES}.{python_class}", **content}
