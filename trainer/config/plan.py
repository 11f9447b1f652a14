"""What follows from a config, a dataset and a number of devices: batch sizes and durations in steps."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import ml_collections

from convoy.core.errors import UsageError
from convoy.trainer.config.checks import check, require
from convoy.trainer.config.schedules import scaled_peak

# What a run's first start chooses by its hardware, and every later start keeps: the value that leaves it open.
AUTOMATIC = {"virtual_replicas": 0, "precision": "auto"}


@dataclass(frozen=True)
class Plan:
    """What follows from a config, a dataset and a number of replicas.

    Attributes:
      num_images: images of the training split.
      replicas: devices, R.
      virtual_replicas: V.
      global_batch_size: images of a step.
      replica_batch_size: images that a device gets in a step.
      virtual_batch_size: images of a virtual replica: batch norm's batch.
      steps_per_epoch: may have a fraction; batches cross the end of an epoch.
      total_steps: the run's length.
      warmup_steps: steps until the peak learning rate.
      eval_every_steps: steps between evaluations.
      checkpoint_every_steps: steps between checkpoints.
      log_every_steps: steps between lines.
      histogram_every_steps: steps between histograms of the weights; 0 for none.
      freeze_steps: steps that train the model's head alone.
      peak_learning_rate: after scaling with the global batch.
    """

    num_images: int
    replicas: int
    virtual_replicas: int
    global_batch_size: int
    replica_batch_size: int
    virtual_batch_size: int
    steps_per_epoch: float
    total_steps: int
    warmup_steps: int
    eval_every_steps: int
    checkpoint_every_steps: int
    log_every_steps: int
    histogram_every_steps: int
    freeze_steps: int
    peak_learning_rate: float

    def as_dict(self) -> dict[str, Any]:
        """Returns the attributes by name."""
        return asdict(self)


def duration_in_steps(
    config: Mapping[str, Any], name: str, *, images_per_step: int, num_images: int, section: str = ""
) -> int:
    """Returns a duration in steps, rounded to the nearest, at least 1 where it is given at all.

    Args:
      config: holds `NAME`, `NAME_steps`, `NAME_epochs` and `NAME_images`; at most one above 0.
      name: of the duration.
      images_per_step: the global batch size.
      num_images: images of an epoch.
      section: what stands before the name in the whole config, for the text of an error: `schedule.`.

    Returns:
      0 where none is given.

    Raises:
      UsageError: several are given, or one is negative.
    """
    in_steps = {
        name: 1.0,
        f"{name}_steps": 1.0,
        f"{name}_epochs": num_images / images_per_step,
        f"{name}_images": 1.0 / images_per_step,
    }
    for field in in_steps:
        require(0 <= config[field] < math.inf, f"{section}{field}", config[field], "give 0 or more")
    given = {field: config[field] for field in in_steps if config[field]}
    if len(given) > 1:
        listed = " and ".join(f"config.{section}{field}={value}" for field, value in given.items())
        raise UsageError(f"{listed} say the same thing twice; set all but one of them to 0.")
    return sum(max(1, round(value * in_steps[field])) for field, value in given.items())


def total_steps(config: Mapping[str, Any], num_images: int) -> int:
    """Returns the steps of a whole run on so many training images."""
    return config["steps"] or max(1, math.ceil(config["epochs"] * num_images / config["batch_size"]))


def with_choices_of(config: ml_collections.ConfigDict, chosen: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Returns a copy of `config` in which what is left to Convoy (`AUTOMATIC`) is as it was chosen before."""
    config = config.copy_and_resolve_references()
    for field, automatic in AUTOMATIC.items():
        if config[field] == automatic:
            config[field] = chosen[field]
    return config


def resolve(config: ml_collections.ConfigDict, *, num_images: int, replicas: int) -> Plan:
    """Checks a config and returns what follows from it.

    Args:
      config: complete.
      num_images: images of the training split, 1 or more.
      replicas: devices of all processes, R.

    Raises:
      UsageError: a value is out of range, or batch, virtual replicas and devices do not divide.
    """
    check(config)
    batch = config.batch_size
    virtual = config.virtual_replicas or replicas
    if virtual % replicas:
        allowed = [str(r) for r in range(1, virtual + 1) if virtual % r == 0]
        raise UsageError(
            f"virtual_replicas={virtual} does not divide over {replicas} devices: use {_one_of(allowed)} devices, "
            "or start a new run with another config.virtual_replicas."
        )
    if batch % virtual:
        below, above = batch // virtual * virtual, (batch // virtual + 1) * virtual
        raise UsageError(
            f"config.batch_size={batch} does not divide into virtual_replicas={virtual} equal parts: "
            f"use {f'{below} or ' if below else ''}{above}."
        )
    if (config.mix.mixup or config.mix.cutmix) and batch == virtual:
        raise UsageError(
            f"config.mix mixes the images of a virtual replica, and of config.batch_size={batch} each of "
            f"virtual_replicas={virtual} has one: use {2 * batch}, or set config.mix.mixup and config.mix.cutmix to 0."
        )
    convert = {"images_per_step": batch, "num_images": num_images}
    steps_per_epoch = num_images / batch
    epoch_steps = max(1, round(steps_per_epoch))
    eval_every = duration_in_steps(config, "eval_every", **convert) or epoch_steps
    schedule = config.schedule
    return Plan(
        num_images=num_images,
        replicas=replicas,
        virtual_replicas=virtual,
        global_batch_size=batch,
        replica_batch_size=batch // replicas,
        virtual_batch_size=batch // virtual,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps(config, num_images),
        warmup_steps=duration_in_steps(schedule, "warmup", **convert, section="schedule."),
        eval_every_steps=eval_every,
        checkpoint_every_steps=duration_in_steps(config, "checkpoint_every", **convert) or eval_every,
        log_every_steps=duration_in_steps(config, "log_every", **convert) or 20,
        histogram_every_steps=duration_in_steps(config, "histogram_every", **convert),
        freeze_steps=duration_in_steps(config.model, "freeze", **convert, section="model."),
        peak_learning_rate=scaled_peak(
            config.optimizer.learning_rate,
            scaling=schedule.scaling,
            batch_size=batch,
            reference_batch_size=schedule.reference_batch_size,
        ),
    )


def _one_of(values: list[str]) -> str:
    return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} or {values[-1]}"
