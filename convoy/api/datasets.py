"""`open_dataset`: datasets, their splits and batches."""

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from convoy.api.shown import Rows, Shown
from convoy.api.spelling import spelled_for_python
from convoy.core.errors import UsageError
from convoy.input_pipeline.dataset import open as opening
from convoy.trainer.config import default_config


class Dataset(Shown):
    """A dataset directory.

    Attributes:
      path: the directory.
      name: name of the dataset.
      class_names: class names, by label.
      splits: names of the splits.
      multi_label: whether an image has any number of labels instead of one.

    Example:
      dataset = convoy.open_dataset("data")
      dataset.class_names, dataset.splits, dataset.counts["train"]
    """

    def __init__(self, opened: opening.Dataset):
        """Takes an opened dataset."""
        self._opened = opened
        self.path = opened.directory
        self.name = opened.name
        self.class_names = opened.class_names
        self.splits = opened.splits
        self.multi_label = opened.multi_label

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of images by split and class."""
        return {split: self.split(split).counts for split in self.splits}

    @spelled_for_python()
    def split(self, name: str) -> "Split":
        """Returns a split.

        Args:
          name: one of `splits`.

        Raises:
          DataError: there is no such split, or it cannot be used.

        Example:
          train = convoy.open_dataset("data").split("train")
          train.num_images, train.labels[:5]
        """
        settings = self._opened.manifest.get("settings", {})
        image_size = settings.get("image_size") or default_config().image_size
        return Split(self._opened.split(name), self.class_names, image_size)

    def _title(self) -> str:
        return f"Dataset {self.path}: {len(self.class_names)} classes"

    def _table(self) -> Rows:
        counts = self.counts
        totals = {"class": "all", **{split: self.split(split).num_images for split in self.splits}}
        classes = [
            {"class": name, **{split: counts[split][name] for split in self.splits}} for name in self.class_names
        ]
        return Rows([totals, *classes])


class Split(Shown):
    """A split of a dataset.

    Attributes:
      name: name of the split.
      class_names: class names, by label.
      num_images: number of images.
      labels: label of each image in the order of the records, [num_images] int32; with several labels per image
        [num_images, num_classes] float32, 1 for each label, else 0.

    Example:
      train = convoy.open_dataset("data").split("train")
      len(train), train.counts, train.labels.shape
    """

    def __init__(self, split: opening.Split, class_names: Sequence[str], image_size: int):
        """Takes a split, and the default side of the images in `batches`."""
        self._split, self._image_size = split, image_size
        self.name = split.name
        self.class_names = tuple(class_names)
        self.num_images = split.num_images

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """The attribute."""
        return self._split.targets(np.arange(self.num_images))

    @property
    def counts(self) -> dict[str, int]:
        """Number of images by class."""
        counts = self._split.class_counts(len(self.class_names)).tolist()
        return dict(zip(self.class_names, counts, strict=True))

    def __len__(self) -> int:
        """The number of images."""
        return self.num_images

    @spelled_for_python()
    def images(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Returns whole images at their stored size, each [height, width, 3] uint8.

        Args:
          indices: numbers of images in the order of the records, from 0.

        Raises:
          DataError: a record is damaged.

        Example:
          first, second = convoy.open_dataset("data").split("test").images([0, 1])
          first.shape, first.dtype
        """
        from convoy.input_pipeline.reading.decode import Crop
        from convoy.input_pipeline.reading.reader import Reader

        with contextlib.closing(Reader(self._split, Crop(self._image_size))) as reader:
            return reader.images(np.asarray(indices, np.int64))

    def batches(
        self,
        batch_size: int,
        *,
        seed: int | None = None,
        epochs: int | None = 1,
        image_size: int | None = None,
        resize: str = "squash",
        drop_remainder: bool = False,
        as_numpy: bool = True,
    ) -> Iterator[dict[str, Any]]:
        """Yields batches of decoded images, without augmentation.

        Args:
          batch_size: images per batch; the last batch has the rest.
          seed: shuffles, in the order of a training run with this `config.seed`, in which batches cross the end of an
            epoch; None reads in the order of the records.
          epochs: how often to yield each image; None for an endless iteration, which needs a seed.
          image_size: side of the square images in pixels; by default that of the dataset if all its images have one
            size, else 64.
          resize: how an image that is not square becomes square: `squash`, `crop` or `pad`.
          drop_remainder: leave out a last batch that is not full.
          as_numpy: yield NumPy arrays; False yields TensorFlow tensors.

        Yields:
          `image` [batch, image_size, image_size, 3] uint8, `label` [batch] int32 (with several labels per image
          [batch, num_classes] float32) and `index` [batch] int64, the number of each image in the order of the records.

        Raises:
          UsageError: an argument is out of range.
          DataError: a record is damaged.

        Example:
          for batch in convoy.open_dataset("data").split("train").batches(8, seed=0, image_size=32):
              batch["image"].shape, batch["label"]
        """
        if batch_size < 1 or (epochs is not None and epochs < 1) or (image_size is not None and image_size < 1):
            raise UsageError(f"{batch_size=}, {epochs=}, {image_size=}: must be 1 or more.")
        if epochs is None and seed is None:
            raise UsageError("epochs=None: an endless iteration is shuffled. Pass a seed.")
        if resize not in ("squash", "crop", "pad"):
            raise UsageError(f"{resize=}: must be squash, crop or pad.")
        size = image_size or self._image_size
        return self._batches(batch_size, seed, epochs, size, resize, drop_remainder, as_numpy)

    def _batches(
        self,
        batch_size: int,
        seed: int | None,
        epochs: int | None,
        size: int,
        resize: str,
        drop_remainder: bool,
        as_numpy: bool,
    ) -> Iterator[dict[str, Any]]:
        import tensorflow as tf

        from convoy.input_pipeline.reading.decode import Crop
        from convoy.input_pipeline.reading.reader import Reader
        from convoy.input_pipeline.reading.sampler import BatchSlice

        slices = BatchSlice(batch_size, 1)
        with spelled_for_python(), contextlib.closing(Reader(self._split, Crop(size, resize=resize))) as reader:
            if seed is None:
                passes = [(reader.evaluation(slices), self.num_images)] * (epochs or 1)
            else:
                passes = [(reader.training(slices, seed=seed), (epochs or 0) * self.num_images)]
            try:
                for stream, images in passes:
                    for number, batch in enumerate(stream, 1):
                        rest = batch_size if epochs is None else min(batch_size, images - (number - 1) * batch_size)
                        if rest < batch_size and drop_remainder:
                            break
                        columns = {name: batch[name][:rest] for name in ("image", "label", "index")}
                        yield {name: column.numpy() for name, column in columns.items()} if as_numpy else columns
                        if epochs is not None and number * batch_size >= images:
                            break
            except tf.errors.OpError:
                if cause := reader.explain():
                    raise cause from None
                raise

    def _title(self) -> str:
        return f"Split {self.name!r}: {self.num_images:,} images of {len(self.class_names)} classes"

    def _table(self) -> Rows:
        return Rows({"class": name, "images": count} for name, count in self.counts.items())


@spelled_for_python()
def open_dataset(
    data: opening.Data, *, image_key: str = "", label_key: str = "", class_names: Sequence[str] = ()
) -> Dataset:
    """Opens a dataset directory. Reads its manifest and indexes only.

    Args:
      data: from `convert`, local or `gs://...`; or a local directory prepared by TFDS or with TFRecords of other tools;
        or a data source, by name or as an object, also by split.
      image_key: feature of the encoded image in TFRecords of other tools.
      label_key: feature of the label in them.
      class_names: class of each label in them.

    Raises:
      UsageError: the last three are given for a dataset of `convert`.
      DataError: it is not a dataset, or damaged.

    Example:
      dataset = convoy.open_dataset("data")
      dataset
    """
    stated = opening.stated_format(
        data if isinstance(data, str) else None, image_key, label_key, class_names=class_names
    )
    return Dataset(opening.open_dataset(data, stated))


def path_text(data: opening.Data | None) -> str | None:
    """Returns a path or name as text; None for objects and for None."""
    return os.fspath(data) if isinstance(data, str | os.PathLike) else None
