"""Opens a run, finished or still training, for evaluation, prediction or export.

trained = open_run("run", parse_devices("auto"), checkpoint="best")
trained.runtime.model_for_size(trained.image_size)

A cross-validation, and several runs (`open_runs`), are opened as an ensemble: one run with the others as `others`.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_collections
import numpy as np
import tensorflow as tf

from convoy.core.devices import Devices
from convoy.core.errors import DataError, UsageError
from convoy.core.run_layout import RunLayout
from convoy.core.text import counted, is_count
from convoy.input_pipeline.reading.decode import Crop
from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from convoy.trainer.cluster.strategy import make_strategy
from convoy.trainer.config import resolution
from convoy.trainer.models import MODELS, is_from_user
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.run.records import read_json_object
from convoy.trainer.session.kept_code import MODEL, check_trusted, find_kept, kept_name, run_registering
from convoy.trainer.session.objective import Objective, find_objective
from convoy.trainer.session.runtime import Runtime, make_runtime
from convoy.trainer.step.state import TrainState, has_average, without_optimizer


@dataclass(frozen=True)
class TrainedRun:
    """A run's model with trained weights.

    Attributes:
      run: the run directory.
      config: the config that the run was trained with.
      dataset: content of RUN/dataset.json: `directory`, `class_names`, digests.
      runtime: the model on this machine's devices.
      step: step of the weights.
      trust_code: whether the run's code may run although another user owns it.
      others: runs whose probabilities are averaged with those of this one.
    """

    run: RunDirectory
    config: ml_collections.ConfigDict
    dataset: dict[str, Any]
    runtime: Runtime
    step: int
    trust_code: bool = False
    others: "tuple[TrainedRun, ...]" = ()

    @property
    def members(self) -> "tuple[TrainedRun, ...]":
        """All runs whose probabilities are averaged: this one, and the others."""
        return (replace(self, others=()), *self.others)

    @property
    def weights_text(self) -> str:
        """The weights for messages: `the weights of step 40`."""
        if not self.others:
            return f"the weights of step {self.step}"
        return f"the mean of {len(self.members)} models"

    @property
    def class_names(self) -> list[str]:
        """Class names, by label."""
        return self.dataset["class_names"]

    @property
    def image_size(self) -> int:
        """Side of evaluated images, in pixels."""
        return resolution.evaluation_size(self.config)

    @property
    def crop(self) -> Crop:
        """How evaluated images are resized."""
        return Crop(self.image_size, resize=resolution.resize(self.config))

    @property
    def flip_tta(self) -> bool:
        """Whether evaluation averages over each image and its mirror image; of an ensemble, whether any run does."""
        # Missing in runs of earlier versions.
        return any(member.config.get("flip_tta", False) for member in self.members)

    def objective(self) -> Objective:
        """Returns the loss and the metrics that the run was trained with.

        Raises:
          UsageError: there is no such piece any more, or its code is not trusted.
        """
        find = functools.partial(find_kept, self.run, trust_code=self.trust_code)
        return find_objective(self.config, len(self.class_names), find)


def open_run(
    workdir: str,
    devices: Devices,
    *,
    checkpoint: str = "best",
    precision: str = "",
    trust_code: bool = False,
    strategy: tf.distribute.Strategy | None = None,
) -> TrainedRun:
    """Opens a run with the weights of one of its checkpoints, for evaluation only; a cross-validation as an ensemble.

    Args:
      workdir: the run directory.
      devices: the devices to run on.
      checkpoint: `best` (by validation top-1; the last one if nothing was evaluated), `last`, or a step.
      precision: float32, bfloat16 or float16; empty for the run's own.
      trust_code: whether the run's code may run although another user owns it.
      strategy: the strategy over the devices; None to make one.

    Raises:
      UsageError: `checkpoint` has another value, or the code is not trusted.
      DataError: there is no run or no checkpoint in `workdir`, or the checkpoint is damaged.
    """
    run = RunDirectory(workdir)
    step, *steps = chosen_steps(run, checkpoint)
    strategy = strategy or make_strategy(devices)
    if run.folds:
        first, *others = (
            open_run(
                str(run.fold(number)),
                devices,
                checkpoint=str(of_fold),
                precision=precision,
                trust_code=trust_code,
                strategy=strategy,
            )
            for number, of_fold in enumerate((step, *steps), 1)
        )
        return replace(first, run=run, dataset=run.read_dataset(), others=tuple(others))
    config = ml_collections.ConfigDict(run.read_config())
    dataset = run.read_dataset()
    values, _ = CheckpointStore(run.checkpoints).load(step)
    config.precision = precision or config.precision
    to_build = config.copy_and_resolve_references()
    to_build.model.weights = ""  # the checkpoint replaces them
    if is_from_user(config.model.name):
        to_build.model.name = kept_name(run, MODEL, config.model.name)
        if not trust_code:
            check_trusted(run, to_build.model.name, "building the model")
        run_registering(run, MODELS, config.model.name, MODEL)
    runtime = make_runtime(
        to_build,
        strategy,
        num_classes=len(dataset["class_names"]),
        image_sizes=[resolution.evaluation_size(config)],
        evaluates_average=has_average(values),
    )
    restore_state(runtime.state, without_optimizer(values), {"step": step}, run)
    return TrainedRun(run, config, dataset, runtime, step, trust_code)


def open_runs(
    workdirs: Sequence[str], devices: Devices, *, checkpoint: str = "best", trust_code: bool = False
) -> TrainedRun:
    """Opens one or more runs; several as an ensemble, in which every model counts the same.

    Args:
      workdirs: the run directories.
      devices: as in `open_run`.
      checkpoint: as in `open_run`, for each run.
      trust_code: as in `open_run`.

    Raises:
      UsageError: as `open_run`.
      DataError: as `open_run`, or the runs have different classes.
    """
    strategy = make_strategy(devices)
    first, *more = (
        open_run(workdir, devices, checkpoint=checkpoint, trust_code=trust_code, strategy=strategy)
        for workdir in workdirs
    )
    for other in more:
        if other.class_names != first.class_names:
            different = sorted({*first.class_names} ^ {*other.class_names}) or ["their order"]
            raise DataError(
                f"--workdir={other.run.path}: has {counted(len(other.class_names), 'class', 'classes')} and "
                f"{first.run.path} {len(first.class_names)}; different: {different[0]!r}. Pass runs of the same "
                "classes."
            )
    return replace(first, others=(*first.others, *(member for other in more for member in other.members)))


def restore_state(
    state: TrainState, values: Mapping[str, np.ndarray], metadata: Mapping[str, Any], run: RunDirectory
) -> None:
    """Loads a checkpoint of a run into a train state.

    Raises:
      DataError: the checkpoint's variables do not match the model's.
    """
    try:
        state.assign(values, metadata["step"])
    except DataError as error:
        raise DataError(f"checkpoint of step {metadata['step']} in {run.checkpoints}: {error}") from None


def chosen_steps(run: RunDirectory, checkpoint: str) -> list[int]:
    """Returns the step of the checkpoint that `open_run` opens, of each fold; raises its errors about it."""
    for number in range(1, run.folds + 1):
        result = read_json_object(RunLayout(run.fold(number)).result)
        if not result or (result.get("stop") or {}).get("resumable"):
            raise DataError(
                f"--workdir={run.path}: fold {number} of {run.folds} is not trained yet. Rerun its command to finish, "
                f"or pass one fold: --workdir={run.fold(1)}."
            )
    if run.folds:
        return [_chosen_step(RunDirectory(run.fold(number)), checkpoint) for number in range(1, run.folds + 1)]
    return [_chosen_step(run, checkpoint)]


def _chosen_step(run: RunDirectory, checkpoint: str) -> int:
    if not run.path.is_dir():
        raise DataError(f"--workdir={run.path}: no such folder. Pass the --workdir of `convoy train`.")
    store = CheckpointStore(run.checkpoints)
    steps = store.steps()
    if not steps:
        run.read_config()  # raises an error that says so if the folder is not a run directory
        raise DataError(f"--workdir={run.path}: no checkpoint yet. Train it with `convoy train` first.")
    if checkpoint == "last":
        return steps[-1]
    if checkpoint == "best":
        return store.best() or steps[-1]
    if is_count(checkpoint) and int(checkpoint) in steps:
        return int(checkpoint)
    raise UsageError(
        f"--checkpoint={checkpoint}: no such checkpoint in {run.path}. Pass best, last or a step "
        f"({', '.join(map(str, steps))})."
    )
