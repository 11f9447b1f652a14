"""The records of one split of a dataset: where they are, and their labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convoy.core.remote import RemotePath
from convoy.input_pipeline.dataset.index import INDEX_TYPES, NUM_LABELS, RecordKeys
from convoy.input_pipeline.dataset.label_sets import LabelSets
from convoy.input_pipeline.dataset.records import CONVERT, Locations
from convoy.input_pipeline.dataset.source import OpenedSource


@dataclass(frozen=True)
class Split:
    """The records of one split, in the order of the shards. Image `i` of the split is entry `i` of every array.

    That of a source has no shards: of its arrays, only `label` says something. Of a multi-label split, `label` has no
    columns, and `label_sets` the labels.
    """

    name: str
    shard_paths: tuple[Path | RemotePath, ...]
    shard: np.ndarray  # [num_images] int32: which of shard_paths
    offset: np.ndarray  # [num_images] int64: start of the frame, bytes
    length: np.ndarray  # [num_images] int64: payload bytes
    label: np.ndarray  # [num_images] int32, from 0
    crc: np.ndarray  # [num_images] uint32: masked crc32c of the payload, as in the file
    keys: RecordKeys = RecordKeys()  # feature names of image and label
    states_true_sizes: bool = True  # whether the stated height and width are reliable
    as_viewed: bool = False  # whether orientation and transparency of the images are to be applied
    fix: str = CONVERT  # what to do about a damaged record
    source: OpenedSource | None = None  # instead of shards
    label_sets: LabelSets | None = None  # of a multi-label split

    @classmethod
    def from_index(
        cls,
        name: str,
        shard_paths: Sequence[Path | RemotePath],
        arrays: Mapping[str, Any],
        *,
        num_classes: int = 0,
        **more: Any,  # noqa: ANN401 (other fields)
    ) -> "Split":
        """Returns the split with the arrays of an index, which need `num_classes` with several labels per image."""
        columns = {array: arrays[array] for array in INDEX_TYPES}
        if NUM_LABELS in arrays:
            more["label_sets"] = LabelSets.of(arrays, num_classes)
            columns["label"] = np.empty([len(arrays["offset"]), 0], np.int32)
        return cls(name, tuple(shard_paths), **columns, **more)

    @classmethod
    def from_source(cls, name: str, source: OpenedSource) -> "Split":
        """Returns the split of a source."""
        arrays = {array: np.broadcast_to(dtype(0), source.label.shape) for array, dtype in INDEX_TYPES.items()}
        arrays |= {"label": source.label, "length": np.broadcast_to(np.int64(source.mean_bytes), source.label.shape)}
        return cls.from_index(name, (), arrays, states_true_sizes=False, as_viewed=True, source=source)

    @property
    def num_images(self) -> int:
        """Number of images of the split."""
        return len(self.shard)

    def targets(self, indices: np.ndarray) -> np.ndarray:
        """Returns what a model is to predict for images, [n] integers in [0, num_images).

        Returns:
          [n] int32, the label of each; of a multi-label split [n, num_classes] float32, 1 for each label, else 0.
        """
        return self.label_sets.multi_hot(indices) if self.label_sets else self.label[indices]

    def labels_of(self, image: int) -> list[int]:
        """Returns the labels of an image."""
        return (self.label_sets[image] if self.label_sets else self.label[image : image + 1]).tolist()

    def class_counts(self, num_classes: int) -> np.ndarray:
        """Returns the number of images of each class, [num_classes] int64."""
        return self.label_sets.counts() if self.label_sets else np.bincount(self.label, minlength=num_classes)

    def strata(self) -> np.ndarray:
        """Returns the class by which class sampling draws an image, [num_images] int32: with several, the rarest."""
        return self.label_sets.rarest() if self.label_sets else self.label

    def locations(self, indices: np.ndarray) -> Locations:
        """Returns where records are; `indices` are [n] integers in [0, num_images)."""
        shard, offset, length, crc = (column[indices] for column in (self.shard, self.offset, self.length, self.crc))
        return Locations(self.shard_paths, indices, shard, offset, length, crc, self.fix)
