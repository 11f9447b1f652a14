"""From a dataset directory to batches: exact global order by position, random reads by index, every checksum checked.

    reader = Reader(dataset.split("train"), Crop(64), draws=8)
    slices = Slices(global_batch_size=128, replicas=2)
    for batch in reader.training(slices, seed=0, start_step=0):
        ...  # one replica's share a time: step 0 replica 0, step 0 replica 1, step 1 replica 0, ...

An image's way: position -> index -> one read of a batch of records -> checksum -> parse -> decode and crop in
parallel -> batch -> prefetch. Nothing is stored of where the reader stands: step `t` starts at position `t *
global_batch_size`.
"""

import collections
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from input_pipeline import order, records
from input_pipeline.crop import HOST_DRAWS, Crop, decode_and_crop, decode_and_crop_all
from input_pipeline.dataset import Split
from input_pipeline.errors import DataError
from input_pipeline.index import RecordKeys
from input_pipeline.processes import usable_cores

# What costs the same for one image as for many is shared: some hundred images are read and parsed in one go, and
# decoded in chunks of about so many bytes. Alone, each 64x64 JPEG would cost half as much again as its decoding.
_IMAGES_A_READ = 512
_BYTES_A_CHUNK = 65536
_LARGEST_CHUNK = 16
_REMEMBERED_READS = 16  # more than ever lie between reading and decoding
Batch = dict[str, tf.Tensor]  # columns by name

_PREFETCHED_STEPS = 3
_ENDLESS = 2**62


@dataclass(frozen=True)
class Slices:
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
    def fed_replicas(self) -> int:
        """How many replicas this process feeds."""
        return self.local_replicas or self.replicas

    def positions(self, step: int) -> np.ndarray:
        """Returns this process's positions of one step, [fed_replicas * replica_batch_size] int64."""
        start = step * self.global_batch_size + self.first_replica * self.replica_batch_size
        return np.arange(start, start + self.fed_replicas * self.replica_batch_size)


class Reader:
    """Reads one split. Holds its shards open until `close`; safe to use from several threads.

    Attributes:
      num_images: how many images the split holds.
    """

    def __init__(self, split: Split, crop: Crop, draws: int = HOST_DRAWS):
        """Opens the shards.

        Args:
          split: what to read.
          crop: what the host makes of each image in training; evaluation keeps whole images of the same size.
          draws: random numbers an image gets in training, `HOST_DRAWS` or more.

        Raises:
          DataError: a shard cannot be opened.
        """
        self.num_images = split.num_images
        self._error: DataError | None = None
        self._recently_read: collections.deque[np.ndarray] = collections.deque(maxlen=_REMEMBERED_READS)
        self._split = split
        self._crop = crop
        self._draws = draws
        self._descriptors: list[int] = []
        for path in split.shard_paths:
            try:
                self._descriptors.append(os.open(path, os.O_RDONLY))
            except OSError as error:
                self.close()
                raise DataError(f"{path}: cannot be opened ({error.strerror}).") from None

    def training(self, slices: Slices, *, seed: int, start_step: int = 0) -> tf.data.Dataset:
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
          tf.errors.OpError: while iterating: a record cannot be used; `explain` says which.
        """

        def locate(positions: np.ndarray) -> dict[str, np.ndarray]:
            indices, epochs = order.positions_to_images(positions, num_images=self.num_images, seed=seed)
            randomness = order.image_randomness(indices, epochs, seed=seed, draws=self._draws)
            return {"index": indices, "randomness": randomness}

        extra = {"index": tf.TensorSpec([None], tf.int64), "randomness": tf.TensorSpec([None, self._draws], tf.float32)}
        dataset = self._batches(start_step, _ENDLESS, locate, extra, slices, self._crop)
        # So that TensorFlow knows it, and does not ask all workers at each batch whether they have one more.
        return dataset.apply(tf.data.experimental.assert_cardinality(tf.data.experimental.INFINITE_CARDINALITY))

    def evaluation(self, slices: Slices) -> tf.data.Dataset:
        """Returns every image of the split once, in the order of the records.

        Returns:
          Elements as in `training`, without `randomness` and with `weight` [replica_batch] float32: 1, or 0 for the
          padding that fills the last step.
        """

        def locate(positions: np.ndarray) -> dict[str, np.ndarray]:
            weight = (positions < self.num_images).astype(np.float32)
            return {"index": np.minimum(positions, self.num_images - 1), "weight": weight}

        extra = {"index": tf.TensorSpec([None], tf.int64), "weight": tf.TensorSpec([None], tf.float32)}
        steps = -(-self.num_images // slices.global_batch_size)
        return self._batches(0, steps, locate, extra, slices, Crop(self._crop.size))

    def read(self, indices: np.ndarray) -> list[bytes]:
        """Returns the payloads of the given images.

        Args:
          indices: [n] integers in [0, num_images).

        Raises:
          DataError: a record's length or checksum does not hold; names shard, offset and image index.
        """
        split = self._split
        columns = (column[indices] for column in (split.shard, split.offset, split.length, split.crc))
        return records.read_payloads(self._descriptors, *columns, paths=split.shard_paths, indices=indices)

    def explain(self) -> DataError | None:
        """Returns what ended an iteration with a `tf.errors.OpError`; None where it was no record of this split."""
        return self._error or self._undecodable()

    def _undecodable(self) -> DataError | None:
        """Looks for a record among those last read whose bytes are whole and yet no image; TensorFlow names none."""
        split = self._split
        for index in np.unique(np.concatenate([[], *self._recently_read])).astype(np.int64):
            payload = tf.constant(self.read(np.array([index])))
            try:
                features = {name: column[0] for name, column in _parse(payload, split.keys).items()}
                decode_and_crop(features, tf.zeros([HOST_DRAWS]), Crop(self._crop.size))
            except tf.errors.OpError:
                return DataError(
                    f"{split.shard_paths[split.shard[index]]}: record {index} at offset {split.offset[index]} is whole "
                    "but holds no image that can be decoded; convert again without it"
                )
        return None

    def close(self) -> None:
        """Closes the shards."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []

    def _batches(
        self,
        start_step: int,
        stop_step: int,
        locate: Callable[[np.ndarray], dict[str, np.ndarray]],
        extra: dict[str, tf.TensorSpec],
        slices: Slices,
        crop: Crop,
    ) -> tf.data.Dataset:
        """Returns the batches of the steps in [start_step, stop_step).

        Args:
          start_step: the first step.
          stop_step: behind the last.
          locate: from positions [n] to `index` [n] and the other columns of `extra`.
          extra: what `locate` returns, each [n, ...].
          slices: which positions of a step.
          crop: what to make of an image.
        """
        steps_a_read = max(1, _IMAGES_A_READ // len(slices.positions(0)))

        def read_steps(first: np.ndarray) -> list[np.ndarray]:
            steps = range(int(first), min(int(first) + steps_a_read, stop_step))
            columns = locate(np.concatenate([slices.positions(step) for step in steps]))
            self._recently_read.append(columns["index"])
            try:
                payloads = self.read(columns["index"])
            except DataError as error:
                self._error = error
                raise
            return [np.array(payloads, object), self._split.label[columns["index"]], *(columns[name] for name in extra)]

        def read(first: tf.Tensor) -> dict[str, tf.Tensor]:
            types = [tf.string, tf.int32, *(spec.dtype for spec in extra.values())]
            payloads, labels, *others = tf.numpy_function(read_steps, [first], types, stateful=False)
            columns = _parse(tf.ensure_shape(payloads, [None]), self._split.keys)
            columns["label"] = tf.ensure_shape(labels, [None])
            for (name, spec), column in zip(extra.items(), others, strict=True):
                columns[name] = tf.ensure_shape(column, spec.shape)
            return columns

        def decode(columns: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            # Copied: `rebatch` hands on views of larger tensors, and complains when it is given them again.
            everything = tf.range(tf.size(columns["label"]))
            kept = {name: tf.gather(columns[name], everything) for name in ("label", *extra)}
            return {"image": decode_and_crop_all(columns, columns.get("randomness"), crop, chunk), **kept}

        def sized(columns: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            size = slices.replica_batch_size
            return {name: tf.ensure_shape(column, [size, *column.shape[1:]]) for name, column in columns.items()}

        chunk = int(np.clip(_BYTES_A_CHUNK // max(1.0, self._split.length.mean()), 1, _LARGEST_CHUNK))
        dataset = tf.data.Dataset.range(start_step, stop_step, steps_a_read).map(read, num_parallel_calls=2)
        dataset = dataset.rebatch(chunk).map(decode, num_parallel_calls=2 * usable_cores())
        dataset = dataset.rebatch(slices.replica_batch_size, drop_remainder=True).map(sized)
        options = tf.data.Options()
        options.deterministic = True
        options.autotune.enabled = False  # nothing is left to it, and its thread can hold up the end of a run
        return dataset.prefetch(_PREFETCHED_STEPS * slices.fed_replicas).with_options(options)


def _parse(payloads: tf.Tensor, keys: RecordKeys) -> dict[str, tf.Tensor]:
    """Returns what records [n] hold: `encoded`, `format`, `height` and `width`, each [n]."""
    features = {
        keys.image: tf.io.FixedLenFeature([], tf.string),
        "image/format": tf.io.FixedLenFeature([], tf.string, "jpeg"),
        "image/height": tf.io.FixedLenFeature([], tf.int64, 0),
        "image/width": tf.io.FixedLenFeature([], tf.int64, 0),
    }
    columns = tf.io.parse_example(payloads, features)
    return {"encoded" if name == keys.image else name.removeprefix("image/"): columns[name] for name in features}
