"""Datasets and splits written record by record, with any formats and sizes."""

import contextlib
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from convoy.input_pipeline.convert import metadata
from convoy.input_pipeline.dataset import records
from convoy.input_pipeline.dataset.index import INDEX_TYPES
from convoy.input_pipeline.dataset.open import Split
from convoy.input_pipeline.dataset.storage import Shards


def encode(pixels: np.ndarray, image_format: str) -> bytes:
    """Encodes [height, width, 3] uint8 as an image file; `raw` gives the pixels, `cut` half a PNG."""
    if image_format == "cut":
        whole = encode(pixels, "png")
        return whole[: len(whole) // 2]
    if image_format == "raw":
        return np.ascontiguousarray(pixels).tobytes()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format)
    return file.getvalue()


def example(encoded: bytes, image_format: str, pixels: np.ndarray, label: int) -> bytes:
    """Returns an image's record, with the keys that the reader needs."""
    return records.example(
        {
            "image/encoded": encoded,
            "image/format": image_format,
            "image/height": pixels.shape[0],
            "image/width": pixels.shape[1],
            "image/class/label": label,
        }
    )


def read_payloads(split: Split, indices: Sequence[int] | None = None) -> list[bytes]:
    """Returns the payloads of records, of all by default, after verifying their checksums."""
    locations = split.locations(np.arange(split.num_images) if indices is None else np.array(indices))
    with contextlib.closing(Shards(split.shard_paths)) as shards:
        sizes = locations.length + records.FRAME_OVERHEAD
        frames = map(shards.read, locations.shard.tolist(), locations.offset.tolist(), sizes.tolist())
        return records.checked_payloads(frames, locations)


def write_dataset(folder: Path, splits: Mapping[str, Sequence[np.ndarray]], class_names: Sequence[str]) -> Path:
    """Writes a dataset like `convoy convert`: PNGs, two shards per split, image `i` of class `i % len(class_names)`."""
    folder.mkdir(parents=True)
    manifest = metadata.new_manifest("made", class_names, {"image_size": 0, "encoding": "png"})
    for split, images in splits.items():
        columns = {name: [] for name in ("shard", "offset", "length", "label", "crc")}
        shards = []
        for number, in_shard in enumerate((range(0, len(images), 2), range(1, len(images), 2))):
            path = folder / metadata.shard_name("made", split, number, 2)
            content, lines = b"", ""
            for i in in_shard:
                label = i % len(class_names)
                shape = dict(zip(("height", "width", "channels"), images[i].shape, strict=True))
                payload = records.example(
                    {
                        "image/encoded": encode(images[i], "png"),
                        "image/format": "png",
                        **{f"image/{name}": value for name, value in shape.items()},
                        "image/class/label": label,
                        "image/class/text": class_names[label],
                        "image/filename": f"{i}.png",
                    }
                )
                row = (number, len(content), len(payload), label, records.masked_crc(payload))
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
                lines += f"{len(content)} {len(payload) + records.FRAME_OVERHEAD}\n"
                content += records.frame(payload)
            path.write_bytes(content)
            path.with_name(path.name + ".idx").write_text(lines)
            sha256 = hashlib.sha256(content).hexdigest()
            shards.append({"file": path.name, "images": len(in_shard), "bytes": len(content), "sha256": sha256})
        metadata.write_index(folder, split, {name: np.array(column) for name, column in columns.items()})
        counts = np.bincount(columns["label"], minlength=len(class_names)).tolist()
        manifest["splits"][split] = {
            "seed": 0,
            "num_images": len(images),
            "counts": counts,
            "class_weights": metadata.class_weights(counts),
            "shards": shards,
        }
    metadata.write_descriptions(folder, manifest)
    return folder


def write_split(
    folder: Path, images: Sequence[np.ndarray], labels: Sequence[int], image_format: str = "png", shards: int = 2
) -> Split:
    """Writes images to shards round-robin and returns their split; image `i` has index `i`."""
    folder.mkdir(exist_ok=True)
    paths = tuple(folder / f"made-train.tfrecord-{shard:05d}-of-{shards:05d}" for shard in range(shards))
    columns = {name: [] for name in ("shard", "offset", "length", "label", "crc")}
    files = [path.open("wb") for path in paths]
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        shard = number % shards
        payload = example(encode(pixels, image_format), image_format, pixels, label)
        row = (shard, files[shard].tell(), len(payload), label, records.masked_crc(payload))
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
        files[shard].write(records.frame(payload))
    for file in files:
        file.close()
    arrays = {name: np.array(columns[name], dtype) for name, dtype in INDEX_TYPES.items()}
    return Split.from_index("train", paths, arrays)
