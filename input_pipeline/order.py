"""Which image stands at which position of the endless training stream, and what is random about it.

Position `p` is image `permutation(seed, epoch=p // N)[p % N]`. Both the order and each image's random numbers are
pure functions of a few integers: to resume at a step is to compute, any worker can compute any position, and memory
does not grow with the data.

The permutation is a Feistel network over the next even number of bits, walked along its cycles until the value falls
below N (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). Mixing is SplitMix64 (Steele et al. 2014).
Golden vectors in `tests/input_pipeline/test_order.py` keep the order of existing runs from ever changing.

Windowed order is for storage that reads a record at a time slowly. Each epoch lays the shards end to end in an order
of its own, cuts that row into windows of W records, and permutes the records within each window, by the same network
under keys of their own. An image comes near others of its shard, in exchange a window is a few long reads.
"""

from typing import NamedTuple

import numpy as np

_ROUNDS = 4
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_ORDER_STREAM, _IMAGE_STREAM, _SHARD_STREAM, _WINDOW_STREAM = 1, 2, 3, 4


class Windows(NamedTuple):
    """What windowed order shuffles.

    Attributes:
      shard_sizes: [num_shards] int64, records of each shard, in the order in which images are numbered.
      size: W, records of a window; the last one of an epoch may have fewer.
    """

    shard_sizes: np.ndarray
    size: int

    @property
    def num_images(self) -> int:
        """N, the records of all shards."""
        return int(self.shard_sizes.sum())

    @property
    def per_epoch(self) -> int:
        """Windows of an epoch."""
        return -(-self.num_images // self.size)

    def numbers(self, positions: np.ndarray) -> np.ndarray:
        """Returns the window that each position lies in, [n] int64, counted over all epochs."""
        epochs, places = np.divmod(positions, self.num_images)
        return epochs * self.per_epoch + places // self.size

    def images(self, number: int, *, seed: int) -> np.ndarray:
        """Returns the images of a window, [W or fewer] int64, in the order in which they lie in their shards."""
        epoch, number = divmod(number, self.per_epoch)
        start = number * self.size
        places = np.arange(start, min(start + self.size, self.num_images))
        return _laid_end_to_end(places, self.shard_sizes, seed=seed, epoch=epoch)


def positions_to_images(positions: np.ndarray, *, num_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the image and the epoch at each position.

    Args:
      positions: [n] int64, 0 or more.
      num_images: N, 1 or more.
      seed: the run's seed.

    Returns:
      image indices [n] int64 in [0, N), epochs [n] int64.
    """
    positions = np.asarray(positions, np.int64)
    epochs = positions // num_images
    indices = np.empty_like(positions)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        indices[chosen] = permute(positions[chosen] % num_images, num_images=num_images, seed=seed, epoch=int(epoch))
    return indices, epochs


def windowed_positions_to_images(
    positions: np.ndarray, *, windows: Windows, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `positions_to_images`, in windowed order.

    Args:
      positions: [n] int64, 0 or more.
      windows: the shards, and how many records are shuffled together.
      seed: the run's seed.
    """
    positions = np.asarray(positions, np.int64)
    num_images = windows.num_images
    epochs, places = np.divmod(positions, num_images)
    numbers = windows.numbers(positions)
    for number in np.unique(numbers):
        chosen = numbers == number
        epoch, within_epoch = divmod(int(number), windows.per_epoch)
        start = within_epoch * windows.size
        size = min(windows.size, num_images - start)
        key = _key(seed, _WINDOW_STREAM, epoch, within_epoch)
        places[chosen] = start + _permute(places[chosen] - start, size, key)
    indices = np.empty_like(places)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        indices[chosen] = _laid_end_to_end(places[chosen], windows.shard_sizes, seed=seed, epoch=int(epoch))
    return indices, epochs


def permute(values: np.ndarray, *, num_images: int, seed: int, epoch: int) -> np.ndarray:
    """Returns where a permutation of [0, num_images), chosen by `(seed, epoch)`, sends each value; int64."""
    return _permute(values, num_images, _key(seed, _ORDER_STREAM, epoch))


def _laid_end_to_end(places: np.ndarray, shard_sizes: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """Returns the image at each place of an epoch's row of shards."""
    num_shards = len(shard_sizes)
    shards = _permute(np.arange(num_shards), num_shards, _key(seed, _SHARD_STREAM, epoch))
    ends = np.cumsum(shard_sizes[shards])
    first_images = (np.cumsum(shard_sizes) - shard_sizes)[shards]
    nth = np.searchsorted(ends, places, side="right")
    return first_images[nth] + places - (ends - shard_sizes[shards])[nth]


def _permute(values: np.ndarray, num_images: int, key: np.uint64) -> np.ndarray:
    half_bits = max(1, ((num_images - 1).bit_length() + 1) // 2)
    with np.errstate(over="ignore"):
        keys = _mix(key + np.arange(1, _ROUNDS + 1, dtype=np.uint64) * _GAMMA)
    permuted = np.asarray(values).astype(np.uint64)
    outside = np.ones(permuted.shape, bool)
    while outside.any():  # at most four values of the network's domain stand for one of ours, so few rounds are walked
        permuted[outside] = _feistel(permuted[outside], half_bits, keys)
        outside = permuted >= num_images
    return permuted.astype(np.int64)


def image_randomness(indices: np.ndarray, epochs: np.ndarray, *, seed: int, draws: int) -> np.ndarray:
    """Returns each image's random numbers for one epoch.

    Args:
      indices: [n] int64 image indices.
      epochs: [n] int64.
      seed: the run's seed.
      draws: how many numbers an image gets. The first k are the same whatever `draws` is.

    Returns:
      [n, draws] float32, uniform in [0, 1), multiples of 2**-24.
    """
    with np.errstate(over="ignore"):
        image_keys = _mix(
            _mix(_key(seed, _IMAGE_STREAM, 0) + epochs.astype(np.uint64) * _GAMMA) ^ indices.astype(np.uint64)
        )
        counters = np.arange(1, draws + 1, dtype=np.uint64) * _GAMMA
        words = _mix(image_keys[:, np.newaxis] + counters)
    return (words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def _feistel(values: np.ndarray, half_bits: int, keys: np.ndarray) -> np.ndarray:
    mask = np.uint64((1 << half_bits) - 1)
    left, right = values >> np.uint64(half_bits), values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << np.uint64(half_bits)) | right


def _key(seed: int, stream: int, *numbers: int) -> np.uint64:
    words = np.array([seed & (2**64 - 1), stream, *numbers], np.uint64)
    key = np.zeros(1, np.uint64)
    for word in words:
        key = _mix(key + word + _GAMMA)
    return key[0]


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer: every input bit changes every output bit about half of the time."""
    with np.errstate(over="ignore"):
        values = np.asarray(values, np.uint64)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))
