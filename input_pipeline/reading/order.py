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

Sampling by class gives each class a fixed number of an epoch's N positions, spread over it by a permutation. Behind
them stand endless passes over the class's images, each pass a permutation of its own: any image of a class is seen as
often as any other, up to one. What is random about an image follows from the pass, so that an image that comes several
times in an epoch looks different each time.
"""

from typing import NamedTuple

import numpy as np

_ROUNDS = 4
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_ORDER_STREAM, _IMAGE_STREAM, _SHARD_STREAM, _WINDOW_STREAM, _SAMPLE_STREAM, _CLASS_STREAM = 1, 2, 3, 4, 5, 6
SAMPLINGS = ("natural", "inverse_sqrt", "balanced")


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


class ClassSampling(NamedTuple):
    """How often each class comes in an epoch. Made by `class_sampling`.

    Attributes:
      images: [N] int64, the images class by class.
      sizes: [classes] int64, the images of each class.
      quotas: [classes] int64, its positions in an epoch; N together.
    """

    images: np.ndarray
    sizes: np.ndarray
    quotas: np.ndarray


def class_sampling(labels: np.ndarray, name: str) -> ClassSampling:
    """Returns what `sampled_positions_to_images` needs.

    Args:
      labels: [N] integers, 0 or more, each image's class.
      name: `natural` (a class's share is that of its images), `inverse_sqrt` (an image's chance falls with the square
        root of the size of its class, so a class's share rises with it; Mahajan et al. 2018, section 2.2) or `balanced`
        (equal shares of all classes that have images).
    """
    sizes = np.bincount(labels).astype(np.int64)
    weights = {"natural": sizes, "inverse_sqrt": np.sqrt(sizes), "balanced": sizes > 0}[name]
    ends = np.cumsum(weights)
    # Rounded as they add up, so that together they are N.
    ends = np.floor(ends / ends[-1] * len(labels) + 0.5).astype(np.int64)
    return ClassSampling(np.argsort(labels, kind="stable"), sizes, np.diff(ends, prepend=0))


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


def block_positions_to_images(positions: np.ndarray, *, windows: Windows, seed: int) -> tuple[np.ndarray, np.ndarray]:
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


def sampled_positions_to_images(
    positions: np.ndarray, *, sampling: ClassSampling, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `positions_to_images`, with the classes in the shares of `sampling`.

    Args:
      positions: [n] int64, 0 or more.
      sampling: how often each class comes.
      seed: the run's seed.

    Returns:
      image indices [n] int64, and how often each image came before [n] int64: in place of the epoch, what is random
      about it follows from this.
    """
    num_images = len(sampling.images)
    epochs, places = np.divmod(np.asarray(positions, np.int64), num_images)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        places[chosen] = _permute(places[chosen], num_images, _key(seed, _SAMPLE_STREAM, int(epoch)))
    ends = np.cumsum(sampling.quotas)
    classes = np.searchsorted(ends, places, side="right")
    sizes, quotas = sampling.sizes[classes], sampling.quotas[classes]
    passes, places = np.divmod(epochs * quotas + places - (ends[classes] - quotas), sizes)
    places = _permute_each(places, sizes, _keys(seed, _CLASS_STREAM, classes, passes))
    first_places = (np.cumsum(sampling.sizes) - sampling.sizes)[classes]
    return sampling.images[first_places + places], passes


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


def _permute_each(values: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """As `_permute`, with a size and a key for each value, all [n]."""
    bit_lengths = np.frexp((sizes - 1).astype(np.float64))[1]
    half_bits = np.maximum(1, (bit_lengths + 1) // 2).astype(np.uint64)
    with np.errstate(over="ignore"):
        keys = _mix(keys + np.arange(1, _ROUNDS + 1, dtype=np.uint64)[:, np.newaxis] * _GAMMA)  # [rounds, n]
    permuted, ends = values.astype(np.uint64), sizes.astype(np.uint64)
    outside = np.ones(permuted.shape, bool)
    while outside.any():
        permuted[outside] = _feistel(permuted[outside], half_bits[outside], keys[:, outside])
        outside = permuted >= ends
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


def _feistel(values: np.ndarray, half_bits: int | np.ndarray, keys: np.ndarray) -> np.ndarray:
    half_bits = np.asarray(half_bits, np.uint64)
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half_bits) | right


def _key(seed: int, stream: int, *numbers: int) -> np.uint64:
    return _keys(seed, stream, *numbers)[0]


def _keys(seed: int, stream: int, *numbers: int | np.ndarray) -> np.ndarray:
    """Returns a key for each of some tuples of numbers, [n] uint64."""
    key = np.zeros(1, np.uint64)
    for words in (seed & (2**64 - 1), stream, *numbers):
        key = _mix(key + np.asarray(words).astype(np.uint64) + _GAMMA)
    return key


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer: every input bit changes every output bit about half of the time."""
    with np.errstate(over="ignore"):
        values = np.asarray(values, np.uint64)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))
