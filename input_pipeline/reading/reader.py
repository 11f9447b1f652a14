"""From a dataset directory to batches: exact order by position, records by index, every checksum checked.

    reader = Reader(dataset.split("train"), Crop(64), draws=8)
    slices = BatchSlice(global_batch_size=128, replicas=2)
    for batch in reader.training(slices, seed=0, start_step=0):
        ...  # one replica's share a time: step 0 replica 0, step 0 replica 1, step 1 replica 0, ...

An image's way: position -> index -> one read of a batch of records -> checksum -> parse -> decode and crop in
parallel -> batch -> the host's half of the augmentation. Nothing is stored of where the reader stands: step `t` starts
at position `t * global_batch_size`.

In the order `global` each record is read by itself, from a folder; in the order `windowed` (`order`) by long reads,
from a folder or from any file system of TensorFlow (`storage`). Records that cannot be used end the iteration, or have
others in their place (`substitutes`). Decoded images may be kept over the epochs (`pixel_cache`).
"""

import collections
import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from convoy.core.errors import ConvoyError, UsageError
from convoy.core.processes import usable_cores
from convoy.input_pipeline.augment.apply import on_host
from convoy.input_pipeline.augment.pipeline import Operation
from convoy.input_pipeline.dataset import records
from convoy.input_pipeline.dataset.open import Split
from convoy.input_pipeline.dataset.records import FRAME_OVERHEAD, RecordError
from convoy.input_pipeline.dataset.storage import Shards
from convoy.input_pipeline.reading import order
from convoy.input_pipeline.reading.cache import PixelCache
from convoy.input_pipeline.reading.decode import CROP_DRAWS, Crop, decode, decode_and_crop_all
from convoy.input_pipeline.reading.order import class_sampling
from convoy.input_pipeline.reading.substitutes import Substitutes, Substitution
from convoy.input_pipeline.reading.windows import LongReads, windows_of

# What costs the same for one image as for many is shared: some hundred images are read and parsed in one go, and
# decoded in chunks of about so many bytes. Alone, each 64x64 JPEG would cost half as much again as its decoding.
_IMAGES_A_READ = 512
_BYTES_A_CHUNK = 65536
_LARGEST_CHUNK = 16
_LARGEST_GRAPH = 64  # images that are decoded side by side in one call
_SMALLEST_CACHED_CHUNK = 8  # to take an image from memory costs little beside a call for it
_REMEMBERED_READS = 16  # more than ever lie between reading and decoding
_EXAMINED_IMAGES = 4096  # in one go, for those that cannot be decoded
Batch = dict[str, tf.Tensor]  # columns by name

_PREFETCHED_STEPS = 3
_ENDLESS = 2**62


@dataclass(frozen=True)
class BatchSlice:
    """Which positions of each step this process reads, and in which pieces it hands them on.

    Attributes:
      global_batch_size: images of one step, over all processes; a multiple of `replicas`.
      replicas: devices of all processes.
      first_replica: the first one that this process feeds.
      local_replicas: how many it feeds; all of them where 0.
    """

    global_batch_size: int
    replicas: int = 1
    first_replica: int = 0
    local_replicas: int = 0

    @property
    def replica_batch_size(self) -> int:
        """Images that one replica gets in one step."""
        return self.global_batch_size // self.replicas

    @property
    def num_local_replicas(self) -> int:
        """How many replicas this process feeds."""
        return self.local_replicas or self.replicas

    def positions(self, step: int) -> np.ndarray:
        """Returns this process's positions of one step, [fed_replicas * replica_batch_size] int64."""
        start = step * self.global_batch_size + self.first_replica * self.replica_batch_size
        return np.arange(start, start + self.num_local_replicas * self.replica_batch_size)


class Reader:
    """Reads one split. Holds its shards open until `close`; safe to use from several threads.

    Attributes:
      num_images: how many images the split holds.
    """

    def __init__(
        self,
        split: Split,
        crop: Crop,
        draws: int = CROP_DRAWS,
        *,
        shuffle: str = "global",
        block_size: int = 0,
        sampling: str = "natural",
        on_corrupt: str = "raise",
        cache: PixelCache | None = None,
        operations: Sequence[Operation] = (),
    ):
        """Opens the shards. What follows `draws` is about training; evaluation reads every record once, in order.

        Args:
          split: what to read.
          crop: what the host makes of each image in training; evaluation keeps whole images of the same size.
          draws: random numbers an image gets in training, `CROP_DRAWS` or more.
          shuffle: `global` or `block`. Shards on a remote store can only be trained on with `block`.
          block_size: records that `block` shuffles together; 0 as in `windows_of`.
          sampling: how often each class comes, one of `order.SAMPLINGS`; other than `natural` in global order only.
          on_corrupt: `raise` or `substitute`. Evaluation always raises: a metric over other images than the
            split's could be compared with no other.
          cache: of decoded images; none where left out.
          operations: the host's half of the augmentation, done to cropped images.

        Raises:
          DataError: a shard cannot be opened.
        """
        self.num_images = split.num_images
        self._error: ConvoyError | None = None
        self._recently_read: collections.deque[np.ndarray] = collections.deque(maxlen=_REMEMBERED_READS)
        self._split = split
        self._crop = crop
        self._draws = draws
        self._cache = cache
        self._operations = operations
        self._shards = Shards(split.shard_paths)
        self._windows = windows_of(split, block_size) if shuffle == "block" else None
        self._sampling = class_sampling(split.label, sampling) if sampling != "natural" else None
        self._long_reads: LongReads | None = None
        if self._shards.are_remote or self._windows:
            self._long_reads = LongReads(split, self._shards, self._windows)
        self._substitutes = Substitutes(self.num_images, self._problem_of) if on_corrupt == "substitute" else None
        self._decode_alone = _decoder_of_one(split)

    def training(self, slices: BatchSlice, *, seed: int, start_step: int = 0) -> tf.data.Dataset:
        """Returns the endless training stream from `start_step` on.

        Args:
          slices: which part of each step to read.
          seed: the run's seed: chooses the order, and with epoch and index each image's random numbers.
          start_step: the first step to read.

        Returns:
          Elements of one replica's share of one step, replicas in turn: `image` [replica_batch, size, size, 3] uint8,
          `label` [replica_batch] int32, `index` [replica_batch] int64, `randomness` [replica_batch, draws] float32 in
          [0, 1).

        Raises:
          UsageError: the shards are not in a folder and the order is global.
          tf.errors.OpError: while iterating: a record cannot be used; `explain` says which. Where it is to be
            substituted and only its decoding failed, `mend` it and iterate anew from the step that failed.
        """
        if self._shards.are_remote and not self._windows:
            raise UsageError(
                f"{self._shards.paths[0].parent} is no folder of this machine, and in global order each record would "
                "be asked for by itself: give --config.shuffle=block."
            )

        def locate(positions: np.ndarray) -> dict[str, np.ndarray]:
            indices, epochs = self._located(positions, seed)
            randomness = order.image_randomness(indices, epochs, seed=seed, draws=self._draws)
            return {"index": indices, "randomness": randomness}

        def read(positions: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, list[bytes], np.ndarray]:
            return self._read_usable(positions, indices, seed)

        extra = {"index": tf.TensorSpec([None], tf.int64), "randomness": tf.TensorSpec([None, self._draws], tf.float32)}
        dataset = self._batches(start_step, _ENDLESS, locate, read, extra, slices, self._crop, self._cache)
        if self._operations:
            # A whole batch at a time, so that images which sampled the same operation are many.
            calls = _PREFETCHED_STEPS * slices.num_local_replicas
            dataset = dataset.map(self._augmented, num_parallel_calls=calls)
        # So that TensorFlow knows it, and does not ask all workers at each batch whether they have one more.
        return dataset.apply(tf.data.experimental.assert_cardinality(tf.data.experimental.INFINITE_CARDINALITY))

    def evaluation(self, slices: BatchSlice) -> tf.data.Dataset:
        """Returns every image of the split once, in the order of the records.

        Returns:
          Elements as in `training`, without `randomness` and with `weight` [replica_batch] float32: 1, or 0 for the
          padding that fills the last step.
        """

        def locate(positions: np.ndarray) -> dict[str, np.ndarray]:
            weight = (positions < self.num_images).astype(np.float32)
            return {"index": np.minimum(positions, self.num_images - 1), "weight": weight}

        def read(_: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, list[bytes], np.ndarray]:
            return indices, self.read(indices), np.zeros(len(indices), bool)

        extra = {"index": tf.TensorSpec([None], tf.int64), "weight": tf.TensorSpec([None], tf.float32)}
        steps = -(-self.num_images // slices.global_batch_size)
        return self._batches(0, steps, locate, read, extra, slices, Crop(self._crop.size))

    def images_at(self, positions: np.ndarray, *, seed: int) -> np.ndarray:
        """Returns the images that stand at positions of the training stream, [n] int64, substitutes included."""
        indices, _ = self._located(positions, seed)
        return self._substitutes.applied(indices) if self._substitutes else indices

    def substituted(self, positions: np.ndarray, *, seed: int) -> list[Substitution]:
        """Returns what is substituted at positions of the training stream that were read before."""
        return self._substitutes.of(self._located(positions, seed)[0]) if self._substitutes else []

    def read(self, indices: np.ndarray) -> list[bytes]:
        """Returns the payloads of the given images.

        Args:
          indices: [n] integers in [0, num_images).

        Raises:
          RecordError: a record's length or checksum does not hold; names shard, offset and image index.
          ConvoyError: the file system fails.
        """
        frames = self._long_reads.read(indices) if self._shards.are_remote else self._frames_one_by_one(indices)
        return self._checked(frames, indices)

    def images(self, indices: np.ndarray) -> list[np.ndarray]:
        """Returns whole images, each [height, width, 3] uint8 as it is stored.

        Args:
          indices: [n] integers in [0, num_images).

        Raises:
          RecordError: a record is damaged or holds no image; names shard, offset and image index.
          ConvoyError: the file system fails.
        """
        try:
            return [self._decode_alone(payload).numpy() for payload in self.read(indices)]
        except tf.errors.OpError:
            with contextlib.closing(self._problems_among(np.asarray(indices))) as problems:
                if problem := next(problems, None):
                    raise problem from None
            raise

    def explain(self) -> ConvoyError | None:
        """Returns what ended an iteration with a `tf.errors.OpError`; None where it was nothing of this split.

        Of records whose bytes are whole and yet no image TensorFlow names none: those last read are looked through.
        """
        if self._error:
            return self._error
        indices = np.concatenate([np.empty(0, np.int64), *self._recently_read])
        with contextlib.closing(self._problems_among(indices)) as problems:
            return next(problems, None)

    def recover(self, slices: BatchSlice, step: int, *, seed: int) -> bool:
        """Looks for images that cannot be decoded, after an iteration ended with a `tf.errors.OpError`.

        Only then are they looked for, so that runs whose images can all be decoded pay nothing.

        Args:
          slices: as they were given to `training`.
          step: the step whose batch could not be had.
          seed: as it was given to `training`.

        Returns:
          Whether there are any, and substitutes for all of them: then it can go on from `step`.
        """
        if not self._substitutes or self._error:
            return False
        steps = max(2, -(-_EXAMINED_IMAGES // len(slices.positions(0))))
        positions = np.concatenate([slices.positions(step + k) for k in range(steps)])
        problems = list(self._problems_among(self.images_at(positions, seed=seed)))
        for problem in problems:
            self._substitutes.add(problem)
        return bool(problems)

    def close(self) -> None:
        """Closes the shards, and lets go of the images that are kept. What stood at a position can still be asked."""
        self._cache = None
        if self._long_reads:
            self._long_reads.close()
        self._shards.close()

    def _augmented(self, batch: Batch) -> Batch:
        return {**batch, "image": on_host(batch["image"], batch["randomness"], self._operations)}

    def _located(self, positions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        if self._windows:
            return order.block_positions_to_images(positions, windows=self._windows, seed=seed)
        if self._sampling:
            return order.sampled_positions_to_images(positions, sampling=self._sampling, seed=seed)
        return order.positions_to_images(positions, num_images=self.num_images, seed=seed)

    def _problems_among(self, indices: np.ndarray) -> Iterator[RecordError]:
        """Yields what keeps images, [n] int64, from being used, each once and by their numbers. To be closed."""
        pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix="examination")
        try:
            yield from filter(None, pool.map(self._problem_of, np.unique(indices).tolist()))
        finally:
            pool.shutdown(cancel_futures=True)

    def _problem_of(self, index: int) -> RecordError | None:
        """Says what keeps an image from being used, if anything does."""
        indices = np.array([index])
        try:
            (payload,) = self._checked(self._frames_one_by_one(indices), indices)
            self._decode_alone(payload)
        except RecordError as error:
            return error
        except tf.errors.OpError:
            path, offset = self._split.shard_paths[self._split.shard[index]], int(self._split.offset[index])
            reason, fix = "is whole but holds no image that can be decoded", "convert again without it"
            return RecordError(path, offset=offset, index=int(index), reason=reason, fix=fix)
        return None

    def _checked(self, frames: Iterator[bytes], indices: np.ndarray) -> list[bytes]:
        split = self._split
        columns = (column[indices] for column in (split.shard, split.offset, split.length, split.crc))
        return records.checked_payloads(frames, *columns, paths=split.shard_paths, indices=indices)

    def _frames_one_by_one(self, indices: np.ndarray) -> Iterator[bytes]:
        split = self._split
        columns = (split.shard[indices], split.offset[indices], split.length[indices] + FRAME_OVERHEAD)
        return map(self._shards.read, *(column.tolist() for column in columns))

    def _read_usable(
        self, positions: np.ndarray, indices: np.ndarray, seed: int
    ) -> tuple[np.ndarray, list[bytes], np.ndarray]:
        """Reads what training wants.

        Args:
          positions: [n] int64, of the training stream.
          indices: [n] int64, what stands there.
          seed: the run's seed.

        Returns:
          indices [n] with those of substitutes, payloads [n], and whether the cache has the image [n] bool: such a
          payload is empty.

        Raises:
          RecordError: a record cannot be used and is not to be substituted.
        """
        used = self._substitutes.applied(indices) if self._substitutes else indices
        kept = self._cache.keeps(used) if self._cache else np.zeros(len(used), bool)
        wanted = np.flatnonzero(~kept)
        try:
            if self._windows and len(wanted):
                alone = (used != indices)[wanted]
                frames = self._frames_of_windows(positions[wanted], used[wanted], alone, seed)
            else:
                frames = self._frames_one_by_one(used[wanted])
            read = self._checked(frames, used[wanted])
        except RecordError:
            if not self._substitutes:
                raise
            used = np.array([self._usable(index) for index in used.tolist()])
            kept, wanted = np.zeros(len(used), bool), np.arange(len(used))
            read = self._checked(self._frames_one_by_one(used), used)
        payloads = [b""] * len(used)
        for place, payload in zip(wanted.tolist(), read, strict=True):
            payloads[place] = payload
        return used, payloads, kept

    def _usable(self, index: int) -> int:
        """Returns the image, or its substitute where its record is damaged."""
        try:
            self._checked(self._frames_one_by_one(np.array([index])), np.array([index]))
        except RecordError as error:
            return self._substitutes.add(error)
        return index

    def _frames_of_windows(
        self, positions: np.ndarray, indices: np.ndarray, alone: np.ndarray, seed: int
    ) -> Iterator[bytes]:
        """Yields frames, [n], from the windows the positions lie in; those of substitutes, `alone`, by themselves."""
        inside = ~alone
        of_windows = self._long_reads.read_windows(self._windows.numbers(positions[inside]), indices[inside], seed=seed)
        others = self._frames_one_by_one(indices[alone])
        return (next(others if is_alone else of_windows) for is_alone in alone.tolist())

    def _batches(
        self,
        start_step: int,
        stop_step: int,
        locate: Callable[[np.ndarray], dict[str, np.ndarray]],
        read: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, list[bytes], np.ndarray]],
        extra: dict[str, tf.TensorSpec],
        slices: BatchSlice,
        crop: Crop,
        cache: PixelCache | None = None,
    ) -> tf.data.Dataset:
        """Returns the batches of the steps in [start_step, stop_step).

        Args:
          start_step: the first step.
          stop_step: behind the last.
          locate: from positions [n] to `index` [n] and the other columns of `extra`.
          read: from positions and indices [n] to the indices used, their payloads, and whether `cache` has them.
          extra: what `locate` returns, each [n, ...].
          slices: which positions of a step.
          crop: what to make of an image.
          cache: of decoded images.
        """
        steps_a_read = max(1, _IMAGES_A_READ // len(slices.positions(0)))

        def read_steps(first: np.ndarray) -> list[np.ndarray]:
            steps = range(int(first), min(int(first) + steps_a_read, stop_step))
            positions = np.concatenate([slices.positions(step) for step in steps])
            columns = locate(positions)
            try:
                columns["index"], payloads, kept = read(positions, columns["index"])
            except ConvoyError as error:
                self._error = error
                raise
            self._recently_read.append(columns["index"])
            labels = self._split.label[columns["index"]]
            to_keep = ~kept if cache and cache.takes_more else np.zeros_like(kept)
            return [np.array(payloads, object), labels, kept, to_keep, *(columns[name] for name in extra)]

        def parse(first: tf.Tensor) -> dict[str, tf.Tensor]:
            types = [tf.string, tf.int32, tf.bool, tf.bool, *(spec.dtype for spec in extra.values())]
            payloads, labels, kept, to_keep, *others = tf.numpy_function(read_steps, [first], types, stateful=False)
            columns = _parse(tf.ensure_shape(payloads, [None]), self._split)
            columns["label"] = tf.ensure_shape(labels, [None])
            if cache:
                columns |= {"kept": tf.ensure_shape(kept, [None]), "to_keep": tf.ensure_shape(to_keep, [None])}
            for (name, spec), column in zip(extra.items(), others, strict=True):
                columns[name] = tf.ensure_shape(column, spec.shape)
            return columns

        def decode_chunk(columns: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            # Copied: `rebatch` hands on views of larger tensors, and complains when it is given them again.
            everything = tf.range(tf.size(columns["label"]))
            handed_on = {name: tf.gather(columns[name], everything) for name in ("label", *extra)}
            image = decode_and_crop_all(columns, columns.get("randomness"), crop, chunk, cache)
            return {"image": image, **handed_on}

        def sized(columns: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            size = slices.replica_batch_size
            return {name: tf.ensure_shape(column, [size, *column.shape[1:]]) for name, column in columns.items()}

        chunk, calls = self._chunk(slices.replica_batch_size, crop, cache)
        dataset = tf.data.Dataset.range(start_step, stop_step, steps_a_read).map(parse, num_parallel_calls=2)
        dataset = dataset.rebatch(chunk).map(decode_chunk, num_parallel_calls=calls)
        dataset = dataset.rebatch(slices.replica_batch_size, drop_remainder=True).map(sized)
        options = tf.data.Options()
        options.deterministic = True
        options.autotune.enabled = False  # nothing is left to it, and its thread can hold up the end of a run
        return dataset.prefetch(_PREFETCHED_STEPS * slices.num_local_replicas).with_options(options)

    def _chunk(self, batch_size: int, crop: Crop, cache: PixelCache | None) -> tuple[int, int]:
        """Returns how many images to decode in a call, and how many calls at a time."""
        smallest = _SMALLEST_CACHED_CHUNK if cache else 1
        chunk = int(np.clip(_BYTES_A_CHUNK // max(1.0, self._split.length.mean()), smallest, _LARGEST_CHUNK))
        if crop.min_area == 1 and self._first_image_has(crop.size):
            # To put a batch together from pieces would cost a tenth of what decoding images of 256x256 does.
            whole = max(size for size in range(1, _LARGEST_GRAPH + 1) if batch_size % size == 0)
            if whole >= chunk:
                return whole, max(3, -(-2 * usable_cores() // whole) + 1)
        return chunk, 2 * usable_cores()

    def _first_image_has(self, size: int) -> bool:
        """Says whether the images seem to have the size that is wanted. What does not is decoded all the same."""
        if self._shards.are_remote:  # a look at one would fetch many
            return False
        try:
            columns = _parse(tf.constant(self.read(np.array([0]))), self._split)
        except (ConvoyError, tf.errors.OpError):  # told when it is its turn
            return False
        return columns["format"][0] != b"raw" and columns["height"][0] == columns["width"][0] == size


def _decoder_of_one(split: Split) -> Callable[[bytes], tf.Tensor]:
    """Returns what decodes the image in a record's payload, and raises a `tf.errors.OpError` where it cannot."""

    def decoded(payload: tf.Tensor) -> tf.Tensor:
        return decode({name: column[0] for name, column in _parse(payload[None], split).items()})

    # Operation by operation, a small image would take three times as long, and threads would wait for each other.
    return tf.function(decoded, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)


def _parse(payloads: tf.Tensor, split: Split) -> dict[str, tf.Tensor]:
    """Returns what records [n] of a split hold: `encoded`, `format`, `height` and `width`, each [n].

    Where the split's sizes may be wrong, all but those of raw pixels are 0.
    """
    image_key = split.keys.image
    features = {
        image_key: tf.io.FixedLenFeature([], tf.string, ""),  # to hold none is to hold one that is damaged
        "image/format": tf.io.FixedLenFeature([], tf.string, "jpeg"),
        "image/height": tf.io.FixedLenFeature([], tf.int64, 0),
        "image/width": tf.io.FixedLenFeature([], tf.int64, 0),
    }
    parsed = tf.io.parse_example(payloads, features)
    columns = {"encoded" if name == image_key else name.removeprefix("image/"): parsed[name] for name in features}
    if not split.states_true_sizes:
        is_raw = tf.cast(columns["format"] == "raw", tf.int64)
        columns |= {side: columns[side] * is_raw for side in ("height", "width")}
    return columns
