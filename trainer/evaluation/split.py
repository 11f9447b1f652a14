"""Evaluation of a trained run on a split, for `convoy evaluate` and `convoy report`.

evaluated = evaluate_split(open_run("run", devices), "test")
evaluated.evaluation.quality["top1"]
evaluated.save()
"""

import contextlib
import time
from dataclasses import dataclass

import numpy as np

from convoy.core.errors import DataError
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import Data, Split
from convoy.input_pipeline.reading.reader import Reader
from convoy.trainer.evaluation import heat_maps, predictions
from convoy.trainer.evaluation.evaluator import Evaluator
from convoy.trainer.evaluation.grad_cam import GradCam
from convoy.trainer.evaluation.inference import EVALUATION_BATCH_SIZE
from convoy.trainer.evaluation.results import append_result
from convoy.trainer.session.restore import TrainedRun, open_dataset_of


@dataclass(frozen=True)
class EvaluatedSplit:
    """A trained run's evaluation on a split, and its predictions there."""

    trained: TrainedRun
    split: Split
    evaluation: predictions.Evaluation
    predictions: predictions.Predictions

    def save(self) -> None:
        """Adds a row to RUN/results.csv, and writes the files of the evaluation: `predictions_SPLIT.csv` and others.

        Raises:
          DataError: a file cannot be written.
        """
        run, evaluation = self.trained.run, self.evaluation
        try:
            append_result(
                run,
                step=evaluation.step,
                split=evaluation.split,
                quality=evaluation.quality,
                checkpoint=evaluation.checkpoint,
            )
            heat_maps.save(run, evaluation, self.predictions, self._heat_maps())
            predictions.save(run, evaluation, self.predictions, self.trained.class_names)
        except OSError as error:
            raise DataError(
                f"{error.filename or run.path} cannot be written ({error.strerror}). Free disk space or check the "
                "folder's permissions."
            ) from None

    def _heat_maps(self) -> heat_maps.HeatPictures:
        trained, found = self.trained, self.predictions
        grad_cam = GradCam(trained.runtime.state, trained.runtime.built, trained.image_size)
        worst = found.mistakes()[: heat_maps.NUM_ERRORS]
        if grad_cam.obstacle or not len(worst):
            return heat_maps.HeatPictures(obstacle=grad_cam.obstacle)
        with contextlib.closing(Reader(self.split, trained.crop)) as reader:
            pixels = reader.seen(worst)
        labels = np.stack([found.predicted[worst], found.label[worst]], axis=1)
        return heat_maps.drawn(worst, pixels, grad_cam.maps(pixels, labels))


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
    reader, collector = Reader(split, trained.crop), predictions.Collector()
    evaluator = Evaluator(
        trained.runtime.state, built, reader, EVALUATION_BATCH_SIZE, objective=trained.objective(), flip_tta=flip_tta
    )
    quality = evaluator.metrics(each=collector)
    evaluation = predictions.Evaluation(
        split=split_name,
        step=trained.step,
        checkpoint=trained.checkpoint,
        images=reader.num_images,
        quality=quality,
        data=str(dataset.directory.resolve()),
        digest=dataset.digest(split_name),
        parameters=built.model.count_params(),
        time=time.time(),
        flip_tta=flip_tta,
        record_format=dataset.record_format.as_dict(),
    )
    return EvaluatedSplit(trained, split, evaluation, collector.predictions(predictions.filenames(split)))
