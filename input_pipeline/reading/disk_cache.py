"""Cache of decoded images on a local disk: `config.cache=disk`.

    cache = open_disk_cache(dataset, "train", Crop(224), DiskSpace(Path("/local/nvme")))
    reader = Reader(dataset.split("train"), Crop(224), cache=cache)

As with the cache in memory, it keeps what the decoder returns: whole images with random crops, otherwise images at the
training size. They are shared (`pixel_store`) by all processes of the host and by later runs with the same images and
decoder. The parts of a dataset that folds and learning curves train on share those of the whole.

An image that is found to be damaged is decoded again, and its batch is the same.
"""

import hashlib
import json
import logging
import platform
import threading

import numpy as np
import tensorflow as tf

from convoy import __version__
from convoy.input_pipeline.dataset.open import Dataset
from convoy.input_pipeline.dataset.split import Split
from convoy.input_pipeline.reading.cache import PixelCache
from convoy.input_pipeline.reading.decode import Crop, resize
from convoy.input_pipeline.reading.pixel_store import DiskSpace, PixelStore
from convoy.input_pipeline.reading.record_reader import RecordReader

_FORMAT = 1  # of the files
_logger = logging.getLogger("convoy")


class DiskCache(PixelCache):
    """Decoded images of a split, in the files of a `PixelStore`."""

    def __init__(self, split: Split, crop: Crop, store: PixelStore, numbers: np.ndarray | None = None):
        """Decodes nothing yet.

        Args:
          split: where to decode damaged images from.
          crop: how images are cropped and resized.
          store: the files.
          numbers: [num_images] the number in `store` of each image of the split; None for its index.
        """
        self._split, self._crop, self._store, self._numbers = split, crop, store, numbers
        self._records: RecordReader | None = None  # opened when damage is found
        self._lock = threading.Lock()

    @property
    def takes_more(self) -> bool:
        """Whether images are still being added."""
        return self._store.takes_more

    def keeps(self, indices: np.ndarray) -> np.ndarray:
        """Returns whether each image is there, [n] bool."""
        return np.array([self._store.has(number) for number in self._stored(indices).tolist()], bool)

    def close(self) -> None:
        """Closes the shards of the split, if damage was found. The images stay."""
        with self._lock:
            if self._records:
                self._records.close()
            self._records = None

    def _add(self, indices: np.ndarray, images: np.ndarray) -> None:
        self._store.add(self._stored(indices), images)

    def _image(self, index: int) -> np.ndarray:
        image = self._store.read(self._number(index))
        return self._decoded_again(index) if image is None else image

    def _read_into(self, index: int, out: np.ndarray) -> None:
        if self._store.read(self._number(index), out) is None:
            out[:] = self._decoded_again(index)

    def _decoded_again(self, index: int) -> np.ndarray:
        with self._lock:
            if not self._records:
                _logger.warning("%s: image %s is damaged. Damaged images are decoded again.", self._store.path, index)
                self._records = RecordReader(self._split)
            records = self._records
        with tf.device("/CPU:0"):  # as in the pipeline: a GPU rounds differently
            (image,) = records.images(np.array([index]), self._crop)
            if self._crop.min_area == 1:
                image = resize(tf.constant(image), self._crop).numpy()
        self._add(np.array([index]), image[None])
        return image

    def _stored(self, indices: np.ndarray) -> np.ndarray:
        return indices if self._numbers is None else self._numbers[indices]

    def _number(self, index: int) -> int:
        return index if self._numbers is None else int(self._numbers[index])


def open_disk_cache(dataset: Dataset, split_name: str, crop: Crop, space: DiskSpace) -> DiskCache | None:
    """Returns the cache of a split, or None if its folder cannot be used, which is logged.

    Args:
      dataset: the dataset.
      split_name: name of the split.
      crop: how images are cropped and resized.
      space: where to keep them.

    Raises:
      DataError: there is no such split, or it cannot be used.
    """
    split, (content, numbers, num_images) = dataset.split(split_name), dataset.stored_images(split_name)
    # Whatever may change a pixel. Random crops are taken from whole images, if these are decoded exactly.
    key = {
        "format": _FORMAT,
        "versions": [__version__, tf.__version__, platform.machine()],
        "images": [content, num_images],
        "record": [split.keys.image, split.as_viewed, split.states_true_sizes],
        "crop": crop._asdict() if crop.min_area == 1 or crop.decode == "fast" else None,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    try:
        store = PixelStore(space, digest, num_images)
    except OSError as error:
        _logger.warning(
            "config.cache=disk: %s cannot be used (%s), so images are decoded in each epoch. Pass another --cache_dir.",
            error.filename or space.folder,
            error.strerror or error,
        )
        return None
    return DiskCache(split, crop, store, numbers)
