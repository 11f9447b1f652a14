"""Sample order and per-image randomness of the endless training stream.

Position `p` is image `permutation(seed, epoch=p // N)[p % N]`. The order and each image's random numbers are pure
functions of a few integers: resuming at a step needs no state, any worker can compute any position, and memory does
not grow with the dataset.

The permutation is a Feistel network over the next even number of bits, with cycle walking until the value is below N
(Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). Mixing is SplitMix64 (Steele et al. 2014). Golden
vectors in `tests/input_pipeline/test_order.py` guarantee that the order of existing runs never changes.

Striped shuffle is for storage where reading single records is slow. Each epoch puts the shards in a row of its own and
cuts the row into V stripes, one per virtual replica: stripe v has as many records as virtual replica v has positions in
that epoch. A stripe is read window by window. A window has a piece from each of m sections of the stripe, so that it
takes a few long reads and yet has records from everywhere in the stripe, and its records are permuted with the same
network under separate keys. A process reads only the stripes of its own virtual replicas, so that all processes
together read each record once per epoch.

Class sampling gives each class a fixed number of an epoch's N positions, spread over the epoch by a permutation. These
positions draw from endless passes over the class's images, each pass with its own permutation, so the images of a class
are seen equally often, within one. An image's randomness depends on the pass, so an image that is drawn several times
in an epoch is augmented differently each time.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

Numbers = TypeVar("Numbers", int, np.ndarray)

_ROUNDS = 4
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_ORDER_STREAM, _IMAGE_STREAM, _SHARD_STREAM, _SAMPLE_STREAM, _CLASS_STREAM = 1, 2, 3, 5, 6
_WINDOW_STREAM, _ROW_STREAM, _SECTION_STREAM = 7, 8, 9
SAMPLINGS = ("natural", "inverse_sqrt", "balanced")


@dataclass(frozen=True, eq=False)
class Stripes:
    """The stripes of a striped shuffle. The order of a run depends on all fields, and on its seed.

    With G positions per step and V virtual replicas, position p belongs to virtual replica `p % G // (G / V)`.

    Attributes:
      shard_sizes: [num_shards] int64, records of each shard, in the order in which images are numbered.
      window_size: the most records per window. The windows of a stripe have the same size, give or take one record.
      virtual_replicas: V.
      global_batch_size: G, a multiple of V.
      pieces: m, the stretches of neighboring records in a window.
    """

    shard_sizes: np.ndarray
    window_size: int
    virtual_replicas: int
    global_batch_size: int
    pieces: int = 1

    @functools.cached_property
    def num_images(self) -> int:
        """N, the total number of records."""
        return int(self.shard_sizes.sum())

    def following(self, position: int, count: int) -> np.ndarray:
        """Returns a position and those that follow it in its virtual replica, [count] int64."""
        replica = position % self.global_batch_size // self._slice
        return self._positions(replica, self._turn(position) + np.arange(count))

    def windows(self, positions: np.ndarray) -> "Windows":
        """Returns the window of each position; `positions` are [n] int64, 0 or more."""
        num_images = self.num_images
        epochs = positions // num_images
        replicas = positions % self.global_batch_size // self._slice
        first, end = epochs * num_images, (epochs + 1) * num_images
        stripe_starts = self._before(end, replicas) - self._before(first, replicas)
        stripe_sizes = self._before(end, replicas + 1) - self._before(first, replicas + 1) - stripe_starts
        turns_before = self._before(first, replicas + 1) - self._before(first, replicas)
        places = self._turn(positions) - turns_before
        counts = -(-stripe_sizes // self.window_size)
        numbers = places * counts // stripe_sizes
        starts = -(-numbers * stripe_sizes // counts)
        sizes = -(-(numbers + 1) * stripe_sizes // counts) - starts
        return Windows(
            first=self._positions(replicas, turns_before + starts),
            sizes=sizes,
            epochs=epochs,
            replicas=replicas,
            numbers=numbers,
            stripe_starts=stripe_starts,
            stripe_sizes=stripe_sizes,
            starts=starts,
            places=places - starts,
        )

    @property
    def _slice(self) -> int:
        """Positions per step and virtual replica."""
        return self.global_batch_size // self.virtual_replicas

    def _turn(self, positions: Numbers) -> Numbers:
        """Returns how many earlier positions the virtual replica of each position has."""
        return positions // self.global_batch_size * self._slice + positions % self._slice

    def _positions(self, replicas: Numbers, turns: np.ndarray) -> np.ndarray:
        """Returns the positions of virtual replicas; the inverse of `_turn`."""
        return turns // self._slice * self.global_batch_size + replicas * self._slice + turns % self._slice

    def _before(self, positions: np.ndarray, replicas: np.ndarray) -> np.ndarray:
        """Returns how many positions before those given belong to virtual replicas before those given."""
        steps, rest = np.divmod(positions, self.global_batch_size)
        return steps * replicas * self._slice + np.minimum(rest, replicas * self._slice)


class Windows(NamedTuple):
    """The window of each of n positions; all [n] int64.

    Attributes:
      first: the first position of the window, which identifies it.
      sizes: records in the window.
      epochs: the epoch.
      replicas: the virtual replica.
      numbers: number of the window in its stripe.
      stripe_starts: where its stripe begins in the epoch's row of shards.
      stripe_sizes: records in its stripe.
      starts: records in earlier windows of its stripe.
      places: the position's place in the window.
    """

    first: np.ndarray
    sizes: np.ndarray
    epochs: np.ndarray
    replicas: np.ndarray
    numbers: np.ndarray
    stripe_starts: np.ndarray
    stripe_sizes: np.ndarray
    starts: np.ndarray
    places: np.ndarray


class ClassSampling(NamedTuple):
    """How often each class is drawn per epoch. Made by `class_sampling`.

    Attributes:
      images: [N] int64, image indices sorted by class.
      sizes: [classes] int64, images per class.
      quotas: [classes] int64, positions per class in an epoch; the sum is N.
    """

    images: np.ndarray
    sizes: np.ndarray
    quotas: np.ndarray


def class_sampling(labels: np.ndarray, name: str) -> ClassSampling:
    """Returns the class sampling for `sampled_positions_to_images`.

    Args:
      labels: [N] integers, 0 or more: the class of each image.
      name: `natural` (classes in proportion to their number of images), `inverse_sqrt` (an image is weighted by one
        over the square root of its class size, so a class's share grows with that square root; Mahajan et al. 2018,
        section 2.2) or `balanced` (equal shares for all non-empty classes).
    """
    sizes = np.bincount(labels).astype(np.int64)
    weights = {"natural": sizes, "inverse_sqrt": np.sqrt(sizes), "balanced": sizes > 0}[name]
    ends = np.cumsum(weights)
    # Round the cumulative sums, so that the quotas add up to exactly N.
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


def striped_positions_to_images(positions: np.ndarray, *, stripes: Stripes, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As `positions_to_images`, with a striped shuffle."""
    windows = stripes.windows(np.asarray(positions, np.int64))
    keys = _keys(seed, _WINDOW_STREAM, windows.epochs, windows.replicas, windows.numbers)
    places = windows.starts + _permute_each(windows.places, windows.sizes, keys)
    indices = windows.stripe_starts + _spread(places, windows, stripes.pieces, seed)
    for epoch in np.unique(windows.epochs):
        chosen = windows.epochs == epoch
        begin, ends, shifts = _row(stripes, seed, int(epoch))
        places = (indices[chosen] + begin) % stripes.num_images
        indices[chosen] = places + shifts[np.searchsorted(ends, places, side="right")]
    return indices, windows.epochs


def sampled_positions_to_images(
    positions: np.ndarray, *, sampling: ClassSampling, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `positions_to_images`, with class sampling.

    Returns:
      image indices [n] int64, and the pass over its class that each image is drawn in [n] int64. The image's
      randomness depends on the pass where it otherwise depends on the epoch.
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
    """Returns the values, [n] int64, under the permutation of [0, num_images) that `(seed, epoch)` selects."""
    return _permute(values, num_images, _key(seed, _ORDER_STREAM, epoch))


def _spread(places: np.ndarray, windows: Windows, pieces: int, seed: int) -> np.ndarray:
    """Returns where the n-th record of the windows, [n] int64, is in its stripe: in each section in turn.

    Each section begins anywhere: otherwise the pieces of a window would be as far apart in every epoch.
    """
    sections = places % pieces
    sizes, longer = np.divmod(windows.stripe_sizes, pieces)
    section_starts = sections * sizes + np.minimum(sections, longer)
    sizes = sizes + (sections < longer)
    begins = _keys(seed, _SECTION_STREAM, windows.epochs, windows.replicas, sections) % sizes.astype(np.uint64)
    return section_starts + (places // pieces + begins.astype(np.int64)) % sizes


@functools.lru_cache(maxsize=4)  # batches and the windows read ahead are in one or two epochs
def _row(stripes: Stripes, seed: int, epoch: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Returns the row of shards of an epoch, as a ring.

    Returns:
      the place where the row begins, and ends: otherwise the stripes and windows of a split of few shards would have
      much the same images in all epochs; the place where each shard ends [num_shards] int64; and the difference of its
      images' indices to their places [num_shards] int64.
    """
    sizes = stripes.shard_sizes
    shards = _permute(np.arange(len(sizes)), len(sizes), _key(seed, _SHARD_STREAM, epoch))
    ends, first_images = np.cumsum(sizes[shards]), (np.cumsum(sizes) - sizes)[shards]
    begin = int(_key(seed, _ROW_STREAM, epoch) % np.uint64(stripes.num_images))
    return begin, ends, first_images - (ends - sizes[shards])


def _permute(values: np.ndarray, num_images: int, key: np.uint64) -> np.ndarray:
    half_bits = max(1, ((num_images - 1).bit_length() + 1) // 2)
    with np.errstate(over="ignore"):
        keys = _mix(key + np.arange(1, _ROUNDS + 1, dtype=np.uint64) * _GAMMA)
    permuted = np.asarray(values).astype(np.uint64)
    outside = np.ones(permuted.shape, bool)
    while outside.any():  # the domain is at most 4 times N, so few walks are needed
        permuted[outside] = _feistel(permuted[outside], half_bits, keys)
        outside = permuted >= num_images
    return permuted.astype(np.int64)


def _permute_each(values: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """As `_permute`, with one size and one key per value, all [n]."""
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
      draws: random numbers per image. The first k do not depend on `draws`.

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
    """Returns one key per tuple of numbers, [n] uint64."""
    key = np.zeros(1, np.uint64)
    for words in (seed & (2**64 - 1), stream, *numbers):
        key = _mix(key + np.asarray(words).astype(np.uint64) + _GAMMA)
    return key


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer: each input bit flips each output bit with probability of about one half."""
    with np.errstate(over="ignore"):
        values = np.asarray(values, np.uint64)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))
