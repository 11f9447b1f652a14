"""Evaluation of a trained run on a split, for `convoy evaluate` and `convoy report`.

    num_images, quality = evaluate_split(open_run("run", devices), "test")

Adds a row to RUN/results.csv and writes RUN/predictions_SPLIT.csv and RUN/evaluation_SPLIT.json.
"""

import time

from convoy.core.errors import DataError
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import Dataset, open_dataset
from convoy.input_pipeline.dataset.storage import dataset_path
from convoy.input_pipeline.reading.reader import Reader
from convoy.trainer.evaluation import predictions
from convoy.trainer.evaluation.evaluator import Evaluator
from convoy.trainer.evaluation.inference import EVALUATION_BATCH_SIZE
from convoy.trainer.evaluation.results import append_result
from convoy.trainer.session.description import as_read_by_run
from convoy.trainer.session.restore import TrainedRun


def evaluate_split(
    trained: TrainedRun,
    split_name: str,
    *,
    data: str | None = None,
    flip_tta: bool = False,
    record_format: RecordFormat | None = None,
) -> tuple[int, dict[str, float]]:
    """Evaluates a trained run on a split and writes the metrics and predictions to its run directory.

    Args:
      trained: the run with its weights.
      split_name: `train`, `validation`, `test` or another split of the dataset.
      data: dataset directory; None for the one the run was trained on.
      flip_tta: as in `Evaluator`.
      record_format: as in `open_dataset_of`.

    Returns:
      The number of images evaluated, and the metrics (`metrics.summarize`).

    Raises:
      DataError: the dataset cannot be used, lacks the split or has other classes than the run, or a file in RUN cannot
        be written.
    """
    dataset, run, built = open_dataset_of(trained, data, record_format), trained.run, trained.runtime.built
    split = dataset.split(split_name)
    reader, collector = Reader(split, trained.crop), predictions.Collector()
    evaluator = Evaluator(trained.runtime.state, built, reader, EVALUATION_BATCH_SIZE, flip_tta=flip_tta)
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
    )
    try:
        append_result(run, step=trained.step, split=split_name, quality=quality)
        found = collector.predictions(predictions.filenames(split))
        predictions.save(run, evaluation, found, trained.class_names)
    except OSError as error:
        raise DataError(
            f"{error.filename or run.path} cannot be written ({error.strerror}). Free disk space or check the "
            "folder's permissions."
        ) from None
    return reader.num_images, quality


def open_dataset_of(trained: TrainedRun, data: str | None = None, record_format: RecordFormat | None = None) -> Dataset:
    """Opens the dataset a run was trained on, or another with the same classes.

    Args:
      trained: the run.
      data: dataset directory; None for the one the run was trained on.
      record_format: of records of other tools, where it differs from that of the run's dataset.

    Raises:
      DataError: the dataset cannot be used, or its classes differ from the run's.
    """
    directory = data or trained.dataset["directory"]
    if not data and not dataset_path(directory).is_dir():
        raise DataError(f"the run's dataset {directory} no longer exists. Pass its new location with --data=DATA.")
    record_format = trained.run.record_format(record_format or RecordFormat())
    dataset = as_read_by_run(open_dataset(directory, record_format), trained.dataset, trained.run)
    if list(dataset.class_names) != trained.class_names:
        different = sorted(set(dataset.class_names) ^ set(trained.class_names)) or ["their order"]
        fix = "Convert the images with the classes the run was trained on."
        if not dataset.manifest:
            fix = "If its labels mean the classes of the run, name these in their order with --class_names_file."
        raise DataError(
            f"--data={dataset.directory} has {dataset.num_classes} classes and the run {len(trained.class_names)}; "
            f"different: {different[0]!r}. {fix}"
        )
    return dataset
