"""tf.data pipelines over one split: training batches in exact order by position, and evaluation batches.

    reader = Reader(dataset.split("train"), Crop(64), draws=8)
    slices = BatchSlice(global_batch_size=128, replicas=2)
    for batch in reader.training(slices, seed=0, start_step=0):
        ...  # per-replica batches in turn: step 0 replica 0, step 0 replica 1, step 1 replica 0, ...

Stages: position -> index (`sampler`) -> records, checksums verified (`record_reader`) -> parse -> decode and crop in
parallel (`decode`) -> batch -> host part of the augmentation. The reader keeps no position state: step `t` starts at
position `t * global_batch_size`.

With global shuffle, records are read one by one from a local directory. With striped shuffle they are read by long
range reads (`windows`), from a local directory or any TensorFlow file system (`storage`). Records that cannot be used
end the iteration or are replaced (`substitutes`). Decoded images can be cached across epochs (`cache`).
"""

import collections
import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from convoy.core.errors import ConvoyError, UsageError
from convoy.core.processes import usable_cores
from convoy.input_pipeline.augment.apply import on_host
from convoy.input_pipeline.augment.pipeline import Operation
from convoy.input_pipeline.dataset.open import Split
from convoy.input_pipeline.reading import order
from convoy.input_pipeline.reading.cache import PixelCache
from convoy.input_pipeline.reading.decode import CROP_DRAWS, Crop, decode_and_crop_all, parse_records, resize
from convoy.input_pipeline.reading.record_reader import RecordReader
from convoy.input_pipeline.reading.sampler import BatchSlice, Sampler
from convoy.input_pipeline.reading.substitutes import Substitution
from convoy.input_pipeline.reading.viewed import may_be_shown_otherwise

Batch = dict[str, tf.Tensor]  # columns by name
_Records = tuple[np.ndarray, list[bytes], np.ndarray]  # indices, payloads, whether the image is cached

# Fixed costs per call are shared: some hundred images are read and parsed together, and decoded in chunks of about
# this many bytes. Alone, each 64x64 JPEG would cost half as much again as its decoding.
_IMAGES_PER_READ = 512
_BYTES_PER_CHUNK = 65536
_LARGEST_CHUNK = 16
_LARGEST_GRAPH = 64  # images decoded by one call without a loop
_SMALLEST_CACHED_CHUNK = 8  # fetching a cached image is cheap compared to the call
_REMEMBERED_READS = 16  # more than can be in flight between reading and decoding
_EXAMINED_IMAGES = 4096  # checked at a time when looking for images that cannot be decoded
_PREFETCHED_STEPS = 3
_ENDLESS = 2**62
_LABEL = tf.TensorSpec([None], tf.int32)


class Reader:
    """Reads one split. Keeps its shards open until `close`; safe to use from several threads.

    Attributes:
      num_images: how many images the split has.
    """

    def __init__(
        self,
        split: Split,
        crop: Crop,
        draws: int = CROP_DRAWS,
        *,
        sampler: Sampler | None = None,
        on_corrupt: str = "raise",
        cache: PixelCache | None = None,
        operations: Sequence[Operation] = (),
    ):
        """Opens the shards. The arguments from `draws` on affect training only; evaluation reads each record once.

        Args:
          split: what to read.
          crop: how the host crops and resizes training images. Evaluation resizes whole images in the same way.
          draws: random numbers per training image, at least `CROP_DRAWS`.
          sampler: the order; by default a global shuffle. Training on a remote store requires a striped one.
          on_corrupt: `raise` or `substitute`. Evaluation always raises: a metric over other images than the split's
            would not be comparable.
          cache: of decoded images.
          operations: the host part of the augmentation, applied to cropped images.

        Raises:
          DataError: a shard cannot be opened.
        """
        self.num_images = split.num_images
        self._split = split
        self._crop = crop
        self._draws = draws
        self._cache = cache
        self._operations = operations
        self._sampler = sampler or Sampler(split)
        self._records = RecordReader(split, stripes=self._sampler.stripes, on_corrupt=on_corrupt)
        self._error: ConvoyError | None = None
        self._recently_read: collections.deque[np.ndarray] = collections.deque(maxlen=_REMEMBERED_READS)

    def training(self, slices: BatchSlice, *, seed: int, start_step: int = 0) -> tf.data.Dataset:
        """Returns the endless training stream from `start_step` on.

        Args:
          slices: which part of each step to read.
          seed: the run's seed. It determines the order, and with epoch and index each image's random numbers.
          start_step: the first step to read.

        Returns:
          One element per replica and step, replicas in turn: `image` [replica_batch, size, size, 3] uint8, `label`
          [replica_batch] int32, `index` [replica_batch] int64, `randomness` [replica_batch, draws] float32 in [0, 1).
          Of a multi-label split `label` is [replica_batch, num_classes] float32, 1 for each label, else 0.

        Raises:
          UsageError: the shards are remote and the shuffle is global.
          tf.errors.OpError: while iterating: a record cannot be used; `explain` returns which. With substitution, if
            only decoding failed, call `recover` and iterate again from the step that failed.
        """
        if self._records.shards.are_remote and not self._sampler.stripes:
            raise UsageError(
                f"{self._records.shards.paths[0].parent}: global shuffle reads single records and needs a local "
                "directory. Pass --config.shuffle=striped."
            )

        def locate(positions: np.ndarray) -> dict[str, np.ndarray]:
            indices, epochs = self._sampler.locate(positions, seed)
            randomness = order.image_randomness(indices, epochs, seed=seed, draws=self._draws)
            return {"index": indices, "randomness": randomness}

        def read(positions: np.ndarray, indices: np.ndarray) -> _Records:
            return self._records.read_training(positions, indices, seed=seed, cache=self._cache)

        extra = {"index": tf.TensorSpec([None], tf.int64), "randomness": tf.TensorSpec([None, self._draws], tf.float32)}
        dataset = self._batches(start_step, _ENDLESS, locate, read, extra, slices, self._crop, self._cache)
        if self._operations:
            # Per batch, so that many images share each sampled operation.
            calls = _PREFETCHED_STEPS * slices.num_local_replicas
            dataset = dataset.map(self._augment, num_parallel_calls=calls)
        # Otherwise TensorFlow asks all workers at every batch whether they have another one.
        return dataset.apply(tf.data.experimental.assert_cardinality(tf.data.experimental.INFINITE_CARDINALITY))

    def evaluation(self, slices: BatchSlice) -> tf.data.Dataset:
        """Returns every image of the split once, in record order.

        Returns:
          Elements as in `training`, without `randomness` and with `weight` [replica_batch] float32: 1, or 0 for the
          padding of the last step.
        """

        def locate(positions: np.ndarray) -> dict[str, np.ndarray]:
            weight = (positions < self.num_images).astype(np.float32)
            return {"index": np.minimum(positions, self.num_images - 1), "weight": weight}

        def read(_: np.ndarray, indices: np.ndarray) -> _Records:
            return indices, self.read(indices), np.zeros(len(indices), bool)

        extra = {"index": tf.TensorSpec([None], tf.int64), "weight": tf.TensorSpec([None], tf.float32)}
        steps = -(-self.num_images // slices.global_batch_size)
        return self._batches(0, steps, locate, read, extra, slices, self._crop.whole)

    def images_at(self, positions: np.ndarray, *, seed: int) -> np.ndarray:
        """Returns the image indices at positions of the training stream, [n] int64, after substitution."""
        indices, _ = self._sampler.locate(positions, seed)
        substitutes = self._records.substitutes
        return substitutes.applied(indices) if substitutes else indices

    def substituted(self, positions: np.ndarray, *, seed: int) -> list[Substitution]:
        """Returns the substitutions known so far at positions of the training stream."""
        substitutes = self._records.substitutes
        return substitutes.among(self._sampler.locate(positions, seed)[0]) if substitutes else []

    def read(self, indices: np.ndarray) -> list[bytes]:
        """Returns the payloads of images; as `RecordReader.read`."""
        return self._records.read(indices)

    def images(self, indices: np.ndarray) -> list[np.ndarray]:
        """Returns whole images as stored, each [height, width, 3] uint8.

        Args:
          indices: [n] integers in [0, num_images).

        Raises:
          RecordError: a record is damaged or its image cannot be decoded; names shard, offset and image index.
          ConvoyError: the file system fails.
        """
        return self._decoded(indices)

    def seen(self, indices: np.ndarray) -> np.ndarray:
        """Returns images as evaluation sees them, [n, size, size, 3] uint8; arguments and errors as `images`."""
        crop = self._crop.whole
        return np.stack([resize(tf.constant(image), crop).numpy() for image in self._decoded(indices, crop)])

    def _decoded(self, indices: np.ndarray, crop: Crop | None = None) -> list[np.ndarray]:
        try:
            return self._records.images(indices, crop)
        except tf.errors.OpError:
            with contextlib.closing(self._records.problems(np.asarray(indices))) as problems:
                if problem := next(problems, None):
                    raise problem from None
            raise

    def explain(self) -> ConvoyError | None:
        """Returns the error that ended an iteration with a `tf.errors.OpError`; None if this split did not cause it.

        TensorFlow's decoding errors do not name the record, so the most recently read records are checked.
        """
        if self._error:
            return self._error
        indices = np.concatenate([np.empty(0, np.int64), *self._recently_read])
        with contextlib.closing(self._records.problems(indices)) as problems:
            return next(problems, None)

    def recover(self, slices: BatchSlice, step: int, *, seed: int) -> bool:
        """Substitutes images that cannot be decoded, after an iteration ended with a `tf.errors.OpError`.

        They are looked for only then, so runs without such images pay nothing.

        Args:
          slices: as passed to `training`.
          step: the step whose batch failed.
          seed: as passed to `training`.

        Returns:
          Whether any were found and substituted: then training can continue from `step`.
        """
        substitutes = self._records.substitutes
        if not substitutes or self._error:
            return False
        steps = max(2, -(-_EXAMINED_IMAGES // len(slices.positions(0))))
        positions = np.concatenate([slices.positions(step + k) for k in range(steps)])
        problems = list(self._records.problems(self.images_at(positions, seed=seed)))
        for problem in problems:
            substitutes.add(problem)
        return bool(problems)

    def close(self) -> None:
        """Closes the shards and drops the cache. `images_at` and `substituted` still work."""
        if self._cache:
            self._cache.close()
        self._cache = None
        self._records.close()

    @tf.autograph.experimental.do_not_convert
    def _augment(self, batch: Batch) -> Batch:
        return {**batch, "image": on_host(batch["image"], batch["randomness"], self._operations)}

    def _batches(
        self,
        start_step: int,
        stop_step: int,
        locate: Callable[[np.ndarray], dict[str, np.ndarray]],
        read: Callable[[np.ndarray, np.ndarray], _Records],
        extra: dict[str, tf.TensorSpec],
        slices: BatchSlice,
        crop: Crop,
        cache: PixelCache | None = None,
    ) -> tf.data.Dataset:
        """Returns the batches of the steps in [start_step, stop_step).

        Args:
          start_step: the first step.
          stop_step: one past the last step.
          locate: from positions [n] to `index` [n] and the other columns of `extra`.
          read: from positions and indices [n] to the indices used, their payloads, and whether `cache` has them.
          extra: the columns that `locate` returns, each [n, ...].
          slices: this process's positions of a step.
          crop: how to crop and resize.
          cache: of decoded images.
        """
        label_sets = self._split.label_sets
        target = tf.TensorSpec([None, label_sets.num_classes], tf.float32) if label_sets else _LABEL
        steps_per_read, as_viewed = max(1, _IMAGES_PER_READ // len(slices.positions(0))), self._split.as_viewed

        def read_steps(first: np.ndarray) -> list[np.ndarray]:
            steps = range(int(first), min(int(first) + steps_per_read, stop_step))
            positions = np.concatenate([slices.positions(step) for step in steps])
            columns = locate(positions)
            try:
                columns["index"], payloads, kept = read(positions, columns["index"])
            except ConvoyError as error:
                self._error = error
                raise
            self._recently_read.append(columns["index"])
            labels = self._split.targets(columns["index"])
            to_keep = ~kept if cache and cache.takes_more else np.zeros_like(kept)
            otherwise = np.array([may_be_shown_otherwise(payload) for payload in payloads] if as_viewed else (), bool)
            return [np.array(payloads, object), otherwise, labels, kept, to_keep, *(columns[name] for name in extra)]

        @tf.autograph.experimental.do_not_convert
        def parse(first: tf.Tensor) -> Batch:
            types = [tf.string, tf.bool, target.dtype, tf.bool, tf.bool, *(spec.dtype for spec in extra.values())]
            payloads, otherwise, labels, kept, to_keep, *others = tf.numpy_function(
                read_steps, [first], types, stateful=False
            )
            otherwise = tf.ensure_shape(otherwise, [None]) if as_viewed else None
            columns = parse_records(tf.ensure_shape(payloads, [None]), self._split, otherwise)
            columns["label"] = tf.ensure_shape(labels, target.shape)
            if cache:
                columns |= {"kept": tf.ensure_shape(kept, [None]), "to_keep": tf.ensure_shape(to_keep, [None])}
            for (name, spec), column in zip(extra.items(), others, strict=True):
                columns[name] = tf.ensure_shape(column, spec.shape)
            return columns

        @tf.autograph.experimental.do_not_convert
        def decode_chunk(columns: Batch) -> Batch:
            # Copy the columns: `rebatch` yields views of larger tensors and warns when it is given views again.
            all_rows = tf.range(tf.shape(columns["label"])[0])
            copied = {name: tf.gather(columns[name], all_rows) for name in ("label", *extra)}
            image = decode_and_crop_all(columns, columns.get("randomness"), crop, chunk, cache, any_viewed=as_viewed)
            return {"image": image, **copied}

        @tf.autograph.experimental.do_not_convert
        def set_batch_size(columns: Batch) -> Batch:
            size = slices.replica_batch_size
            return {name: tf.ensure_shape(column, [size, *column.shape[1:]]) for name, column in columns.items()}

        chunk, calls = self._chunk(slices.replica_batch_size, crop, cache)
        dataset = tf.data.Dataset.range(start_step, stop_step, steps_per_read).map(parse, num_parallel_calls=2)
        dataset = dataset.rebatch(chunk).map(decode_chunk, num_parallel_calls=calls)
        dataset = dataset.rebatch(slices.replica_batch_size, drop_remainder=True).map(set_batch_size)
        options = tf.data.Options()
        options.deterministic = True
        options.autotune.enabled = False  # nothing here is tunable, and its thread can delay the end of a run
        return dataset.prefetch(_PREFETCHED_STEPS * slices.num_local_replicas).with_options(options)

    def _chunk(self, batch_size: int, crop: Crop, cache: PixelCache | None) -> tuple[int, int]:
        """Returns how many images to decode per call, and the number of parallel calls."""
        smallest = _SMALLEST_CACHED_CHUNK if cache else 1
        chunk = int(np.clip(_BYTES_PER_CHUNK // max(1.0, self._split.length.mean()), smallest, _LARGEST_CHUNK))
        if crop.min_area == 1 and self._first_image_has_size(crop.size):
            # Assembling a batch from chunks would cost a tenth of decoding images of 256x256.
            whole = max(size for size in range(1, _LARGEST_GRAPH + 1) if batch_size % size == 0)
            if whole >= chunk:
                return whole, max(3, -(-2 * usable_cores() // whole) + 1)
        return chunk, 2 * usable_cores()

    def _first_image_has_size(self, size: int) -> bool:
        """Returns whether the images probably have this size already. Others are decoded correctly too."""
        if self._records.shards.are_remote:  # reading one record would fetch many
            return False
        try:
            columns = parse_records(tf.constant(self.read(np.array([0]))), self._split)
        except (ConvoyError, tf.errors.OpError):  # reported when the record is read for training
            return False
        return bool(columns["format"][0] != b"raw" and columns["height"][0] == columns["width"][0] == size)
