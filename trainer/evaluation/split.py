"""Evaluation of a trained run on a split, for `convoy evaluate` and `convoy report`.

evaluated = evaluate_split(open_run("run", devices), "test")
evaluated.evaluation.quality["top1"]
evaluated.save()
"""

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from convoy.core.errors import DataError, UsageError
from convoy.input_pipeline.dataset.folds import LABELLED, OUT_OF_FOLD
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import Data, Split
from convoy.input_pipeline.dataset.views import View
from convoy.input_pipeline.reading.reader import Reader
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.evaluation import heat_maps, label_predictions, predictions
from convoy.trainer.evaluation.calibration import CalibrationErrors
from convoy.trainer.evaluation.evaluator import Evaluator, Member
from convoy.trainer.evaluation.grad_cam import GradCam
from convoy.trainer.evaluation.inference import evaluation_batch_size
from convoy.trainer.evaluation.results import append_result
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.run.task import Decision
from convoy.trainer.session.objective import Objective
from convoy.trainer.session.restore import TrainedRun, open_dataset_of
from convoy.trainer.session.run_dataset import view_trained_on

AnyPredictions = predictions.Predictions | label_predictions.LabelPredictions


@dataclass(frozen=True)
class EvaluatedSplit:
    """A trained run's evaluation on a split, its predictions there, and the sums that its metrics are made of.

    `draw_heat_maps` shows where the model looks in errors, or says why not.
    """

    run: RunDirectory
    decision: Decision
    evaluation: predictions.Evaluation
    predictions: AnyPredictions
    sums: np.ndarray
    objective: Objective
    draw_heat_maps: Callable[[], heat_maps.HeatPictures]

    @property
    def class_names(self) -> Sequence[str]:
        """The class names, by label."""
        return self.decision.class_names

    def save(self) -> None:
        """Adds a row to RUN/results.csv, and writes the files of the evaluation: `predictions_SPLIT.csv` and others.

        Raises:
          DataError: a file cannot be written.
        """
        run, evaluation = self.run, self.evaluation
        try:
            append_result(
                run,
                step=evaluation.step,
                split=evaluation.split,
                quality=evaluation.quality,
                checkpoint=evaluation.checkpoint,
            )
            heat_maps.save(run, evaluation, self.predictions, self.draw_heat_maps())
            delimiter = self.decision.delimiter
            predictions.save(run, evaluation, self.predictions, self.class_names, label_delimiter=delimiter)
        except OSError as error:
            raise DataError(
                f"{error.filename or run.path} cannot be written ({error.strerror}). Free disk space or check the "
                "folder's permissions."
            ) from None


def evaluate_split(
    trained: TrainedRun,
    split_name: str,
    *,
    data: Data | None = None,
    flip_tta: bool = False,
    record_format: RecordFormat | None = None,
    worker_group: WorkerGroup | None = None,
    calibrated: bool = True,
) -> EvaluatedSplit:
    """Evaluates a trained run on a split, an ensemble by the mean of the probabilities. Writes nothing.

    On the validation split, the weights of a single run without a temperature, as of earlier versions, get one.

    Args:
      trained: the run with its weights.
      split_name: `train`, `validation`, `test` or another split of the dataset.
      data: dataset directory or sources; None for the one the run was trained on.
      flip_tta: as in `Evaluator`.
      record_format: as in `open_dataset_of`.
      worker_group: workers that evaluate together; None for this process alone.
      calibrated: whether a single run with one label per image is evaluated with its temperature.

    Raises:
      UsageError: the ensemble was trained on the split.
      DataError: the dataset cannot be used, lacks the split or has other classes than the run.
    """
    dataset = open_dataset_of(trained, data, record_format)
    if split_name == OUT_OF_FOLD and (isinstance(dataset, View) or split_name not in dataset.splits):
        raise UsageError(
            f"--split={split_name}: only a whole cross-validation has it, alone. Pass the --workdir of `convoy train "
            f"--folds`, instead of {trained.run.path} or with others."
        )
    parts = [view_trained_on(member.dataset, dataset) for member in trained.members if trained.others]
    if split_name in LABELLED and any(part and part.folds for part in parts):
        raise UsageError(
            f"--split={split_name}: models of the ensemble were trained on it, each on a part. Pass the --workdir of "
            f"their cross-validation alone and --split={OUT_OF_FOLD}, which predicts each image by the model that was "
            "not."
        )
    split, objective = dataset.split(split_name), trained.objective()
    readers = {crop: Reader(split, crop) for crop in dict.fromkeys(member.crop for member in trained.members)}
    first, *others = (
        Member(member.runtime.state, member.runtime.built, readers[member.crop], member.temperature or 1.0)
        for member in trained.members
    )
    replicas = trained.runtime.strategy.num_replicas_in_sync
    batch_size = evaluation_batch_size(split.num_images, replicas, deterministic=trained.config.deterministic)
    worker_group = worker_group or WorkerGroup(None)

    def evaluator_with(temperature: float) -> Evaluator:
        return Evaluator(
            *first[:-1],
            batch_size,
            worker_group,
            objective=objective,
            flip_tta=flip_tta,
            others=others,
            thresholds=trained.thresholds,
            temperature=temperature,
        )

    trained = trained if calibrated else replace(trained, temperature=None)
    evaluator = evaluator_with(trained.temperature or 1.0)
    if calibrated and not trained.temperature and not trained.others and split_name == "validation":
        evaluator.sums()
        trained = trained.with_temperature(evaluator.best_temperature)
        evaluator = evaluator_with(evaluator.best_temperature)
    collector = label_predictions.Collector() if trained.task.multi_label else predictions.Collector()
    temperature = None if trained.others else trained.temperature
    errors = CalibrationErrors(temperature or 1.0, multi_label=trained.task.multi_label)

    def collect(*columns: np.ndarray) -> None:
        collector(*columns)
        errors.add(*columns)

    sums = evaluator.sums(each=collect)
    before, after = errors.gather(worker_group)
    evaluation = predictions.Evaluation(
        split=split_name,
        step=trained.step,
        checkpoint=trained.checkpoint,
        images=split.num_images,
        quality=evaluator.quality(sums),
        data=str(dataset.directory.resolve()),
        digest=dataset.digest(split_name),
        parameters=sum(member.runtime.built.model.count_params() for member in trained.members),
        time=time.time(),
        flip_tta=flip_tta,
        record_format=dataset.record_format.as_dict(),
        models=len(trained.members),
        thresholds=list(trained.thresholds or ()),
        temperature=temperature,
        ece_before=before,
        ece_after=after,
    )
    found = collector.predictions(predictions.filenames(split), worker_group)
    draw = functools.partial(_heat_maps, trained, split, found)
    return EvaluatedSplit(trained.run, trained.decision, evaluation, found, sums, objective, draw)


def _heat_maps(trained: TrainedRun, split: Split, found: AnyPredictions) -> heat_maps.HeatPictures:
    if trained.others:
        return heat_maps.HeatPictures(obstacle=f"they show one model, and this is the mean of {len(trained.members)}.")
    if isinstance(found, label_predictions.LabelPredictions):
        return heat_maps.HeatPictures(obstacle="they explain the one label of an image, and here it has any number.")
    grad_cam = GradCam(trained.runtime.state, trained.runtime.built, trained.image_size)
    worst = found.mistakes()[: heat_maps.NUM_ERRORS]
    if grad_cam.obstacle or not len(worst):
        return heat_maps.HeatPictures(obstacle=grad_cam.obstacle)
    with contextlib.closing(Reader(split, trained.crop)) as reader:
        pixels = reader.seen(worst)
    labels = np.stack([found.predicted[worst], found.label[worst]], axis=1)
    return heat_maps.drawn(worst, pixels, grad_cam.maps(pixels, labels))
