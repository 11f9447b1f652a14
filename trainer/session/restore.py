"""Opens a run, finished or still training, for evaluation, prediction or export.

trained = open_run("run", parse_devices("auto"), checkpoint="best")
trained.runtime.model_for_size(trained.image_size)
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_collections
import numpy as np

from convoy.core.devices import Devices
from convoy.core.errors import DataError, UsageError
from convoy.core.text import is_count
from convoy.input_pipeline.reading.decode import Crop
from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from convoy.trainer.cluster.strategy import make_strategy
from convoy.trainer.config import resolution
from convoy.trainer.models import MODELS, is_from_user
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.run.task import DEFAULT_THRESHOLD, Decision, Task, task_of
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
      thresholds: with several labels per image, the smallest probability of each class that counts as a label: chosen
        on the validation split at the last evaluation before the checkpoint, else 0.5.
    """

    run: RunDirectory
    config: ml_collections.ConfigDict
    dataset: dict[str, Any]
    runtime: Runtime
    step: int
    trust_code: bool = False
    thresholds: Sequence[float] | None = None

    @property
    def task(self) -> Task:
        """What the run predicts."""
        return task_of(self.dataset)

    @property
    def decision(self) -> Decision:
        """How probabilities become labels."""
        return Decision(self.class_names, self.thresholds, self.dataset.get("label_delimiter", ""))

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
        """Whether evaluation averages over each image and its mirror image."""
        return self.config.get("flip_tta", False)  # missing in runs of earlier versions

    def objective(self) -> Objective:
        """Returns the loss and the metrics that the run was trained with.

        Raises:
          UsageError: there is no such piece any more, or its code is not trusted.
        """
        find = functools.partial(find_kept, self.run, trust_code=self.trust_code)
        return find_objective(self.config, len(self.class_names), find, task=self.task)


def open_run(
    workdir: str, devices: Devices, *, checkpoint: str = "best", precision: str = "", trust_code: bool = False
) -> TrainedRun:
    """Opens a run with the weights of one of its checkpoints, for evaluation only.

    Args:
      workdir: the run directory.
      devices: the devices to run on.
      checkpoint: `best` (by the score on validation, such as top-1; the last one if nothing was evaluated), `last`, or
        a step.
      precision: float32, bfloat16 or float16; empty for the run's own.
      trust_code: whether the run's code may run although another user owns it.

    Raises:
      UsageError: `checkpoint` has another value, or the code is not trusted.
      DataError: there is no run or no checkpoint in `workdir`, or the checkpoint is damaged.
    """
    run = RunDirectory(workdir)
    step = chosen_step(run, checkpoint)
    config = ml_collections.ConfigDict(run.read_config())
    dataset = run.read_dataset()
    values, metadata = CheckpointStore(run.checkpoints).load(step)
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
        make_strategy(devices),
        num_classes=len(dataset["class_names"]),
        image_sizes=[resolution.evaluation_size(config)],
        evaluates_average=has_average(values),
    )
    restore_state(runtime.state, without_optimizer(values), {"step": step}, run)
    thresholds = None
    if task_of(dataset).multi_label:
        default = [DEFAULT_THRESHOLD] * len(dataset["class_names"])
        thresholds = metadata.get("reported", {}).get("thresholds") or default
    return TrainedRun(run, config, dataset, runtime, step, trust_code, thresholds)


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


def chosen_step(run: RunDirectory, checkpoint: str) -> int:
    """Returns the step of the checkpoint that `open_run` opens; raises its errors about it."""
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
        f"--checkpoint={checkpoint}: no such checkpoint. Pass best, last or a step ({', '.join(map(str, steps))})."
    )
