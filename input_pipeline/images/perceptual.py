"""Near-duplicate images: a 64-bit perceptual hash per image, and the search for near hashes.

    ratio = decode_ratio(width, height)                      # what DecodeJpeg may leave out
    hashes[i] = perceptual_hash(pixels)
    pairs = near_pairs(hashes)                               # pairs.first[j] looks like pairs.second[j]

The hash is the DCT hash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), in
the form of N. Krawetz, "Looks Like It" (The Hacker Factor Blog, 2011): the signs of an image's 8x8 lowest frequencies
against their median, the mean brightness left out. It survives another JPEG quality, another size or aspect ratio, and
a change of brightness or contrast; not a mirror image, a turn, or a crop of more than a little.

The search is that of M. Norouzi, A. Punjani and D. Fleet, "Fast Search in Hamming Space with Multi-Index Hashing"
(CVPR 2012): hashes that differ in few bits agree in some bands of bits, so only those that share bands are compared.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

# What differs in at most so many bits is called alike. Of 124,750 pairs of unrelated pictures of `convoy sample` none
# was within 4 bits, and of copies in another quality, size, brightness or contrast 98 to 100 % were.
NEAR = 4
FLAT = 0  # the hash of an image without structure, which no other image has

_FREQUENCIES = 8
_BITS = _FREQUENCIES**2
_LEAST_SIDE = 16  # pixels; below that, copies in another size lose the frequencies that the hash compares
_SAMPLES = 64  # rows and columns that are looked at; more of them change nothing
_FLAT_AMPLITUDE = 0.5  # grey levels
# All numbers are whole and below 2**53, so that sums are exact in whatever order a matrix library adds: the hash of the
# same pixels is the same everywhere.
_LUMA = np.array([77.0, 150.0, 29.0])  # ITU-R BT.601, as in JPEG, in 256ths
_COSINE_SCALE = 2048
# Where thousands of hashes share bands, as all frames of a film do, a search would take hours and find billions.
_MAX_COMPARISONS = 30_000_000  # a key
_MAX_PAIRS = 2_000_000


@dataclass(frozen=True)
class NearPairs:
    """Pairs of hashes that differ in few bits; each pair once.

    Attributes:
      first, second: [pairs] int64: places in the array that was searched.
      distance: [pairs] uint8: how many bits differ.
      complete: whether all pairs are there; False where hashes are too alike to compare all of them in reasonable time.
    """

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray
    complete: bool


def decode_ratio(width: int, height: int) -> int:
    """Returns the `ratio` of TensorFlow's DecodeJpeg, one of 1, 2, 4, 8, that leaves the hash enough pixels."""
    side = min(width, height)
    return next((ratio for ratio in (8, 4, 2) if side >= ratio * _LEAST_SIDE), 1)


def perceptual_hash(pixels: np.ndarray) -> int:
    """Returns an image's hash.

    Args:
      pixels: [height, width, channels] uint8, any size; grey where it has 1 or 2 channels, else RGB first. A decoder's
        output at `decode_ratio` is enough.

    Returns:
      An integer in [0, 2**64); `FLAT` where the image is of one colour.
    """
    height, width, channels = pixels.shape
    if height >= 2 * _SAMPLES or width >= 2 * _SAMPLES:
        pixels = pixels[:: max(1, height // _SAMPLES), :: max(1, width // _SAMPLES)]
        height, width, channels = pixels.shape
    grey = pixels[..., :3].reshape(-1, 3) @ _LUMA if channels > 2 else pixels[..., 0] * _LUMA.sum()
    spectrum = (_cosines(height) @ grey.reshape(height, width) @ _cosines(width).T).ravel()
    waves = np.sort(spectrum[1:])
    if max(-waves[0], waves[-1]) < _FLAT_AMPLITUDE * _LUMA.sum() * _COSINE_SCALE**2 * height * width:
        return FLAT
    bits = spectrum > waves[len(waves) // 2]
    bits[0] = True  # the mean brightness says nothing; as it is, no hash is that of a flat image
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_pairs(hashes: np.ndarray, distance: int = NEAR) -> NearPairs:
    """Finds the pairs of hashes that differ in at most `distance` bits.

    Args:
      hashes: [n] uint64, all different. `FLAT` is near nothing.
      distance: bits, from 0 to 16.

    Returns:
      The pairs, in an order that depends on `hashes` alone.
    """
    hashes = np.asarray(hashes, np.uint64)
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8))]
    pairs, complete = 0, True
    keys = _keys(distance)
    for number, key in enumerate(keys):
        order = np.argsort(hashes & key, kind="stable")
        order = order[hashes[order] != FLAT]
        ordered = hashes[order]
        run_end = _run_ends(ordered & key)
        first = np.arange(len(ordered))
        comparisons = 0
        for step in range(1, len(ordered)):
            first = first[first + step < run_end[first]]
            comparisons += len(first)
            if comparisons > _MAX_COMPARISONS or pairs > _MAX_PAIRS:
                complete = False
            if not len(first) or not complete:
                break
            different = ordered[first] ^ ordered[first + step]
            near = np.flatnonzero(np.bitwise_count(different) <= distance)
            for earlier in keys[:number]:  # which has found the pairs that agree in it
                near = near[(different[near] & earlier) != 0]
            pairs += len(near)
            places = first[near]
            found.append((order[places], order[places + step], np.bitwise_count(different[near])))
    left, right, bits = (np.concatenate(column) for column in zip(*found, strict=True))
    left, right = np.minimum(left, right), np.maximum(left, right)
    order = np.lexsort((right, left))
    return NearPairs(left[order], right[order], bits[order], complete)


def _keys(distance: int) -> list[np.uint64]:
    """Returns masks of which at least one covers no bit in which two hashes differ that are so near.

    Of `distance` + 2 bands at least two agree. Two together tell a million hashes well apart, where one of fewer bands
    would leave hundreds to compare.
    """
    # A band takes every n-th bit: neighbouring bits, of neighbouring frequencies, are most alike.
    bands = [sum(1 << bit for bit in range(start, _BITS, distance + 2)) for start in range(distance + 2)]
    return [np.uint64(one | other) for one, other in combinations(bands, 2)]


def _run_ends(keys: np.ndarray) -> np.ndarray:
    """Returns, for each place in a sorted array, where the run of its value ends."""
    ends = np.append(np.flatnonzero(keys[1:] != keys[:-1]) + 1, len(keys))
    return np.repeat(ends, np.diff(ends, prepend=0))


@lru_cache(maxsize=1024)
def _cosines(length: int) -> np.ndarray:
    """Returns [8, length] float64: the lowest frequencies of a cosine transform of that length, as whole numbers.

    A length has no more frequencies than places; the others are 0.
    """
    places = (np.arange(length) + 0.5) / length
    cosines = np.rint(_COSINE_SCALE * np.cos(np.pi * np.arange(_FREQUENCIES)[:, None] * places))
    cosines[length:] = 0
    return cosines
