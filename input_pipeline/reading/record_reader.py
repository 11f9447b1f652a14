"""Reads records by index, checks every checksum, and finds or substitutes records that cannot be used.

    reader = RecordReader(split)
    payloads = reader.read(np.array([3, 7]))        # RecordError: a damaged record
    problem = reader.problem(3)                     # None, or a RecordError

Single records are read from local shards, or made of the images of a source. Windows, and any records of remote shards,
are read by byte ranges (`windows`).
"""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from convoy.core.processes import usable_cores
from convoy.input_pipeline.dataset import records
from convoy.input_pipeline.dataset.examples import from_bytes, read_features
from convoy.input_pipeline.dataset.external_images import image_problem
from convoy.input_pipeline.dataset.open import Split
from convoy.input_pipeline.dataset.records import CONVERT, FRAME_OVERHEAD, RecordError
from convoy.input_pipeline.dataset.storage import Shards
from convoy.input_pipeline.images.kinds import not_decoded_in_training
from convoy.input_pipeline.images.pixels import refused_size
from convoy.input_pipeline.reading.cache import PixelCache
from convoy.input_pipeline.reading.decode import Crop, decode, parse_records
from convoy.input_pipeline.reading.order import Stripes
from convoy.input_pipeline.reading.substitutes import Substitutes
from convoy.input_pipeline.reading.windows import RangeReader


class RecordReader:
    """Reads the records of one split. Keeps the shards open until `close`; safe to use from several threads.

    Attributes:
      shards: the split's files.
      substitutes: replacements of records that cannot be used; None where such records raise.
    """

    def __init__(self, split: Split, *, stripes: Stripes | None = None, on_corrupt: str = "raise"):
        """Opens the shards.

        Args:
          split: the split to read.
          stripes: the stripes of a striped shuffle; None with global shuffle.
          on_corrupt: `raise` or `substitute`, for `read_training`.

        Raises:
          DataError: a shard cannot be opened.
        """
        self.shards = Shards(split.shard_paths)
        self.substitutes = Substitutes(split.num_images, self.problem) if on_corrupt == "substitute" else None
        self._split = split
        self._stripes = stripes
        self._ranges = RangeReader(split, self.shards) if self.shards.are_remote or stripes else None
        self._decode_one = _single_decoder(split)

    def read(self, indices: np.ndarray) -> list[bytes]:
        """Returns the payloads of records.

        Args:
          indices: [n] integers in [0, num_images).

        Raises:
          RecordError: a record's length or checksum is wrong; names shard, offset and image index.
          ConvoyError: the file system fails.
        """
        if self._ranges and self.shards.are_remote:
            return self._checked(self._ranges.read(indices), indices)
        return self._payloads(indices)

    def read_training(
        self, positions: np.ndarray, indices: np.ndarray, *, seed: int, cache: PixelCache | None = None
    ) -> tuple[np.ndarray, list[bytes], np.ndarray]:
        """Reads the records of training positions, with substitutes, and without those whose image is cached.

        Args:
          positions: [n] int64, of the training stream.
          indices: [n] int64, the images at these positions.
          seed: the run's seed.
          cache: of decoded images.

        Returns:
          indices [n] int64 after substitution, payloads [n], and whether the image is cached [n] bool. The payload of
          a cached image is empty.

        Raises:
          RecordError: a record cannot be used, and records are not substituted.
          ConvoyError: the file system fails.
        """
        used = self.substitutes.applied(indices) if self.substitutes else indices
        cached = cache.keeps(used) if cache else np.zeros(len(used), bool)
        missing = np.flatnonzero(~cached)
        try:
            if self._stripes and self._ranges and len(missing):
                replaced = (used != indices)[missing]
                # Substitutes are not in the windows of the images that they replace.
                original = missing[~replaced]
                windows = self._ranges.read_windows(self._stripes, positions[original], used[original], seed=seed)
                singles = self._single_frames(used[missing[replaced]])
                frames = (next(singles if is_replaced else windows) for is_replaced in replaced.tolist())
                read = self._checked(frames, used[missing])
            else:
                read = self._payloads(used[missing])
        except RecordError:
            if not self.substitutes:
                raise
            used = np.array([self._usable(self.substitutes, index) for index in used.tolist()])
            cached, missing = np.zeros(len(used), bool), np.arange(len(used))
            read = self._payloads(used)
        payloads = [b""] * len(used)
        for place, payload in zip(missing.tolist(), read, strict=True):
            payloads[place] = payload
        return used, payloads, cached

    def images(self, indices: np.ndarray, crop: Crop | None = None) -> list[np.ndarray]:
        """Returns whole images, each [height, width, 3] uint8.

        Args:
          indices: [n] integers in [0, num_images).
          crop: what they are decoded for; None: every pixel of them.

        Raises:
          tf.errors.OpError: an image cannot be decoded.
          RecordError: as `read`.
          ConvoyError: the file system fails.
        """
        decode_one = _single_decoder(self._split, crop) if crop and crop.decode == "fast" else self._decode_one
        return [decode_one(payload).numpy() for payload in self.read(indices)]

    def problems(self, indices: np.ndarray) -> Generator[RecordError, None, None]:
        """Yields why images, [n] int64, cannot be used: each image once, by index. Close the generator after use."""
        pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix="record-check")
        try:
            yield from filter(None, pool.map(self.problem, np.unique(indices).tolist()))
        finally:
            pool.shutdown(cancel_futures=True)

    def problem(self, index: int) -> RecordError | None:
        """Returns why an image cannot be used, or None."""
        payload = b""
        try:
            (payload,) = self._payloads(np.array([index]))
            self._decode_one(payload)
        except RecordError as error:
            return error
        except tf.errors.OpError:
            return self._undecodable(index, payload)
        return None

    def close(self) -> None:
        """Closes the shards. `substitutes` stays usable."""
        if self._ranges:
            self._ranges.close()
        self.shards.close()

    def _undecodable(self, index: int, payload: bytes) -> RecordError:
        """Returns the error for a record whose image cannot be decoded."""
        split = self._split
        if split.source:
            return split.source.problem(index, _why_undecodable(payload, split.keys.image) or "cannot be decoded")
        path, offset = split.shard_paths[split.shard[index]], int(split.offset[index])
        reason, fix = "has a correct checksum but no image that can be decoded", "convert again without it"
        if split.fix != CONVERT:
            fix = "write the records again without it, or pass --config.on_corrupt=substitute"
            if why := _why_undecodable(payload, split.keys.image):
                reason = f"has a correct checksum, but {why}"
        return RecordError(path, offset=offset, index=int(index), reason=reason, fix=fix)

    def _payloads(self, indices: np.ndarray) -> list[bytes]:
        """Returns the payloads of single records, [n]."""
        if self._split.source:
            return self._split.source.records(indices)
        return self._checked(self._single_frames(indices), indices)

    def _checked(self, frames: Iterator[bytes], indices: np.ndarray) -> list[bytes]:
        return records.checked_payloads(frames, self._split.locations(indices))

    def _single_frames(self, indices: np.ndarray) -> Iterator[bytes]:
        split = self._split
        columns = (split.shard[indices], split.offset[indices], split.length[indices] + FRAME_OVERHEAD)
        return map(self.shards.read, *(column.tolist() for column in columns))

    def _usable(self, substitutes: Substitutes, index: int) -> int:
        """Returns the image, or its substitute where its record is damaged."""
        try:
            self._payloads(np.array([index]))
        except RecordError as error:
            return substitutes.add(error)
        return index


def _why_undecodable(payload: bytes, key: str) -> str:
    """Returns what a record of another tool has instead of an image that training decodes; "" if unknown."""
    try:
        features = read_features(from_bytes(payload), len(payload))
    except ValueError:
        return ""
    if problem := image_problem(features, key):
        return problem
    encoded = features[key][0]
    return refused_size(encoded) or not_decoded_in_training(encoded) if isinstance(encoded, bytes) else ""


def _single_decoder(split: Split, crop: Crop | None = None) -> Callable[[bytes], tf.Tensor]:
    """Returns a function from a record's payload to its image. It raises `tf.errors.OpError` if decoding fails."""

    def decode_payload(payload: tf.Tensor) -> tf.Tensor:
        columns = parse_records(payload[None], split)
        return decode({name: column[0] for name, column in columns.items()}, crop, any_viewed=split.as_viewed)

    # Eagerly, a small image would take three times as long, and threads would wait for each other.
    return tf.function(decode_payload, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
