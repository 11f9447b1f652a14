"""Evaluation of a trained run on a split, for `convoy evaluate` and `convoy report`.

evaluated = evaluate_split(open_run("run", devices), "test")
evaluated.evaluation.quality["top1"]
evaluated.save()
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convoy.core.errors import DataError, UsageError
from convoy.core.text import counted
from convoy.input_pipeline.dataset.folds import LABELLED, OUT_OF_FOLD, View, view_of
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import Data, Dataset, open_dataset
from convoy.input_pipeline.dataset.source import SourceName, check_source_owner, source_name
from convoy.input_pipeline.dataset.storage import dataset_path
from convoy.input_pipeline.reading.reader import Reader
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.evaluation import predictions
from convoy.trainer.evaluation.evaluator import Evaluator, Member
from convoy.trainer.evaluation.inference import EVALUATION_BATCH_SIZE
from convoy.trainer.evaluation.results import append_result
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.session.description import as_read_by_run
from convoy.trainer.session.objective import Objective
from convoy.trainer.session.restore import TrainedRun


@dataclass(frozen=True)
class EvaluatedSplit:
    """A trained run's evaluation on a split, its predictions there, and the sums that its metrics are made of."""

    run: RunDirectory
    class_names: Sequence[str]
    evaluation: predictions.Evaluation
    predictions: predictions.Predictions
    sums: np.ndarray
    objective: Objective

    def save(self) -> None:
        """Adds a row to RUN/results.csv and writes RUN/predictions_SPLIT.csv and RUN/evaluation_SPLIT.json.

        Raises:
          DataError: a file cannot be written.
        """
        run, evaluation = self.run, self.evaluation
        try:
            append_result(run, step=evaluation.step, split=evaluation.split, quality=evaluation.quality)
            predictions.save(run, evaluation, self.predictions, self.class_names)
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
) -> EvaluatedSplit:
    """Evaluates a trained run on a split, an ensemble by the mean of the probabilities. Writes nothing.

    Args:
      trained: the run with its weights.
      split_name: `train`, `validation`, `test` or another split of the dataset.
      data: dataset directory or sources; None for the one the run was trained on.
      flip_tta: as in `Evaluator`.
      record_format: as in `open_dataset_of`.
      worker_group: workers that evaluate together; None for this process alone.

    Raises:
      UsageError: the ensemble was trained on the split.
      DataError: the dataset cannot be used, lacks the split or has other classes than the run.
    """
    dataset = open_dataset_of(trained, data, record_format)
    if trained.others and isinstance(dataset, View) and split_name in (*LABELLED, OUT_OF_FOLD):
        raise UsageError(
            f"--split={split_name}: the models of {trained.run.path} were trained on it, each on a part. Pass "
            f"--split={OUT_OF_FOLD}, which predicts each image by the model that was not."
        )
    split, objective = dataset.split(split_name), trained.objective()
    readers = {crop: Reader(split, crop) for crop in dict.fromkeys(member.crop for member in trained.members)}
    first, *others = (
        Member(member.runtime.state, member.runtime.built, readers[member.crop]) for member in trained.members
    )
    evaluator = Evaluator(
        *first, EVALUATION_BATCH_SIZE, worker_group, objective=objective, flip_tta=flip_tta, others=others
    )
    collector = predictions.Collector()
    sums = evaluator.sums(each=collector)
    evaluation = predictions.Evaluation(
        split=split_name,
        step=trained.step,
        images=split.num_images,
        quality=objective.metrics.summarize(sums),
        data=str(dataset.directory.resolve()),
        digest=dataset.digest(split_name),
        parameters=sum(member.runtime.built.model.count_params() for member in trained.members),
        time=time.time(),
        flip_tta=flip_tta,
        record_format=dataset.record_format.as_dict(),
        models=len(trained.members),
    )
    found = collector.predictions(predictions.filenames(split), worker_group)
    return EvaluatedSplit(trained.run, trained.class_names, evaluation, found, sums, objective)


def open_dataset_of(
    trained: TrainedRun, data: Data | None = None, record_format: RecordFormat | None = None
) -> Dataset:
    """Opens the dataset a run was trained on, or another with the same classes; for a fold of it, as the run saw it.

    Args:
      trained: the run.
      data: dataset directory or sources; None for the one the run was trained on.
      record_format: of records of other tools, where it differs from that of the run's dataset.

    Raises:
      DataError: the dataset cannot be used, its classes differ from the run's, or its folds have changed.
      UsageError: it is a source whose code is not trusted.
    """
    recorded = trained.dataset["directory"]
    if not data and not source_name(recorded) and not dataset_path(recorded).is_dir():
        raise DataError(f"the run's dataset {recorded} no longer exists. Pass its new location with --data=DATA.")
    if not data and not trained.trust_code:
        check_source_owner(recorded, trained.run.dataset)
    record_format = trained.run.record_format(record_format or RecordFormat())
    dataset = as_read_by_run(open_dataset(data or recorded, record_format), trained.dataset, trained.run)
    if list(dataset.class_names) != trained.class_names:
        different = sorted(set(dataset.class_names) ^ set(trained.class_names)) or ["their order"]
        fix = "Convert the images with the classes the run was trained on."
        if isinstance(dataset.directory, SourceName):
            fix = "Give the source the class_names of the run."
        elif not dataset.manifest:
            fix = "If its labels mean the classes of the run, name these in their order with --class_names_file."
        raise DataError(
            f"--data={dataset.directory} has {counted(dataset.num_classes, 'class', 'classes')} and the run "
            f"{len(trained.class_names)}; different: {different[0]!r}. {fix}"
        )
    return _as_trained_on(dataset, trained, is_given=data is not None)


def _as_trained_on(dataset: Dataset, trained: TrainedRun, *, is_given: bool) -> Dataset:
    """Returns the folds of a dataset that a run was trained on; another dataset as it is."""
    view = dataset if isinstance(dataset, View) else view_of(dataset, trained.dataset)
    if not isinstance(view, View):
        return dataset
    images = view.digest("train" if view.fold else OUT_OF_FOLD)
    if images[:16] == trained.dataset.get("train_digest"):
        return view
    if is_given and not isinstance(dataset, View):
        return dataset
    raise DataError(
        f"{dataset.directory} has changed since {trained.run.path} was trained on a part of it, and its folds with it. "
        "Restore it, or train in another --workdir."
    )
