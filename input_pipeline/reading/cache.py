"""Cache of decoded images, as raw uint8: later epochs neither read nor decode them.

    cache = make_cache("auto", num_images=50_000, random_crops=False, processes=2)
    reader = Reader(split, crop, cache=cache)

With random crops, the cache stores whole images, otherwise images at the training size. Both are exactly the
decoder's output, so a run is the same with and without a cache. The cache fills during the first epoch. It is in memory
here, and on a local disk in `disk_cache`.

In memory it helps where decoding dominates: with whole images of any size (a third of the work from the second epoch
on), less with random crops of large images (two thirds), and not with random crops of small images, where cropping and
resizing take longer than decoding. Filling it adds a third to a half to the work of the first epoch. `auto` therefore
caches only if

- all images fit into half of the memory that is free when training starts, divided by the number of processes on the
  host, since over the epochs each process sees all images; and
- with random crops, images have 128 x 128 pixels or more on average.

Both are judged by the mean size of the images decoded so far; once a condition fails, no more images are added.
`memory` caches whatever fits into four fifths of the free memory.
"""

import abc
import math
import threading

import numpy as np
import tensorflow as tf

from convoy.core.memory import available_memory

_SHARE = {"auto": 0.5, "memory": 0.8}  # of the free memory
_JUDGED_IMAGES = 64  # enough to estimate the mean size
_ENTRY_BYTES = 300  # Python object overhead per image
_ALIGNMENT = 64  # bytes
_LARGE_IMAGE_BYTES = 128 * 128 * 3


class PixelCache(abc.ABC):
    """Decoded images of a split by index, in memory (`MemoryCache`) or on a disk (`disk_cache`).

    Safe to use from several threads.
    """

    @property
    @abc.abstractmethod
    def takes_more(self) -> bool:
        """Whether images are still being added."""

    @abc.abstractmethod
    def keeps(self, indices: np.ndarray) -> np.ndarray:
        """Returns whether each image is cached, [n] bool: then `take` returns it, also later."""

    @abc.abstractmethod
    def _add(self, indices: np.ndarray, images: np.ndarray) -> None:
        """Adds images, [n, height, width, 3] uint8, as far as they fit."""

    @abc.abstractmethod
    def _image(self, index: int) -> np.ndarray:
        """Returns a cached image, [height, width, 3] uint8."""

    @abc.abstractmethod
    def close(self) -> None:
        """Closes the files that are open for the split. The images stay."""

    def _read_into(self, index: int, out: np.ndarray) -> None:
        """Copies a cached image to `out`, C-contiguous and of its shape."""
        out[:] = self._image(index)

    def keep(self, indices: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """Adds images, in a TensorFlow graph.

        Args:
          indices: [n] int64, or a scalar.
          images: [n, height, width, 3] uint8, or [height, width, 3] for a scalar index.

        Returns:
          `images`.
        """

        def add(indices: np.ndarray, images: np.ndarray) -> np.bool_:
            self._add(np.atleast_1d(indices), images.reshape(-1, *images.shape[-3:]))
            return np.True_

        with tf.control_dependencies([tf.numpy_function(add, [indices, images], tf.bool)]):
            return tf.identity(images)

    def take(self, indices: tf.Tensor, kept: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns cached images of any size with one call, in a TensorFlow graph.

        Args:
          indices: [n] int64.
          kept: [n] bool, which of them to return.

        Returns:
          the concatenated pixels [sum of height * width * 3] uint8; and [n, 3] int64: start offset, height and width
          of each image, all 0 in height and width for those not returned.
        """
        pixels, places = tf.numpy_function(self._take, [indices, kept], [tf.uint8, tf.int64], stateful=False)
        return tf.ensure_shape(pixels, [None]), tf.ensure_shape(places, [None, 3])

    def take_all(self, indices: tf.Tensor, size: int) -> tf.Tensor:
        """Returns cached images of one size, [n, size, size, 3] uint8, in a TensorFlow graph."""

        def read_all(indices: np.ndarray) -> np.ndarray:
            images = _aligned(len(indices), size, size, 3)
            for index, image in zip(indices.tolist(), images, strict=True):
                self._read_into(index, image)
            return images

        images = tf.numpy_function(read_all, [indices], tf.uint8, stateful=False)
        return tf.ensure_shape(images, [None, size, size, 3])

    def _take(self, indices: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, places, start = [], [], 0
        for index, is_kept in zip(indices.tolist(), kept.tolist(), strict=True):
            image = self._image(index) if is_kept else np.zeros((0, 0, 3), np.uint8)
            places.append((start, *image.shape[:2]))
            images.append(image.reshape(-1))
            start += image.size
        return np.concatenate([np.zeros(0, np.uint8), *images], out=_aligned(start)), np.array(places, np.int64)


class MemoryCache(PixelCache):
    """Decoded images in memory. They are never evicted."""

    def __init__(self, num_images: int, *, budget_bytes: int, only_if_all: bool = False, smallest_mean_bytes: int = 0):
        """Starts empty.

        Args:
          num_images: number of images of the split.
          budget_bytes: memory limit.
          only_if_all: stop adding images once it is clear that not all of them will fit.
          smallest_mean_bytes: stop adding images once their mean size is below this.
        """
        self._num_images = num_images
        self._budget_bytes = budget_bytes
        self._only_if_all = only_if_all
        self._smallest_mean_bytes = smallest_mean_bytes
        self._images: dict[int, np.ndarray] = {}  # [height, width, 3] uint8
        self._is_kept = np.zeros(num_images, bool)
        self._bytes = 0
        self._is_full = False
        self._lock = threading.Lock()

    @property
    def takes_more(self) -> bool:
        """Whether images are still being added."""
        return not self._is_full

    def keeps(self, indices: np.ndarray) -> np.ndarray:
        """Returns whether each image is cached, [n] bool."""
        return self._is_kept[indices]

    def close(self) -> None:
        """Does nothing: no files are open."""

    def _add(self, indices: np.ndarray, images: np.ndarray) -> None:
        if self._is_full:
            return
        for index, image in zip(indices.tolist(), images, strict=True):
            with self._lock:
                if index in self._images:
                    continue
                size, count = self._bytes + image.nbytes + _ENTRY_BYTES, len(self._images) + 1
                if size > self._budget_bytes or (count >= _JUDGED_IMAGES and not self._is_worth_it(size / count)):
                    self._is_full = True
                    return
                self._images[index] = image.copy()
                self._bytes = size
                self._is_kept[index] = True

    def _image(self, index: int) -> np.ndarray:
        return self._images[index]

    def _is_worth_it(self, mean_bytes: float) -> bool:
        fits = not self._only_if_all or mean_bytes * self._num_images <= self._budget_bytes
        return fits and mean_bytes >= self._smallest_mean_bytes


def _aligned(*shape: int) -> np.ndarray:
    """Returns a new array of uint8 at an address with which TensorFlow uses it as a tensor and does not copy it."""
    size = math.prod(shape)
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].reshape(shape)


def make_cache(mode: str, *, num_images: int, random_crops: bool, processes: int = 1) -> MemoryCache | None:
    """Returns the cache in memory for a config, None for `none` and `disk`.

    Args:
      mode: `auto`, `none`, `memory` or `disk`.
      num_images: number of images of the split.
      random_crops: whether images are cropped at random.
      processes: training processes on this host, each with its own cache.
    """
    if mode not in _SHARE:
        return None
    budget = int(_SHARE[mode] * available_memory() / processes)
    if mode == "memory":
        return MemoryCache(num_images, budget_bytes=budget)
    smallest = _LARGE_IMAGE_BYTES if random_crops else 0
    return MemoryCache(num_images, budget_bytes=budget, only_if_all=True, smallest_mean_bytes=smallest)
