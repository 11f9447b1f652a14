"""Near-duplicate images: a 64-bit perceptual hash per image, and a search for similar hashes.

    ratio = decode_ratio(width, height)                      # downscaling that DecodeJpeg may apply
    hashes[i] = perceptual_hash(pixels)
    pairs = near_pairs(hashes)                               # pairs.first[j] looks like pairs.second[j]
    group = components(len(hashes), pairs.first, pairs.second)

The hash is the DCT hash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), in
the form of N. Krawetz, "Looks Like It" (The Hacker Factor Blog, 2011): the 8x8 lowest frequencies of an image, except
the mean brightness, compared with their median. It is robust to JPEG quality, size, aspect ratio, brightness and
contrast, but not to mirroring, rotation or more than a slight crop.

The search follows M. Norouzi, A. Punjani and D. Fleet, "Fast Search in Hamming Space with Multi-Index Hashing"
(CVPR 2012): hashes that differ in few bits agree in some bands of bits, so only hashes that share bands are compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

# Near-duplicates differ in at most this many bits. Of 124,750 pairs of unrelated `convoy sample` images, none was
# within 4 bits; of copies with another quality, size, brightness or contrast, 98 to 100 % were.
NEAR = 4
FLAT = 0  # the hash of a single-color image; no other image has it

_FREQUENCIES = 8
_BITS = _FREQUENCIES**2
_LEAST_SIDE = 16  # pixels; smaller copies lose the frequencies that the hash compares
_SAMPLES = 64  # rows and columns used; more do not change the result
_FLAT_AMPLITUDE = 0.5  # gray levels
# All values are integers below 2**53, so sums are exact in any order and the hash is the same on every platform.
_LUMA = np.array([77.0, 150.0, 29.0])  # ITU-R BT.601, as in JPEG, in 256ths
_COSINE_SCALE = 2048
# If thousands of hashes share bands (frames of a video), an unlimited search takes hours and finds billions of pairs.
_MAX_COMPARISONS = 30_000_000  # per key
_MAX_PAIRS = 2_000_000


@dataclass(frozen=True)
class NearPairs:
    """Pairs of hashes that differ in few bits; each pair once.

    Attributes:
      first, second: [pairs] int64, indices into the searched array.
      complete: whether all pairs were found; False if too many hashes were similar and the search was cut short.
    """

    first: np.ndarray
    second: np.ndarray
    complete: bool


def decode_ratio(width: int, height: int) -> int:
    """Returns the `ratio` of TensorFlow's DecodeJpeg, 1, 2, 4 or 8, that leaves enough pixels for the hash."""
    side = min(width, height)
    return next((ratio for ratio in (8, 4, 2) if side >= ratio * _LEAST_SIDE), 1)


def perceptual_hash(pixels: np.ndarray) -> int:
    """Returns an image's hash.

    Args:
      pixels: [height, width, channels] uint8, any size; 1 or 2 channels: gray first; 3 or more: RGB first. May
        be decoded at `decode_ratio`.

    Returns:
      An integer in [0, 2**64); `FLAT` if the image has a single color.
    """
    return perceptual_hashes([pixels])[0]


def perceptual_hashes(images: Sequence[np.ndarray]) -> list[int]:
    """Returns the `perceptual_hash` of each image. Those of one size are hashed together, in a quarter of the time."""
    images = [_sampled(pixels) for pixels in images]
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, pixels in enumerate(images):
        by_shape.setdefault(pixels.shape, []).append(i)
    hashes = [FLAT] * len(images)
    for (height, width, channels), members in by_shape.items():
        alike = np.stack([images[i] for i in members])
        gray = alike[..., :3].reshape(-1, 3) @ _LUMA if channels > 2 else alike[..., 0] * _LUMA.sum()
        spectra = _cosines(height) @ gray.reshape(-1, height, width) @ _cosines(width).T
        spectra = spectra.reshape(len(members), _BITS)
        waves = np.sort(spectra[:, 1:])
        least = _FLAT_AMPLITUDE * _LUMA.sum() * _COSINE_SCALE**2 * height * width
        bits = spectra > waves[:, [waves.shape[1] // 2]]
        bits[:, 0] = True  # mean brightness carries no information; setting it keeps the hash different from FLAT
        bits[np.maximum(-waves[:, 0], waves[:, -1]) < least] = False
        for i, value in zip(members, np.packbits(bits, axis=1).view(">u8").ravel().tolist(), strict=True):
            hashes[i] = value
    return hashes


def _sampled(pixels: np.ndarray) -> np.ndarray:
    """Returns every n-th row and column of an image with more than the hash uses."""
    height, width, _ = pixels.shape
    if height < 2 * _SAMPLES and width < 2 * _SAMPLES:
        return pixels
    return pixels[:: max(1, height // _SAMPLES), :: max(1, width // _SAMPLES)]


def near_pairs(hashes: np.ndarray, distance: int = NEAR) -> NearPairs:
    """Finds the pairs of hashes that differ in at most `distance` bits.

    Args:
      hashes: [n] uint64, all different. `FLAT` matches nothing.
      distance: maximum number of differing bits, 0 to 16.

    Returns:
      The pairs, in an order that depends only on `hashes`.
    """
    hashes = np.asarray(hashes, np.uint64)
    found = [np.empty((2, 0), np.int64)]
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
            for earlier in keys[:number]:  # pairs that agree in an earlier key were already found
                near = near[(different[near] & earlier) != 0]
            pairs += len(near)
            places = first[near]
            found.append(np.stack([order[places], order[places + step]]))
    left, right = np.sort(np.concatenate(found, axis=1), axis=0)
    order = np.lexsort((right, left))
    return NearPairs(left[order], right[order], complete)


def components(number: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the smallest member of the connected component of each of `number` nodes, given pairs of them."""
    component = np.arange(number)
    while True:
        before = component.copy()
        lower = np.minimum(component[first], component[second])
        np.minimum.at(component, first, lower)
        np.minimum.at(component, second, lower)
        component = component[component]
        if np.array_equal(component, before):
            return component


def _keys(distance: int) -> list[np.uint64]:
    """Returns bit masks; any two hashes within `distance` bits agree in at least one of them.

    Of `distance` + 2 bands at least two agree. A pair of bands separates a million hashes well; with fewer, wider bands
    used one at a time, hundreds of candidates would remain per hash.
    """
    # A band takes every n-th bit because neighboring frequencies are correlated.
    bands = [sum(1 << bit for bit in range(start, _BITS, distance + 2)) for start in range(distance + 2)]
    return [np.uint64(one | other) for one, other in combinations(bands, 2)]


def _run_ends(keys: np.ndarray) -> np.ndarray:
    """Returns, for each index of a sorted array, the end of the run of equal values it belongs to."""
    ends = np.append(np.flatnonzero(keys[1:] != keys[:-1]) + 1, len(keys))
    return np.repeat(ends, np.diff(ends, prepend=0))


@lru_cache(maxsize=1024)
def _cosines(length: int) -> np.ndarray:
    """Returns [8, length] float64: the lowest frequencies of a cosine transform of this length, as integers.

    Frequencies beyond `length` are 0.
    """
    places = (np.arange(length) + 0.5) / length
    cosines = np.rint(_COSINE_SCALE * np.cos(np.pi * np.arange(_FREQUENCIES)[:, None] * places))
    cosines[length:] = 0
    return cosines
