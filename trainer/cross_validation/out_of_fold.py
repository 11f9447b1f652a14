"""Out-of-fold predictions of a cross-validation: each labelled image by the model that was not trained on it.

found = evaluate_out_of_fold(RunDirectory("run"), devices)
found.together.evaluation.quality["top1"]      # over all labelled images
found.folds[0].evaluation.quality["top1"]      # of the first fold
found.save()
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import tensorflow as tf

from convoy.core.devices import Devices
from convoy.core.errors import DataError
from convoy.input_pipeline.dataset.folds import OUT_OF_FOLD, View, make_folds
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import Data
from convoy.trainer.cluster.strategy import make_strategy
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.evaluation import predictions
from convoy.trainer.evaluation.predictions import Predictions
from convoy.trainer.evaluation.report.analysis import likely_label_errors
from convoy.trainer.evaluation.split import EvaluatedSplit, evaluate_split, open_dataset_of
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.session.restore import chosen_steps, open_run


@dataclass(frozen=True)
class OutOfFold:
    """The evaluation of a cross-validation.

    Attributes:
      together: evaluation on the split `OUT_OF_FOLD` of all labelled images.
      folds: evaluation of each fold's run on that fold.
    """

    together: EvaluatedSplit
    folds: Sequence[EvaluatedSplit]

    @cached_property
    def label_errors(self) -> np.ndarray:
        """The images whose label is probably wrong, the most likely errors first: [n] int64."""
        return likely_label_errors(self.together.predictions, len(self.together.class_names))

    def save(self) -> None:
        """Saves each evaluation, and RUN/label_errors.csv.

        Raises:
          DataError: a file cannot be written.
        """
        for fold in self.folds:
            fold.save()
        self.together.save()
        run, class_names = self.together.run, self.together.class_names
        try:
            predictions.write_table(run.label_errors, self.together.predictions, class_names, self.label_errors)
        except OSError as error:
            raise DataError(
                f"{run.label_errors} cannot be written ({error.strerror}). Free disk space or check the folder's "
                "permissions."
            ) from None


def evaluate_out_of_fold(
    run: RunDirectory,
    devices: Devices,
    *,
    checkpoint: str = "best",
    data: Data | None = None,
    flip_tta: bool | None = None,
    record_format: RecordFormat | None = None,
    trust_code: bool = False,
    strategy: tf.distribute.Strategy | None = None,
    worker_group: WorkerGroup | None = None,
    each: Callable[[int], None] = lambda fold: None,
) -> OutOfFold:
    """Evaluates each fold's run on its fold. Writes nothing.

    Args:
      run: the folder of the cross-validation.
      devices: as in `open_run`.
      checkpoint: as in `open_run`, of each run.
      data: as in `evaluate_split`.
      flip_tta: as in `evaluate_split`; None for that of the config.
      record_format: as in `evaluate_split`.
      trust_code: as in `open_run`.
      strategy: as in `open_run`.
      worker_group: as in `evaluate_split`.
      each: called with the number of each fold before it is evaluated.

    Raises:
      UsageError: as `open_run`.
      DataError: as `open_run` and `evaluate_split`, or a fold is not trained yet.
    """
    chosen_steps(run, checkpoint)
    strategy, dataset = strategy or make_strategy(devices), run.read_dataset()
    evaluated: list[EvaluatedSplit] = []
    for number in range(1, run.folds + 1):
        each(number)
        gc.collect()  # frees the model of the fold before
        trained = open_run(
            str(run.fold(number)), devices, checkpoint=checkpoint, trust_code=trust_code, strategy=strategy
        )
        if not evaluated:
            together = open_dataset_of(replace(trained, run=run, dataset=dataset), data, record_format)
            if not isinstance(together, View) or not together.whole:
                raise DataError(f"--data={together.directory}: is not the dataset that {run.path} was trained on.")
            folds, objective = make_folds(together.whole, run.folds), trained.objective()
        evaluated.append(
            evaluate_split(
                trained,
                "validation",
                data=folds.without(number),
                flip_tta=trained.flip_tta if flip_tta is None else flip_tta,
                worker_group=worker_group,
            )
        )
    sums = np.sum([fold.sums for fold in evaluated], 0)
    evaluation = replace(
        evaluated[0].evaluation,
        split=OUT_OF_FOLD,
        step=max(fold.evaluation.step for fold in evaluated),
        images=len(folds.of),
        quality=objective.metrics.summarize(sums),
        digest=together.digest(OUT_OF_FOLD),
        time=time.time(),
    )
    order = np.argsort(np.concatenate([folds.images(number) for number in range(1, run.folds + 1)]))
    names, *columns = zip(*(vars(fold.predictions).values() for fold in evaluated), strict=True)
    filenames = [name for fold in names for name in fold]
    found = Predictions([filenames[i] for i in order], *(np.concatenate(column)[order] for column in columns))
    return OutOfFold(EvaluatedSplit(run, evaluated[0].class_names, evaluation, found, sums), evaluated)
