"""Out-of-fold predictions of a cross-validation: each labelled image by the model that was not trained on it.

found = evaluate_out_of_fold(RunDirectory("run"), devices)
found.together.evaluation.quality["top1"]      # over all labelled images
found.folds[0].evaluation.quality["top1"]      # of the first fold
found.save()
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from convoy.core.devices import Devices
from convoy.core.errors import DataError
from convoy.core.text import counted, models_text, share
from convoy.input_pipeline.dataset.folds import OUT_OF_FOLD, Folds, make_folds
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import Data
from convoy.input_pipeline.dataset.views import View
from convoy.trainer.cluster.strategy import make_strategy
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.evaluation import heat_maps, predictions
from convoy.trainer.evaluation.predictions import Predictions
from convoy.trainer.evaluation.report.analysis import likely_label_errors
from convoy.trainer.evaluation.report.folds import deviation
from convoy.trainer.evaluation.split import EvaluatedSplit, evaluate_split
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.session.chosen_steps import steps_by_model
from convoy.trainer.session.restore import TrainedRun, open_dataset_of, open_steps
from convoy.trainer.tf_compat.keras_state import retracing_advice_left_out

_SHOWN = {"top1": "top-1", "macro_f1": "macro F1"}


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
        found = self.together.predictions
        assert isinstance(found, Predictions)  # of one label per image, as `make_folds` requires
        return likely_label_errors(found, len(self.together.class_names))

    def over_folds(self, summary: Callable[[Sequence[float]], float]) -> dict[str, float]:
        """Returns what a function makes of the folds' values of each metric, by name."""
        qualities = [fold.evaluation.quality for fold in self.folds]
        return {name: summary([quality[name] for quality in qualities]) for name in qualities[0]}

    def figures(self) -> str:
        """Returns a line on the folds."""
        mean, sd = self.over_folds(statistics.fmean), self.over_folds(deviation)
        texts = [f"{title} {share(mean[name])} ± {share(sd[name])}" for name, title in _SHOWN.items()]
        return f"{counted(len(self.folds), 'fold')}: {', '.join(texts)} (mean and standard deviation over the folds)"

    def files(self) -> list[str]:
        """Returns a line on each file about all images that `save` writes."""
        run = self.together.run
        return [
            f"Out-of-fold predictions: {run.predictions(OUT_OF_FOLD)} "
            f"({counted(self.together.evaluation.images, 'image')})",
            f"Likely label errors: {run.label_errors} ({counted(len(self.label_errors), 'image')})",
        ]

    def save(self) -> None:
        """Saves each evaluation, and RUN/label_errors.csv.

        Raises:
          DataError: a file cannot be written.
        """
        for fold in self.folds:
            fold.save()
        self.together.save()
        together, run = self.together, self.together.run
        try:
            predictions.write_table(run.label_errors, together.predictions, together.decision, self.label_errors)
        except OSError as error:
            raise DataError(
                f"{run.label_errors} cannot be written ({error.strerror}). Free disk space or check the folder's "
                "permissions."
            ) from None


@retracing_advice_left_out()
def evaluate_out_of_fold(
    run: RunDirectory,
    devices: Devices,
    *,
    checkpoint: str = "best",
    data: Data | None = None,
    flip_tta: bool | None = None,
    record_format: RecordFormat | None = None,
    trust_code: bool = False,
) -> OutOfFold:
    """Evaluates the run of each fold on its fold. Writes nothing.

    Args:
      run: the folder of the cross-validation.
      devices: as in `open_run`.
      checkpoint: as in `open_run`, of each run.
      data: as in `evaluate_split`.
      flip_tta: as in `evaluate_split`; None for that of the config.
      record_format: as in `evaluate_split`.
      trust_code: as in `open_run`.

    Raises:
      UsageError: as `open_run`.
      DataError: as `open_run` and `evaluate_split`, or a fold is not trained yet.
    """
    steps, strategy = steps_by_model(run, checkpoint), make_strategy(devices)

    def open_fold(number: int) -> TrainedRun:
        return open_steps(RunDirectory(run.fold(number)), steps[number - 1], strategy, trust_code=trust_code)

    first = replace(open_fold(1), run=run, dataset=run.read_dataset())
    dataset = open_dataset_of(first, data, record_format)
    if not isinstance(dataset, View) or not dataset.whole:
        raise DataError(f"--data={dataset.directory}: is not the dataset that {run.path} was trained on.")
    return evaluate_folds(run, make_folds(dataset.whole, run.folds), open_fold, flip_tta=flip_tta)


def evaluate_folds(
    run: RunDirectory,
    folds: Folds,
    open_fold: Callable[[int], TrainedRun],
    *,
    flip_tta: bool | None = None,
    worker_group: WorkerGroup | None = None,
) -> OutOfFold:
    """As `evaluate_out_of_fold`.

    Args:
      run: the folder of the cross-validation.
      folds: the folds.
      open_fold: opens the run of the fold of a number.
      flip_tta: as in `evaluate_out_of_fold`.
      worker_group: as in `evaluate_split`.
    """

    def evaluate(number: int) -> EvaluatedSplit:
        gc.collect()  # frees the model of the fold before
        trained = open_fold(number)
        flips = trained.flip_tta if flip_tta is None else flip_tta
        data = folds.without(number)
        # Without temperatures, which differ between the folds: probabilities of all folds are compared with each other.
        evaluated = evaluate_split(
            trained, "validation", data=data, flip_tta=flips, worker_group=worker_group, calibrated=False
        )
        return replace(evaluated, draw_heat_maps=_no_heat_maps)

    evaluated = [evaluate(number) for number in range(1, folds.number + 1)]
    evaluations = [fold.evaluation for fold in evaluated]
    sums = np.sum([fold.sums for fold in evaluated], 0)
    evaluation = replace(
        evaluations[0],
        split=OUT_OF_FOLD,
        step=max(evaluation.step for evaluation in evaluations),
        checkpoint=models_text([(evaluation.step, evaluation.checkpoint) for evaluation in evaluations]),
        images=len(folds.of),
        quality=evaluated[0].objective.metrics.summarize(sums),
        ece_before=None,
        ece_after=None,
        digest=folds.together().digest(OUT_OF_FOLD),
        time=time.time(),
    )
    order = np.argsort(np.concatenate([folds.images(number) for number in range(1, folds.number + 1)]))
    names, *columns = zip(*(vars(fold.predictions).values() for fold in evaluated), strict=True)
    filenames = [name for fold in names for name in fold]
    found = Predictions([filenames[i] for i in order], *(np.concatenate(column)[order] for column in columns))
    together = replace(evaluated[0], run=run, evaluation=evaluation, predictions=found, sums=sums)
    return OutOfFold(together, evaluated)


def _no_heat_maps() -> heat_maps.HeatPictures:
    # That would keep the models of all folds in memory.
    return heat_maps.HeatPictures(obstacle="run `convoy evaluate` with the run of a fold to see them.")
