"""What training reads: the reader as a config wants it, its batches from any step on, and what had to be substituted.

Images of each stage's size (`sizes`) come from a reader of their own, which takes up the order where the one before
stopped.

training_input = TrainingInput(dataset.split("train"), config, plan, strategy, peers)
for batch in training_input.batches(start_step=0):
    ...
training_input.substituted(step=1)        # what the chief writes down, once a record
"""

import contextlib
from collections.abc import Generator

import ml_collections
import numpy as np
import tensorflow as tf

from convoy.input_pipeline.augment.pipeline import parse_pipeline
from convoy.input_pipeline.dataset.open import Split
from convoy.input_pipeline.reading.cache import make_cache
from convoy.input_pipeline.reading.decode import Crop
from convoy.input_pipeline.reading.reader import Batch, Reader
from convoy.input_pipeline.reading.substitutes import Substitution
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.config import Plan
from convoy.trainer.config import resolution
from convoy.trainer.session.runtime import slices_of
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
    ):
        """Opens the shards.

        Raises:
          DataError: one cannot be opened.
        """
        self._split = split
        self._config = config
        self._plan = plan
        self._strategy = strategy
        self._worker_group = worker_group
        self._seed = config.seed
        self._slices = slices_of(strategy, worker_group.rank, plan.global_batch_size)
        self._readers: dict[int, Reader] = {}  # by size; only the last one is open
        self._open(config.image_size)

    def batches(self, start_step: int) -> Generator[Batch, None, None]:
        """Yields the batches of the steps from `start_step` on, distributed over the devices. To be closed.

        Raises:
          DataError: a record cannot be used.
        """
        step = start_step
        while True:
            stage = self._stage(step)
            reader = self._open(stage.size)
            dataset = self._strategy.distribute_datasets_from_function(
                lambda context, reader=reader, step=step: reader.training(
                    self._slices, seed=self._seed, start_step=step
                )
            )
            try:
                with contextlib.closing(iterate(dataset)) as batches:
                    for batch in batches:
                        yield batch
                        step += 1
                        if step == stage.end_step:
                            break
            except tf.errors.OpError:
                # What cannot be decoded shows only after it was read, when the stream has ended with it.
                if not reader.recover(self._slices, step, seed=self._seed):
                    if cause := reader.explain():
                        raise cause from None
                    raise

    def images(self, step: int) -> list[int]:
        """Returns the images of all workers' batches that made update number `step`, from 1."""
        size = self._slices.global_batch_size
        reader = self._readers[self._stage(step - 1).size]
        return reader.images_at(np.arange((step - 1) * size, step * size), seed=self._seed).tolist()

    def substituted(self, step: int) -> list[Substitution]:
        """Returns what was substituted in this worker's batch of update number `step`, from 1."""
        reader = self._readers[self._stage(step - 1).size]
        return reader.substituted(self._slices.positions(step - 1), seed=self._seed)

    def _stage(self, step: int) -> resolution.ResolutionStage:
        return resolution.stage_at(self._config, self._plan.total_steps, step)

    def _open(self, size: int) -> Reader:
        """Returns the reader of images of a size, and closes those of others."""
        if size != next(reversed(self._readers), None):
            for reader in self._readers.values():
                reader.close()
            self._readers.pop(size, None)
            self._readers[size] = self._new_reader(size)
        return self._readers[size]

    def _new_reader(self, size: int) -> Reader:
        config = self._config
        line = parse_pipeline(config.augment.ops, image_size=config.image_size)
        # Each size has a cache of its own. One that is in use for an epoch would be filled and never read from.
        steps = sum(
            s.end_step - s.first_step for s in resolution.stages(config, self._plan.total_steps) if s.size == size
        )
        cache = config.cache if steps > self._plan.steps_per_epoch else "none"
        return Reader(
            self._split,
            Crop(size, *line.scale),
            draws=line.draws,
            shuffle=config.shuffle,
            block_size=config.shuffle_block_size,
            sampling=config.sampling,
            on_corrupt=config.on_corrupt,
            cache=make_cache(
                cache,
                num_images=self._split.num_images,
                random_crops=line.crops,
                processes=self._worker_group.processes_here,
            ),
            operations=line.host,
        )
