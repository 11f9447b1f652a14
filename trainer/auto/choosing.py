"""Finds the recipe of a run with `--config=auto`: that of its earlier starts, or a new one in RUN/recipe.py.

    config, recipe = auto_config(Request(data="data", workdir="run", devices="auto"), show)

The first start examines the data, with a time budget measures the speed, chooses, and writes RUN/recipe.py. Later
starts use that file, as it is. Of several workers the chief chooses, and the others wait for the file. The examination
uses no TensorFlow, and the speed is measured in another process: the run is the same as one with the file.
"""

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_collections

from convoy.core.cluster import Cluster
from convoy.core.devices import parse_devices
from convoy.core.errors import DataError, UsageError
from convoy.core.files import write_whole
from convoy.core.memory import available_memory
from convoy.core.remote import download
from convoy.core.text import counted
from convoy.core.user_code import UserCode, code_of
from convoy.input_pipeline.dataset.folds import make_folds
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import Data, open_dataset
from convoy.trainer import config as configs
from convoy.trainer.auto.facts import DataFacts, examine
from convoy.trainer.auto.recipe_text import config_of, recipe_text
from convoy.trainer.auto.rules import Choice, Machine, choose
from convoy.trainer.cluster.strategy import count_devices
from convoy.trainer.finders.batch_size import try_batch
from convoy.trainer.run.backup import backup_target
from convoy.trainer.run.directory import RunDirectory

Show = Callable[[str, list[Choice]], None]  # called with a headline and the choices

_PROBES = 3  # image sizes whose speed is measured
_POLL_SECONDS = 0.2
_STEPS_PER_DOUBLING = 2  # of speeds that make a difference
_CLOSE = 1.05  # a speed within 5 % below such a step counts as it
_MOST_MEMORY = 2**36  # more makes no difference

_logger = logging.getLogger("convoy")


@dataclass(frozen=True)
class Request:
    """What a run with `--config=auto` is started with.

    Attributes:
      data: the dataset, as in `open_dataset`.
      workdir: the run directory; None to choose only, for `--print_config`.
      devices: as in `--devices`.
      strategy_name: one of `devices.STRATEGIES`.
      record_format: what is known about the records of other tools.
      cluster: the workers; None for a single process.
      folds: of a cross-validation, or 0.
      max_hours: the time budget; 0 for none.
      given: values of config fields that the user sets, by dotted name.
      backup: as in `loop.train`; it may have the recipe.
      startup_seconds: how long to wait for the chief.
    """

    data: Data
    workdir: str | None
    devices: str = "auto"
    strategy_name: str = "auto"
    record_format: RecordFormat | None = None
    cluster: Cluster | None = None
    folds: int = 0
    max_hours: float = 0.0
    given: Mapping[str, Any] = field(default_factory=dict)
    backup: str = ""
    startup_seconds: float = 300.0


def auto_config(request: Request, show: Show) -> tuple[ml_collections.ConfigDict, UserCode | None]:
    """Returns the config of a run, and the recipe that it is from; None without a run directory.

    Args:
      request: what the run is started with.
      show: called with the choices, if this process makes them.

    Raises:
      UsageError: the run in `workdir` was started with another recipe, or the speed cannot be measured.
      DataError: the data cannot be used, or the recipe not be written or found.
    """
    run = RunDirectory(request.workdir) if request.workdir else None
    if run and run.recipe.is_file():
        _logger.info(
            "%s: chosen at an earlier start, used as it is. To choose again, pass another --workdir.", run.recipe
        )
        return _from_file(run.recipe, request)
    if run:
        run.check(folds=request.folds)
        _check_new(run)
        if backup := backup_target(request.backup):
            with contextlib.suppress(FileNotFoundError):
                run.path.mkdir(parents=True, exist_ok=True)
                download(backup / run.recipe.name, run.recipe)
                _logger.info("%s: restored from %s, used as it is.", run.recipe, backup)
                return _from_file(run.recipe, request)
        if request.cluster and not request.cluster.is_chief:
            _wait_for(run.recipe, request)
            return _from_file(run.recipe, request)
    dataset = open_dataset(request.data, request.record_format)
    if request.folds:
        folds = make_folds(dataset, request.folds)
        folds.check()
        dataset = folds.without(1)
    facts = examine(dataset)
    about = f"{counted(facts.images, 'training image')} of {counted(len(facts.class_names), 'class', 'classes')}"
    choices, measured = _choose(facts, request)
    show(f"--config=auto: {about}; {measured}", choices)
    config = config_of(choices)
    configs.check(config)
    if not run:
        return config, None
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        write_whole(run.recipe, recipe_text(choices, f"{about}; {measured}").encode())
    except OSError as error:
        raise DataError(f"{run.recipe}: cannot be written ({error.strerror}). Pass a writable --workdir.") from None
    return _from_file(run.recipe, request)


def rounded_speed(images_per_second: float) -> float:
    """Returns a speed as a power of the square root of two: the next lower one, or the next higher one within 5 %.

    So most measurements on machines of one kind lead to the same choice.
    """
    return 2.0 ** (math.floor(_STEPS_PER_DOUBLING * math.log2(_CLOSE * images_per_second)) / _STEPS_PER_DOUBLING)


def _choose(facts: DataFacts, request: Request) -> tuple[list[Choice], str]:
    """Returns the choices, and the machine in words."""
    kind, devices = count_devices(parse_devices(request.devices))
    workers = request.cluster.num_workers if request.cluster else 1
    memory = 2 ** int(math.log2(max(1, min(available_memory(), _MOST_MEMORY)))) if kind == "CPU" else 0
    budget = 3600 * request.max_hours / max(1, request.folds)
    speeds: dict[int, float] = {}
    machine = Machine(kind, devices * workers, memory, speeds)
    text = counted(machine.replicas, "GPU" if kind == "GPU" else "CPU device")
    choices = choose(facts, machine, budget, request.given)
    if not budget or {"epochs", "steps"} & {name for name, value in request.given.items() if value}:
        return choices, text
    if request.cluster:
        raise UsageError(
            f"--config=auto --max_hours={request.max_hours:g}: the speed of {workers} workers cannot be measured "
            "before they train together. Omit --max_hours at the first start, or pass --config.epochs=EPOCHS."
        )
    if not isinstance(request.data, str | os.PathLike):
        raise UsageError(
            f"config='auto', max_hours={request.max_hours:g}: the speed of reading objects of this process cannot be "
            "measured in another. Pass a dataset directory or the name of a source, or epochs."
        )
    for _ in range(_PROBES):
        side = config_of(choices).image_size
        if side in speeds:
            break
        measured = _speed(config_of(choices), request)
        speeds[side] = rounded_speed(measured)
        text += f", {measured:,.0f} images/s at {side} pixels (counted as {speeds[side]:,.0f})"
        choices = choose(facts, machine, budget, request.given)
    return choices, text


def _speed(config: ml_collections.ConfigDict, request: Request) -> float:
    """Returns the images per second of a few training steps."""
    attempt, scale = try_batch(
        config,
        str(request.data),
        devices=request.devices,
        strategy_name=request.strategy_name,
        record_format=request.record_format,
    )
    if not attempt.fits:
        raise UsageError(
            f"--config=auto: batches of {config.batch_size} images of {config.image_size} pixels do not fit into "
            f"memory. Pass --config.batch_size={max(1, config.batch_size // 2)}."
        )
    return scale.global_batch(attempt.size) / attempt.step_seconds


def _check_new(run: RunDirectory) -> None:
    """Raises a UsageError if a run has begun without RUN/recipe.py."""
    begun = run.checkpoints.is_dir() and any(run.checkpoints.glob("step-*.npz"))
    if begun or run.fold(1).is_dir():
        raise UsageError(
            f"--config=auto: the run in --workdir={run.path} has begun without {run.recipe.name}, with another "
            "recipe. Pass the config that it was started with, or another --workdir."
        )


def _wait_for(recipe: Path, request: Request) -> None:
    """Waits until this host sees the recipe that the chief writes."""
    deadline = time.monotonic() + request.startup_seconds
    while not recipe.is_file():
        if time.monotonic() >= deadline:
            raise DataError(
                f"{recipe}: not here after {request.startup_seconds:g} s (--startup_timeout). The chief writes it for "
                "--config=auto. All workers must share one --workdir."
            )
        time.sleep(_POLL_SECONDS)


def _from_file(recipe: Path, request: Request) -> tuple[ml_collections.ConfigDict, UserCode | None]:
    if recipe.stat().st_uid not in (os.getuid(), 0):
        raise UsageError(f"{recipe} belongs to another user. Read it, and pass --config={recipe} if you trust it.")
    config = configs.configured(str(recipe), request.given)
    return config, code_of(recipe)
