"""Opens a run, finished or still training, for evaluation, prediction or export.

trained = open_run("run", parse_devices("auto"), checkpoint="best")
trained.runtime.model_for_size(trained.image_size)
open_dataset_of(trained).split("test")

A cross-validation, and several runs (`open_runs`), are opened as an ensemble: one run with the others as `others`.
"""

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_collections
import numpy as np
import tensorflow as tf

from convoy.core.devices import Devices
from convoy.core.errors import DataError, UsageError
from convoy.core.text import counted, models_text, weights_text
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import Data, Dataset, Split
from convoy.input_pipeline.dataset.source import source_name
from convoy.input_pipeline.dataset.storage import dataset_path
from convoy.input_pipeline.reading.decode import Crop
from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from convoy.trainer.checkpoint.mean import load_mean
from convoy.trainer.cluster.strategy import make_strategy
from convoy.trainer.config import resolution
from convoy.trainer.models import MODELS, is_from_user
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.run.records import number_in, read_json_object
from convoy.trainer.run.task import DEFAULT_THRESHOLD, Decision, Task, task_of
from convoy.trainer.run.temperature import softened
from convoy.trainer.session.batch_statistics import (
    NUM_IMAGES,
    layers_to_renew,
    renew_batch_statistics,
    training_pixels,
)
from convoy.trainer.session.chosen_steps import model_folders, steps_by_model
from convoy.trainer.session.kept_code import MODEL, check_trusted, find_kept, kept_name, kept_preset, run_registering
from convoy.trainer.session.objective import Objective, find_objective
from convoy.trainer.session.run_dataset import open_recorded
from convoy.trainer.session.runtime import Runtime, make_runtime
from convoy.trainer.step.state import TrainState, has_average, variable_path

_logger = logging.getLogger("convoy")


@dataclass(frozen=True)
class TrainedRun:
    """A run's model with trained weights.

    Attributes:
      run: the run directory.
      config: the config that the run was trained with.
      dataset: content of RUN/dataset.json: `directory`, `class_names`, digests.
      runtime: the model on this machine's devices.
      steps: step of the checkpoint, or of each checkpoint that the weights are the mean of, ascending.
      trust_code: whether the run's code may run although another user owns it.
      thresholds: with several labels per image, the smallest probability of each class that counts as a label: chosen
        on the validation split at the last evaluation before the checkpoint, else 0.5; their mean for several
        checkpoints or runs.
      temperature: what logits are divided by (`run.temperature`): fitted on the validation split at the same
        evaluation, else by the last one of these weights there; the mean for several checkpoints; None if there is
        none. Each of `others` has its own.
      others: runs whose probabilities are averaged with those of this one.
    """

    run: RunDirectory
    config: ml_collections.ConfigDict
    dataset: dict[str, Any]
    runtime: Runtime
    steps: tuple[int, ...]
    trust_code: bool = False
    thresholds: Sequence[float] | None = None
    temperature: float | None = None
    others: "tuple[TrainedRun, ...]" = ()

    @property
    def members(self) -> "tuple[TrainedRun, ...]":
        """All runs whose probabilities are averaged: this one, and the others."""
        return (replace(self, others=()), *self.others)

    @property
    def weights_text(self) -> str:
        """The weights for messages: `the weights of step 40`."""
        if not self.others:
            return f"the weights of {weights_text(self.step, self.checkpoint)}"
        of_each = f", each the mean of {len(self.steps)} checkpoints" if len(self.steps) > 1 else ""
        return f"the mean of {len(self.members)} models{of_each}"

    @property
    def step(self) -> int:
        """The last step of the weights."""
        return self.steps[-1]

    @property
    def checkpoint(self) -> str:
        """Which checkpoints were used: `mean:3 (steps 80-100)` or `2 models (step 90, step 60)`; empty for one."""
        if self.others:
            return models_text([(member.step, member.checkpoint) for member in self.members])
        first, *others = self.steps
        return f"mean:{len(self.steps)} (steps {first}-{others[-1]})" if others else ""

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
        return Crop(self.image_size, **resolution.crop_settings(self.config))

    @property
    def flip_tta(self) -> bool:
        """Whether evaluation averages over each image and its mirror image; of an ensemble, whether any run does."""
        # Missing in runs of earlier versions.
        return any(member.config.get("flip_tta", False) for member in self.members)

    def with_temperature(self, temperature: float) -> "TrainedRun":
        """Returns the run, which has no temperature, with one; its thresholds move along."""
        thresholds = self.thresholds
        if thresholds:
            thresholds = softened(np.array(thresholds), temperature, multi_label=True).tolist()
        return replace(self, temperature=temperature, thresholds=thresholds)

    def objective(self) -> Objective:
        """Returns the loss and the metrics that the run was trained with.

        Raises:
          UsageError: there is no such piece any more, or its code is not trusted.
        """
        keeps_code = RunDirectory(self.run.fold(1)) if self.run.folds else self.run
        find = functools.partial(find_kept, keeps_code, trust_code=self.trust_code)
        return find_objective(self.config, len(self.class_names), find, task=self.task)


def open_run(
    workdir: str,
    devices: Devices,
    *,
    checkpoint: str = "best",
    trust_code: bool = False,
    strategy: tf.distribute.Strategy | None = None,
) -> TrainedRun:
    """Opens a run with the weights of one of its checkpoints, or with the mean of several, for evaluation only.

    A cross-validation is opened as an ensemble.

    Args:
      workdir: the run directory.
      devices: the devices to run on.
      checkpoint: `best` (by the score on validation, such as top-1; the last one if nothing was evaluated), `last`,
        `mean:N` (the mean of the last N) or a step.
      trust_code: whether the run's code may run although another user owns it.
      strategy: the strategy over the devices; None to make one.

    Raises:
      UsageError: `checkpoint` has another value, or the code is not trusted.
      DataError: there is no run or no checkpoint in `workdir`, a checkpoint is damaged, or the training images are
        needed and cannot be used.
    """
    run = RunDirectory(workdir)
    steps = steps_by_model(run, checkpoint)
    strategy = strategy or make_strategy(devices)
    if not run.folds:
        return open_steps(run, steps[0], strategy, trust_code=trust_code)
    first, *others = (
        open_steps(RunDirectory(run.fold(number)), of_fold, strategy, trust_code=trust_code)
        for number, of_fold in enumerate(steps, 1)
    )
    return replace(first, run=run, dataset=run.read_dataset(), others=tuple(others))


def open_steps(
    run: RunDirectory, steps: Sequence[int], strategy: tf.distribute.Strategy, *, trust_code: bool = False
) -> TrainedRun:
    """Opens a single run with the weights of a step, or the mean of those of several; as `open_run`.

    The statistics of batch norm are renewed for a mean, with training images (`batch_statistics`).
    """
    config = ml_collections.ConfigDict(run.read_config())
    dataset = run.read_dataset()
    values, changed, metadata = load_mean(CheckpointStore(run.checkpoints), steps)
    runtime = _built(run, config, dataset, strategy, values, steps[-1], trust_code)
    thresholds = None
    if task_of(dataset).multi_label:
        default = [DEFAULT_THRESHOLD] * len(dataset["class_names"])
        thresholds = _mean([one.get("reported", {}).get("thresholds") or default for one in metadata])
    temperatures = [one.get("reported", {}).get("temperature") for one in metadata]
    trained = TrainedRun(
        run, config, dataset, runtime, tuple(steps), trust_code, thresholds, _mean_of_all(temperatures)
    )
    if not trained.temperature and (temperature := _evaluated_temperature(trained)):
        trained = trained.with_temperature(temperature)
    if layers := layers_to_renew(runtime.built.model, set(map(variable_path, changed))):
        renew_batch_statistics(runtime, layers, training_pixels(_training_split(trained), trained.crop))
    return trained


def _mean(thresholds: Sequence[Sequence[float]]) -> list[float]:
    return np.mean(thresholds, 0).tolist()


def _mean_of_all(temperatures: Sequence[float | None]) -> float | None:
    known = [temperature for temperature in temperatures if temperature]
    return float(np.mean(known)) if len(known) == len(temperatures) else None


def _evaluated_temperature(trained: TrainedRun) -> float | None:
    """Returns the temperature that an evaluation of the same weights on the validation split has fitted."""
    evaluated = read_json_object(trained.run.evaluation("validation"))
    if (evaluated.get("step"), evaluated.get("checkpoint")) != (trained.step, trained.checkpoint):
        return None
    return number_in(evaluated, "temperature")


def in_float32(trained: TrainedRun) -> TrainedRun:
    """Returns the run with the same weights, computing in float32."""
    config = trained.config.copy_and_resolve_references()
    config.precision = "float32"
    state, strategy = trained.runtime.state, trained.runtime.strategy
    runtime = _built(trained.run, config, trained.dataset, strategy, state.values(), trained.step, trained.trust_code)
    return replace(trained, config=config, runtime=runtime)


def _built(
    run: RunDirectory,
    config: ml_collections.ConfigDict,
    dataset: Mapping[str, Any],
    strategy: tf.distribute.Strategy,
    values: Mapping[str, np.ndarray],
    step: int,
    trust_code: bool,
) -> Runtime:
    """Returns the model of a run with the values of its variables, but for the optimizer's."""
    to_build = config.copy_and_resolve_references()
    to_build.model.weights = ""  # the checkpoint replaces them
    to_build.model.name = kept_preset(run, config.model.name)
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
    restore_state(runtime.state, values, {"step": step}, run)
    return runtime


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
      UsageError: as `open_run`, or a model is in `workdirs` twice.
      DataError: as `open_run`, or the runs have different classes, or predict one label per image and several.
    """
    models = [str(path.resolve()) for workdir in workdirs for path in model_folders(RunDirectory(workdir))]
    if twice := [path for path in models if models.count(path) > 1]:
        raise UsageError(f"--workdir={','.join(workdirs)}: has the model of {twice[0]} twice. Pass each run once.")
    strategy = make_strategy(devices)
    first, *more = (
        open_run(workdir, devices, checkpoint=checkpoint, trust_code=trust_code, strategy=strategy)
        for workdir in workdirs
    )
    for other in more:
        if other.task != first.task:
            raise DataError(
                f"--workdir={other.run.path}: predicts {other.task.labels_text}, and {first.run.path} "
                f"{first.task.labels_text}. Pass runs of the same kind."
            )
        if other.class_names != first.class_names:
            different = sorted({*first.class_names} ^ {*other.class_names}) or ["their order"]
            raise DataError(
                f"--workdir={other.run.path}: has {counted(len(other.class_names), 'class', 'classes')} and "
                f"{first.run.path} {len(first.class_names)}; different: {different[0]!r}. Pass runs of the same "
                "classes."
            )
    thresholds = _mean([run.thresholds for run in (first, *more) if run.thresholds]) if first.thresholds else None
    others = (*first.others, *(member for other in more for member in other.members))
    return replace(first, others=others, thresholds=thresholds)


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


def _training_split(trained: TrainedRun) -> Split:
    """Returns the split that a run was trained on.

    Raises:
      DataError: it no longer exists, or cannot be used.
    """
    directory = trained.dataset["directory"]
    if not source_name(directory) and not dataset_path(directory).is_dir():
        raise DataError(
            f"--checkpoint=mean:{len(trained.steps)}: renews the batch statistics with images of the run's dataset, "
            f"and {directory} no longer exists. Put it back, or choose a single checkpoint."
        )
    split = open_dataset_of(trained).split("train")
    _logger.info("Renewing the batch statistics on %s.", counted(min(split.num_images, NUM_IMAGES), "training image"))
    return split


def open_dataset_of(
    trained: TrainedRun, data: Data | None = None, record_format: RecordFormat | None = None
) -> Dataset:
    """Opens the dataset a run was trained on, or another with the same classes; as `open_recorded`."""
    return open_recorded(trained.run, trained.dataset, data, record_format, trust_code=trained.trust_code)
