"""A run's training step and input, with initial weights and without a run directory.

trial = prepare_trial(config, data="data", devices=parse_devices("auto"))
with contextlib.closing(trial.training_input.batches(0)) as batches:
    result = trial.step(next(batches), learning_rate=0.1)
"""

from dataclasses import dataclass

import ml_collections

from convoy.core.devices import Devices
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.trainer import config as configs
from convoy.trainer.cluster.strategy import make_strategy, set_cpu_threads
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.config import Plan
from convoy.trainer.session.objective import Objective, config_for, training_objective
from convoy.trainer.session.prepare import open_training_data
from convoy.trainer.session.runtime import Runtime, check_augmentation, make_runtime, make_train_step
from convoy.trainer.session.training_input import TrainingInput
from convoy.trainer.step.step import TrainStep

STEPS = 100  # maximum length of a trial


@dataclass(frozen=True)
class Trial:
    """A training step and its input.

    Attributes:
      plan: plan of the run, at least STEPS steps.
      runtime: model with its initial weights.
      objective: loss and metrics.
      step: training step; it changes only these weights.
      training_input: input that reads, decodes and augments as in the run.
    """

    plan: Plan
    runtime: Runtime
    objective: Objective
    step: TrainStep
    training_input: TrainingInput


def prepare_trial(
    config: ml_collections.ConfigDict,
    *,
    data: str,
    devices: Devices,
    strategy_name: str = "auto",
    virtual_batch_size: int = 0,
    record_format: RecordFormat | None = None,
) -> Trial:
    """Prepares the step of a run in one process, at its final resolution and with all weights trained.

    Args:
      config: complete config.
      data: dataset directory with a split `train`.
      devices: devices to train on.
      strategy_name: one of `devices.STRATEGIES`.
      virtual_batch_size: images per virtual replica; 0 to use `config.batch_size`.
      record_format: what is known about the records of other tools.

    Raises:
      UsageError: config, devices and dataset do not fit together.
      DataError: the dataset cannot be used.
    """
    dataset = open_training_data(config, data, record_format)
    config = config_for(config, dataset)
    if config.deterministic:
        set_cpu_threads(config.deterministic_threads)
    strategy = make_strategy(devices, strategy_name)
    check_augmentation(config)
    replicas, split = strategy.num_replicas_in_sync, dataset.split("train")
    config = config.copy_and_resolve_references()
    # Schedules are not defined beyond the end of the run.
    config.steps = max(STEPS, configs.total_steps(config, split.num_images))
    # The configuration at the end of the run.
    for name in ("sizes", "ends"):
        config.progressive[name] = type(config.progressive[name])()
    config.model.update({name: 0 for name in config.model if name.startswith("freeze")})
    if virtual_batch_size:
        config.batch_size = virtual_batch_size * (config.virtual_replicas or replicas)
    plan = configs.resolve(config, num_images=split.num_images, replicas=replicas)
    config.optimizer.weight_decay = plan.weight_decay
    objective = training_objective(config, dataset)
    runtime = make_runtime(config, strategy, num_classes=dataset.num_classes, class_names=dataset.class_names)
    step = make_train_step(config, plan, runtime, objective)
    return Trial(plan, runtime, objective, step, TrainingInput(split, config, plan, strategy, WorkerGroup(None)))
