"""Facts about a training split, from its index and a sample of its images. Does not import TensorFlow.

    facts = examine(open_dataset("data"))
    facts.images, facts.side, facts.mirror.accuracy

The sample has up to 512 images, chosen by a hash of their numbers: the same data give the same facts.
"""

import contextlib
import hashlib
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from convoy.core.errors import ConvoyError, DataError
from convoy.input_pipeline.dataset.examples import from_bytes, read_features
from convoy.input_pipeline.dataset.open import Dataset
from convoy.input_pipeline.dataset.records import FRAME_OVERHEAD, checked_payloads
from convoy.input_pipeline.dataset.split import Split
from convoy.input_pipeline.dataset.storage import Shards
from convoy.input_pipeline.images.pixels import FORMATS
from convoy.input_pipeline.images.rgb import as_rgb
from convoy.trainer.auto import sensitivity
from convoy.trainer.auto.sensitivity import SIDE, Color, Mirror

_SAMPLED = 512
_PER_CLASS = 8  # so many images, of fewer classes if there are many
_READ_AT_ONCE = 32
_DIFFERS = 4 / 3  # a ratio of aspect ratios


@dataclass(frozen=True)
class DataFacts:
    """What a choice depends on.

    Attributes:
      images: images of the training split.
      validation_images: images of the validation split; 0 without one.
      class_names: names of the classes.
      multi_label: whether an image has any number of labels.
      smallest_class: images of the smallest class that has any.
      largest_class: images of the largest class.
      sampled: images that were decoded.
      side: median over them of the square root of height x width, pixels.
      odd_shapes: share of them whose aspect ratio differs from the median one by more than 4:3.
      long_shapes: share of them with one side more than twice as long as the other.
      is_gray: whether they are gray.
      mirror: what a classifier does on mirrored images; None where it could not be tried.
      color: what colors say about the class; None where it could not be tried, and for gray images.
    """

    images: int
    validation_images: int
    class_names: tuple[str, ...]
    multi_label: bool
    smallest_class: int
    largest_class: int
    sampled: int
    side: float
    odd_shapes: float
    long_shapes: float
    is_gray: bool
    mirror: Mirror | None
    color: Color | None


def examine(dataset: Dataset) -> DataFacts:
    """Returns the facts of a dataset.

    Args:
      dataset: opened, with a split `train`.

    Raises:
      DataError: there is no split `train`, or none of the sampled images can be read.
    """
    split = dataset.split("train")
    counts = split.class_counts(dataset.num_classes)
    labels = split.strata()
    chosen = sampled(labels)
    read = _small_images(split, chosen)
    if not read:
        raise DataError(
            f"--data={dataset.directory}: none of {len(chosen)} training images can be read. Check the dataset with "
            f"`convoy verify --data={dataset.directory}`"
        )
    known = np.array([index for index, *_ in read])
    sizes = np.array([size for _, size, _ in read], float)
    small = np.stack([image for *_, image in read])
    aspect = np.log(sizes[:, 0] / sizes[:, 1])
    can_test = not split.label_sets and len(np.unique(labels[known])) > 1
    is_gray = sensitivity.are_gray(small)
    return DataFacts(
        images=split.num_images,
        validation_images=dataset.split("validation").num_images if "validation" in dataset.splits else 0,
        class_names=dataset.class_names,
        multi_label=bool(split.label_sets),
        smallest_class=int(counts[counts > 0].min()),
        largest_class=int(counts.max()),
        sampled=len(read),
        side=float(np.median(np.sqrt(sizes.prod(1)))),
        odd_shapes=float(np.mean(np.abs(aspect - np.median(aspect)) > np.log(_DIFFERS) + 1e-9)),
        long_shapes=float(np.mean(np.abs(aspect) > np.log(2) + 1e-9)),
        is_gray=is_gray,
        mirror=sensitivity.mirror_test(small, labels[known]) if can_test else None,
        color=sensitivity.color_test(small, labels[known]) if can_test and not is_gray else None,
    )


def sampled(labels: np.ndarray, most: int = _SAMPLED) -> np.ndarray:
    """Returns the images to look at, sorted: equally many of each class, and of many classes only some.

    Args:
      labels: class of each image, [n] integers.
      most: number of images.
    """
    order = np.array(sorted(range(len(labels)), key=_hash))
    classes = sorted(np.unique(labels).tolist(), key=_hash)[: max(2, most // _PER_CLASS)]
    ranked = {label: order[labels[order] == label] for label in classes}
    taken: list[int] = []
    for rank in range(max(map(len, ranked.values()))):
        taken += [int(images[rank]) for images in ranked.values() if rank < len(images)]
        if len(taken) >= most:
            break
    return np.sort(taken[:most])


def _hash(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=8).digest()


def _small_images(split: Split, indices: np.ndarray) -> list[tuple[int, tuple[int, int], np.ndarray]]:
    """Returns number, width and height, and pixels [SIDE, SIDE, 3] uint8 of each image that can be decoded."""
    found = []
    with contextlib.closing(Shards(split.shard_paths)) as shards:
        for first in range(0, len(indices), _READ_AT_ONCE):
            for index in indices[first : first + _READ_AT_ONCE].tolist():
                try:
                    image = _decoded(_payload(split, shards, index), split.keys.image)
                except ConvoyError:  # of a damaged record, which training reports or replaces
                    continue
                except Exception:  # decoders raise anything for a damaged image
                    continue
                small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
                found.append((index, image.size, np.asarray(small)))
    return found


def _payload(split: Split, shards: Shards, index: int) -> bytes:
    if split.source:
        return split.source.records([index])[0]
    frame = shards.read(int(split.shard[index]), int(split.offset[index]), int(split.length[index]) + FRAME_OVERHEAD)
    return checked_payloads([frame], split.locations(np.array([index])))[0]


def _decoded(payload: bytes, key: str) -> Image.Image:
    features = read_features(from_bytes(payload), len(payload))
    encoded = features[key][0]
    if not isinstance(encoded, bytes):
        raise ValueError(key)
    if features.get("image/format") == [b"raw"]:
        width, height = (int(features[f"image/{side}"][0]) for side in ("width", "height"))
        return Image.frombytes("RGB", (width, height), encoded)
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        return as_rgb(image)
