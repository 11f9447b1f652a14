"""A run's own step on its own images, from its initial weights and outside any run directory: what finders try.

trial = prepare_trial(config, data="data", devices=parse_devices("auto"))
with contextlib.closing(trial.batches()) as batches:
    result = trial.step(next(batches), learning_rate=0.1)
"""

from collections.abc import Generator
from dataclasses import dataclass

import ml_collections

from convoy.core.devices import Devices
from convoy.input_pipeline.reading.reader import Batch
from convoy.trainer import config as configs
from convoy.trainer.cluster.strategy import make_strategy, set_cpu_threads
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.config import Plan
from convoy.trainer.session.prepare import open_training_data
from convoy.trainer.session.runtime import Runtime, make_runtime, make_train_step
from convoy.trainer.session.training_input import TrainingInput
from convoy.trainer.step.step import TrainStep

STEPS = 100  # of a trial at most


@dataclass(frozen=True)
class Trial:
    """A step that is ready, with the images it would train on.

    Attributes:
      plan: of the run it stands for, which is at least STEPS long.
      runtime: the model with its initial weights.
      step: changes those weights, and nothing that lasts.
      training_input: reads, decodes and augments as the run does.
    """

    plan: Plan
    runtime: Runtime
    step: TrainStep
    training_input: TrainingInput

    def batches(self) -> Generator[Batch, None, None]:
        """Yields the run's batches from its first on. To be closed."""
        return self.training_input.batches(0)


def prepare_trial(
    config: ml_collections.ConfigDict,
    *,
    data: str,
    devices: Devices,
    strategy_name: str = "auto",
    virtual_batch_size: int = 0,
) -> Trial:
    """Prepares the step of a run in one process: on images of its final size, with all weights trained.

    Args:
      config: complete.
      data: the dataset directory, with a split `train`.
      devices: what to train on.
      strategy_name: one of `devices.STRATEGIES`.
      virtual_batch_size: images of a virtual replica, in place of what `config.batch_size` comes to; 0 for that.

    Raises:
      UsageError: config, devices and dataset do not fit together.
      DataError: the dataset cannot be used.
    """
    dataset = open_training_data(config, data)
    if config.deterministic:
        set_cpu_threads(config.deterministic_threads)
    strategy = make_strategy(devices, strategy_name)
    replicas, split = strategy.num_replicas_in_sync, dataset.split("train")
    config = config.copy_and_resolve_references()
    # What follows from a step's place in the run is not defined beyond its end.
    config.steps = max(STEPS, configs.total_steps(config, split.num_images))
    # The run as it is at its end.
    for name in ("sizes", "ends"):
        config.progressive[name] = type(config.progressive[name])()
    config.model.update({name: 0 for name in config.model if name.startswith("freeze")})
    if virtual_batch_size:
        config.batch_size = virtual_batch_size * (config.virtual_replicas or replicas)
    plan = configs.resolve(config, num_images=split.num_images, replicas=replicas)
    runtime = make_runtime(config, strategy, num_classes=dataset.num_classes)
    step = make_train_step(config, plan, runtime)
    return Trial(plan, runtime, step, TrainingInput(split, config, plan, strategy, WorkerGroup(None)))
