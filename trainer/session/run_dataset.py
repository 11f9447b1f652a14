"""The dataset of a run that is no longer trained, as the run saw it.

run = RunDirectory("run")
open_recorded(run, run.read_dataset()).split("test")
"""

from collections.abc import Mapping
from typing import Any

from convoy.core.errors import DataError
from convoy.core.text import counted
from convoy.input_pipeline.dataset.folds import OUT_OF_FOLD
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import Data, Dataset, open_dataset
from convoy.input_pipeline.dataset.recorded_view import view_of
from convoy.input_pipeline.dataset.source import SourceName, check_source_owner, source_name
from convoy.input_pipeline.dataset.storage import dataset_path
from convoy.input_pipeline.dataset.views import View
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.run.task import MULTI_LABEL, SINGLE_LABEL, task_of
from convoy.trainer.session.description import as_read_by_run


def open_recorded(
    run: RunDirectory,
    recorded: Mapping[str, Any],
    data: Data | None = None,
    record_format: RecordFormat | None = None,
    *,
    trust_code: bool = False,
) -> Dataset:
    """Opens the dataset a run was trained on, or another with the same classes; for a part of it, as the run saw it.

    Args:
      run: the run directory.
      recorded: content of its dataset.json.
      data: dataset directory or sources; None for the one the run was trained on.
      record_format: of records of other tools, where it differs from that of the run's dataset.
      trust_code: whether the code of a source may run although another user owns the run.

    Raises:
      DataError: the dataset cannot be used, its classes differ from the run's, or the part of it has changed.
      UsageError: it is a source whose code is not trusted.
    """
    directory, class_names, trained_task = recorded["directory"], recorded["class_names"], task_of(recorded)
    if not data and not source_name(directory) and not dataset_path(directory).is_dir():
        raise DataError(f"the run's dataset {directory} no longer exists. Pass its new location with --data=DATA.")
    if not data and not trust_code:
        check_source_owner(directory, run.dataset)
    record_format = run.record_format(record_format or RecordFormat())
    dataset = as_read_by_run(open_dataset(data or directory, record_format), recorded, run)
    task = MULTI_LABEL if dataset.multi_label else SINGLE_LABEL
    if task != trained_task:
        raise DataError(
            f"--data={dataset.directory} has {task.labels_text}, and the run {trained_task.labels_text}. Convert the "
            "images as for the run."
        )
    if list(dataset.class_names) != class_names:
        different = sorted(set(dataset.class_names) ^ set(class_names)) or ["their order"]
        fix = "Convert the images with the classes the run was trained on."
        if isinstance(dataset.directory, SourceName):
            fix = "Give the source the class_names of the run."
        elif not dataset.manifest:
            fix = "If its labels mean the classes of the run, name these in their order with --class_names_file."
        raise DataError(
            f"--data={dataset.directory} has {counted(dataset.num_classes, 'class', 'classes')} and the run "
            f"{len(class_names)}; different: {different[0]!r}. {fix}"
        )
    if view := view_trained_on(recorded, dataset):
        return view
    is_part = recorded.get("folds") or recorded.get("fraction")
    if not is_part or (data is not None and not isinstance(dataset, View)):
        return dataset
    raise DataError(
        f"{dataset.directory} has changed since {run.path} was trained on a part of it, and the part with it. "
        "Restore it, or train in another --workdir."
    )


def view_trained_on(recorded: Mapping[str, Any], dataset: Dataset) -> View | None:
    """Returns the part of a dataset that a run was trained on; None if it was trained on another, or on all of it.

    Args:
      recorded: content of the run's dataset.json.
      dataset: the dataset, or such a part.
    """
    view = dataset if isinstance(dataset, View) else view_of(dataset, recorded)
    if not isinstance(view, View):
        return None
    images = view.digest("train" if "train" in view.chosen else OUT_OF_FOLD)
    return view if images[:16] == recorded.get("train_digest") else None
