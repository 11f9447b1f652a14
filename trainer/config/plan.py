"""The plan of a run, derived from its config, dataset and devices: batch sizes, and durations in steps."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_collections

from convoy.core.errors import UsageError
from convoy.core.registry import Found
from convoy.core.text import joined
from convoy.trainer.config.checks import FINITE_NON_NEGATIVE, check, check_range
from convoy.trainer.config.extension import length_at, spans
from convoy.trainer.config.schedules import SCHEDULES, Schedule, check_schedule, learning_rate, scaled_peak
from convoy.trainer.config.virtual_replicas import possible_virtual_replicas

# Fields that the first start of a run sets according to its hardware and later starts keep, with the value that
# leaves the choice to Convoy.
AUTOMATIC = {"virtual_replicas": 0, "precision": "auto"}


@dataclass(frozen=True)
class Plan:
    """Batch sizes, durations in steps and the peak learning rate of a run.

    Attributes:
      num_images: images of the training split.
      replicas: number of devices, R.
      virtual_replicas: number of virtual replicas, V.
      global_batch_size: images per step.
      replica_batch_size: images per step and device.
      virtual_batch_size: images per virtual replica, the batch that batch normalization sees.
      steps_per_epoch: may be fractional; batches cross the end of an epoch.
      total_steps: length of the run.
      warmup_steps: steps until the peak learning rate.
      eval_every_steps: steps between evaluations.
      checkpoint_every_steps: steps between checkpoints.
      log_every_steps: steps between log lines.
      histogram_every_steps: steps between histograms of the weights; 0: no histograms.
      freeze_steps: first steps, which train only the model's head.
      peak_learning_rate: peak rate after scaling with the global batch.
      weight_decay: of the optimizer, from `weight_decay_per_run` if that is set.
      schedule: the schedule of the learning rate.
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
    weight_decay: float
    schedule: Found[Schedule] = dataclasses.field(
        default_factory=lambda: SCHEDULES.find("constant"), repr=False, compare=False
    )

    def as_dict(self) -> dict[str, Any]:
        """Returns the numbers by name."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.repr}


def duration_in_steps(
    config: Mapping[str, Any], name: str, *, images_per_step: int, num_images: int, section: str = ""
) -> int:
    """Returns a duration in steps, rounded to the nearest, at least 1 if it is set.

    Args:
      config: contains `NAME`, `NAME_steps`, `NAME_epochs` and `NAME_images`; at most one is above 0.
      name: name of the duration.
      images_per_step: the global batch size.
      num_images: images per epoch.
      section: prefix of the name in the complete config, such as `schedule.`, for error messages.

    Returns:
      0 if none is set.

    Raises:
      UsageError: several are set, or one is negative.
    """
    in_steps = {
        name: 1.0,
        f"{name}_steps": 1.0,
        f"{name}_epochs": num_images / images_per_step,
        f"{name}_images": 1.0 / images_per_step,
    }
    for field in in_steps:
        check_range(f"{section}{field}", config[field], FINITE_NON_NEGATIVE)
    given = {field: config[field] for field in in_steps if config[field]}
    if len(given) > 1:
        listed = " and ".join(f"config.{section}{field}={value}" for field, value in given.items())
        raise UsageError(f"{listed} set the same duration: set all but one of them to 0.")
    return sum(max(1, round(value * in_steps[field])) for field, value in given.items())


def total_steps(config: Mapping[str, Any], num_images: int) -> int:
    """Returns the number of steps of a complete run on `num_images` training images."""
    return config["steps"] or max(1, math.ceil(config["epochs"] * num_images / config["batch_size"]))


def learning_rate_of(config: ml_collections.ConfigDict, plan: Plan, step: int) -> float:
    """Returns the learning rate of a step of a run, without rollbacks."""
    return learning_rate(
        plan.schedule,
        step,
        total_steps=length_at(config, plan.total_steps, step),
        peak=plan.peak_learning_rate,
        warmup_steps=plan.warmup_steps,
        fields=config.schedule,
    )


def with_recorded_choices(config: ml_collections.ConfigDict, recorded: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Returns a copy of `config` with the `AUTOMATIC` fields and the changes of length and virtual replicas so far.

    The number of virtual replicas that the run began with also means the present one: commands and recipes keep it.
    """
    config = config.copy_and_resolve_references()
    first = recorded.get("earlier_virtual_replicas", {}).get("numbers", ())[:1]
    for field, automatic in AUTOMATIC.items():
        if config[field] == automatic or (field == "virtual_replicas" and config[field] in first):
            config[field] = recorded[field]
    for section in ("extended", "earlier_virtual_replicas"):
        if not config[section].steps:  # earlier versions recorded none
            config[section].update({name: tuple(values) for name, values in recorded.get(section, {}).items()})
    return config


def resolve(config: ml_collections.ConfigDict, *, num_images: int, replicas: int, resumes: bool = False) -> Plan:
    """Checks a config and returns the plan of the run.

    Args:
      config: a complete config.
      num_images: images of the training split, 1 or more.
      replicas: number of devices in all processes, R.
      resumes: whether the run has begun, so that only `--virtual_replicas` changes their number.

    Raises:
      UsageError: a value is out of range, batch, virtual replicas and devices do not divide evenly, or a user's
        schedule breaks its contract.
    """
    check(config)
    batch = config.batch_size
    virtual = config.virtual_replicas or replicas
    if virtual % replicas:
        allowed = [str(r) for r in range(1, virtual + 1) if virtual % r == 0]
        fix = "start a new run with another config.virtual_replicas"
        if resumes and replicas in possible_virtual_replicas(config):
            fix = f"continue with --virtual_replicas={replicas}, which changes the weights from this step on"
        raise UsageError(
            f"virtual_replicas={virtual} is not divisible by {replicas} devices: use {joined(allowed, 'or')} "
            f"device{'s' if virtual > 1 else ''}, or {fix}."
        )
    if batch % virtual:
        below, above = batch // virtual * virtual, (batch // virtual + 1) * virtual
        raise UsageError(
            f"config.batch_size={batch} is not divisible by virtual_replicas={virtual}: "
            f"set config.batch_size to {f'{below} or ' if below else ''}{above}."
        )
    if (config.mix.mixup or config.mix.cutmix) and batch == virtual:
        raise UsageError(
            f"config.batch_size={batch} gives each of virtual_replicas={virtual} one image, and mixing needs two: "
            f"set config.batch_size to {2 * batch}, or config.mix.mixup and config.mix.cutmix to 0."
        )
    convert = {"images_per_step": batch, "num_images": num_images}
    steps_per_epoch = num_images / batch
    epoch_steps = max(1, round(steps_per_epoch))
    eval_every = duration_in_steps(config, "eval_every", **convert) or epoch_steps
    steps = total_steps(config, num_images)
    schedule = config.schedule
    peak = scaled_peak(
        config.optimizer.learning_rate,
        scaling=schedule.scaling,
        batch_size=batch,
        reference_batch_size=schedule.reference_batch_size,
    )
    plan = Plan(
        num_images=num_images,
        replicas=replicas,
        virtual_replicas=virtual,
        global_batch_size=batch,
        replica_batch_size=batch // replicas,
        virtual_batch_size=batch // virtual,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps,
        warmup_steps=duration_in_steps(schedule, "warmup", **convert, section="schedule."),
        eval_every_steps=eval_every,
        checkpoint_every_steps=duration_in_steps(config, "checkpoint_every", **convert) or eval_every,
        log_every_steps=duration_in_steps(config, "log_every", **convert) or 20,
        histogram_every_steps=duration_in_steps(config, "histogram_every", **convert),
        freeze_steps=duration_in_steps(config.model, "freeze", **convert, section="model."),
        peak_learning_rate=peak,
        weight_decay=_weight_decay(config.optimizer, peak, spans(config, steps)[0].length),
        schedule=SCHEDULES.find(schedule.name),
    )
    check_schedule(lambda step: learning_rate_of(config, plan, step), plan.schedule, plan.total_steps)
    return plan


def _weight_decay(optimizer: Mapping[str, Any], peak: float, steps: int) -> float:
    """Returns the weight decay of a run of so many steps; of an extended run, those it was started with.

    Per run: AdamW averages over about 1 / (learning rate * decay) steps, best a fixed share of the run (Wang and
    Aitchison 2024, "How to set AdamW's weight decay as you scale model and dataset size").
    """
    per_run = optimizer["weight_decay_per_run"]
    return per_run / (peak * steps) if per_run else optimizer["weight_decay"]
