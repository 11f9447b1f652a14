"""Evaluation of a trained run on a split, for `convoy evaluate` and `convoy report`.

evaluated = evaluate_split(open_run("run", devices), "test")
evaluated.evaluation.quality["top1"]
evaluated.save()
"""

import time
from dataclasses import dataclass

from convoy.core.errors import DataError
from convoy.core.text import counted
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import Data, Dataset, open_dataset
from convoy.input_pipeline.dataset.source import SourceName, check_source_owner, source_name
from convoy.input_pipeline.dataset.storage import dataset_path
from convoy.input_pipeline.reading.reader import Reader
from convoy.trainer.evaluation import label_predictions, predictions
from convoy.trainer.evaluation.evaluator import Evaluator
from convoy.trainer.evaluation.inference import EVALUATION_BATCH_SIZE
from convoy.trainer.evaluation.results import append_result
from convoy.trainer.session.description import as_read_by_run
from convoy.trainer.session.restore import TrainedRun


@dataclass(frozen=True)
class EvaluatedSplit:
    """A trained run's evaluation on a split, and its predictions there."""

    trained: TrainedRun
    evaluation: predictions.Evaluation
    predictions: predictions.Predictions | label_predictions.LabelPredictions

    def save(self) -> None:
        """Adds a row to RUN/results.csv and writes RUN/predictions_SPLIT.csv and RUN/evaluation_SPLIT.json.

        Raises:
          DataError: a file cannot be written.
        """
        run, evaluation = self.trained.run, self.evaluation
        try:
            append_result(run, step=evaluation.step, split=evaluation.split, quality=evaluation.quality)
            delimiter = self.trained.decision.delimiter
            names = self.trained.class_names
            predictions.save(run, evaluation, self.predictions, names, label_delimiter=delimiter)
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
) -> EvaluatedSplit:
    """Evaluates a trained run on a split. Writes nothing.

    Args:
      trained: the run with its weights.
      split_name: `train`, `validation`, `test` or another split of the dataset.
      data: dataset directory or sources; None for the one the run was trained on.
      flip_tta: as in `Evaluator`.
      record_format: as in `open_dataset_of`.

    Raises:
      DataError: the dataset cannot be used, lacks the split or has other classes than the run.
    """
    dataset, built = open_dataset_of(trained, data, record_format), trained.runtime.built
    split = dataset.split(split_name)
    reader = Reader(split, trained.crop)
    collector = label_predictions.Collector() if trained.task.multi_label else predictions.Collector()
    evaluator = Evaluator(
        trained.runtime.state,
        built,
        reader,
        EVALUATION_BATCH_SIZE,
        objective=trained.objective(),
        flip_tta=flip_tta,
        thresholds=trained.thresholds,
    )
    quality = evaluator.metrics(each=collector)
    evaluation = predictions.Evaluation(
        split=split_name,
        step=trained.step,
        images=reader.num_images,
        quality=quality,
        data=str(dataset.directory.resolve()),
        digest=dataset.digest(split_name),
        parameters=built.model.count_params(),
        time=time.time(),
        flip_tta=flip_tta,
        record_format=dataset.record_format.as_dict(),
        thresholds=list(trained.thresholds or ()),
    )
    return EvaluatedSplit(trained, evaluation, collector.predictions(predictions.filenames(split)))


def open_dataset_of(
    trained: TrainedRun, data: Data | None = None, record_format: RecordFormat | None = None
) -> Dataset:
    """Opens the dataset a run was trained on, or another with the same classes.

    Args:
      trained: the run.
      data: dataset directory or sources; None for the one the run was trained on.
      record_format: of records of other tools, where it differs from that of the run's dataset.

    Raises:
      DataError: the dataset cannot be used, or its classes differ from the run's.
      UsageError: it is a source whose code is not trusted.
    """
    recorded = trained.dataset["directory"]
    if not data and not source_name(recorded) and not dataset_path(recorded).is_dir():
        raise DataError(f"the run's dataset {recorded} no longer exists. Pass its new location with --data=DATA.")
    if not data and not trained.trust_code:
        check_source_owner(recorded, trained.run.dataset)
    record_format = trained.run.record_format(record_format or RecordFormat())
    dataset = as_read_by_run(open_dataset(data or recorded, record_format), trained.dataset, trained.run)
    if dataset.multi_label != trained.task.multi_label:
        one, several = "one label per image", "any number of labels per image"
        own, other = (several, one) if trained.task.multi_label else (one, several)
        raise DataError(
            f"--data={dataset.directory} has {other}, and the run {own}. Convert the images as for the run."
        )
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
    return dataset
