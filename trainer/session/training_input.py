"""The training stream of one worker: distributed batches from any step on.

training_input = TrainingInput(dataset.split("train"), config, plan, strategy, worker_group)
for batch in training_input.batches(start_step=0):
    ...
training_input.substituted(step=1)        # substitutions for corrupt records in that step's batch

With progressive resizing (`convoy.trainer.config.resolution`), each image size has its own reader, which continues in
the order where the previous one stopped.
"""

import contextlib
from collections.abc import Callable, Generator

import ml_collections
import numpy as np
import tensorflow as tf

from convoy.input_pipeline.augment.pipeline import parse_pipeline
from convoy.input_pipeline.dataset.open import Split
from convoy.input_pipeline.reading.cache import PixelCache, make_cache
from convoy.input_pipeline.reading.decode import Crop
from convoy.input_pipeline.reading.reader import Batch, Reader
from convoy.input_pipeline.reading.sampler import Sampler
from convoy.input_pipeline.reading.substitutes import Substitution
from convoy.input_pipeline.reading.windows import make_stripes
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.config import Plan, resolution
from convoy.trainer.session.runtime import batch_slice
from convoy.trainer.tf_compat.internals import iterate


class TrainingInput:
    """One worker's part of the training stream."""

    def __init__(
        self,
        split: Split,
        config: ml_collections.ConfigDict,
        plan: Plan,
        strategy: tf.distribute.Strategy,
        worker_group: WorkerGroup,
        disk_cache: Callable[[Crop], PixelCache | None] | None = None,
    ):
        """Opens the shards.

        Args:
          split: what to train on.
          config: complete.
          plan: the plan of the run.
          strategy: the devices.
          worker_group: the workers.
          disk_cache: opens the cache of `config.cache=disk` for a way to crop; without it there is none.

        Raises:
          DataError: a shard cannot be opened.
        """
        self._split = split
        self._config = config
        self._plan = plan
        self._strategy = strategy
        self._worker_group = worker_group
        self._disk_cache = disk_cache
        self._seed = config.seed
        self._slice = batch_slice(strategy, worker_group.rank, plan.global_batch_size)
        stripes = None
        if config.shuffle == "striped":
            stripes = make_stripes(
                split,
                virtual_replicas=(*config.earlier_virtual_replicas.numbers, plan.virtual_replicas)[0],
                global_batch_size=plan.global_batch_size,
                window_size=config.shuffle_window_size,
            )
        self._sampler = Sampler(split, stripes=stripes, sampling=config.sampling)
        self._readers: dict[int, Reader] = {}  # by image size; only the last one is open
        self._open(config.image_size)

    def batches(self, start_step: int) -> Generator[Batch, None, None]:
        """Yields the batches from `start_step` on, distributed over the devices. The caller must close the generator.

        Args:
          start_step: number of steps already done.

        Raises:
          DataError: a record cannot be used.
        """
        step = start_step
        while True:
            stage = self._stage(step)
            reader = self._open(stage.size)
            dataset = self._strategy.distribute_datasets_from_function(
                lambda context, reader=reader, step=step: reader.training(self._slice, seed=self._seed, start_step=step)
            )
            try:
                with contextlib.closing(iterate(dataset)) as batches:
                    for batch in batches:
                        yield batch
                        step += 1
                        if step == stage.end_step:
                            break
            except tf.errors.OpError:
                # A decoding error ends tf.data's stream. Start a new one if the record can be substituted.
                if not reader.recover(self._slice, step, seed=self._seed):
                    if cause := reader.explain():
                        raise cause from None
                    raise

    def images(self, step: int) -> list[int]:
        """Returns the images of the global batch of a step, counted from 1, by index in the training split."""
        size = self._slice.global_batch_size
        reader = self._readers[self._stage(step - 1).size]
        return reader.images_at(np.arange((step - 1) * size, step * size), seed=self._seed).tolist()

    def substituted(self, step: int) -> list[Substitution]:
        """Returns the substitutions in this worker's batch of a step, counted from 1."""
        reader = self._readers[self._stage(step - 1).size]
        return reader.substituted(self._slice.positions(step - 1), seed=self._seed)

    def _stage(self, step: int) -> resolution.ResolutionStage:
        return resolution.stage_at(self._config, self._plan.total_steps, step)

    def _open(self, size: int) -> Reader:
        """Returns the reader for an image size and closes the others."""
        if size != next(reversed(self._readers), None):
            for reader in self._readers.values():
                reader.close()
            self._readers.pop(size, None)
            self._readers[size] = self._new_reader(size)
        return self._readers[size]

    def _new_reader(self, size: int) -> Reader:
        config = self._config
        pipeline = parse_pipeline(config.augment.ops, image_size=config.image_size)
        crop = Crop(size, *pipeline.scale, **resolution.crop_settings(config))
        # Each size has its own cache. One in memory used for an epoch or less would be filled but never read.
        steps = sum(
            s.end_step - s.first_step for s in resolution.stages(config, self._plan.total_steps) if s.size == size
        )
        cache: PixelCache | None
        if config.cache == "disk":
            cache = self._disk_cache(crop) if self._disk_cache else None
        else:
            cache = make_cache(
                config.cache if steps > self._plan.steps_per_epoch else "none",
                num_images=self._split.num_images,
                random_crops=pipeline.crops,
                processes=self._worker_group.processes_here,
            )
        return Reader(
            self._split,
            crop,
            draws=pipeline.draws,
            sampler=self._sampler,
            on_corrupt=config.on_corrupt,
            cache=cache,
            operations=pipeline.host,
        )
