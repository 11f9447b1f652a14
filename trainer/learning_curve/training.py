"""Learning curve of a run: `convoy report --learning_curve` trains its config on a quarter and a half of the images.

curve = measure_learning_curve("run", devices=parse_devices("auto"), say=print)
curve.sentence()

RUN/learning_curve/quarter and RUN/learning_curve/half are ordinary runs, on views of the dataset (`subsets`), so that
each resumes by itself: the same command goes on, and what is finished is used again. They have the seed and the epochs
of the run, and the same images on any machine.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import tensorflow as tf

from convoy.core.devices import Devices
from convoy.core.errors import DataError, UsageError, did_you_mean
from convoy.core.text import counted, duration_text, is_count
from convoy.input_pipeline.dataset.open import Dataset
from convoy.input_pipeline.dataset.subsets import training_subset
from convoy.input_pipeline.dataset.views import View
from convoy.trainer import config as configs
from convoy.trainer.callbacks.callback import Callback
from convoy.trainer.cluster.strategy import make_strategy
from convoy.trainer.evaluation import predictions
from convoy.trainer.evaluation.predictions import Evaluation
from convoy.trainer.evaluation.report.learning_curve import FRACTIONS, LearningCurve, Point
from convoy.trainer.evaluation.split import evaluate_split
from convoy.trainer.loop import train
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.run.records import read_json_object
from convoy.trainer.run.task import task_of
from convoy.trainer.session.chosen_steps import chosen_steps
from convoy.trainer.session.description import dataset_identity
from convoy.trainer.session.kept_config import kept_config
from convoy.trainer.session.restore import open_steps
from convoy.trainer.session.run_dataset import open_recorded
from convoy.trainer.tf_compat.keras_state import retracing_advice_left_out

_SPLITS = ("test", "validation")  # to evaluate on; the first that there is


@retracing_advice_left_out()
def measure_learning_curve(
    workdir: str,
    *,
    devices: Devices,
    split: str = "",
    data: str | None = None,
    checkpoint: str = "best",
    trust_code: bool = False,
    make_callbacks: Callable[[], Sequence[Callback]] = tuple,
    command: str = "",
    owns_process: bool = False,
    say: Callable[[str], None],
) -> LearningCurve:
    """Trains the missing runs of a learning curve, evaluates all, and writes RUN/learning_curve.json.

    Args:
      workdir: the run directory of a finished run with one label per image.
      devices: the devices to train and evaluate on.
      split: split to evaluate on; empty for `test`, or `validation` without one.
      data: directory of the run's dataset, if it has moved.
      checkpoint: as in `open_run`, of each run; not a step.
      trust_code: whether the run's code may run although another user owns it.
      make_callbacks: makes the callbacks of a run. If one stops a run that can be resumed, the runs after it are left
        out.
      command: as in `loop.train`.
      owns_process: as in `loop.train`.
      say: shows a line to the user.

    Returns:
      The curve of the runs that are finished, with that of `workdir` as its last point.

    Raises:
      UsageError: the run is unfinished, a cross-validation, of some of the images or with several labels per image; a
        run of its learning curve has another length than it has now; or as `loop.train`.
      DataError: its dataset has changed, has no such split or too few images; or as `loop.train`.
      ConvoyError: the others of `loop.train`.
    """
    run = RunDirectory(workdir)
    recorded, result = _checked(run, checkpoint)
    dataset = open_recorded(run, recorded, data, trust_code=trust_code)
    if dataset_identity(dataset)["train_digest"] != recorded.get("train_digest"):
        raise DataError(
            f"{dataset.directory} has changed since {run.path} was trained. Restore it, or train a new run on it."
        )
    split = _chosen_split(split, dataset)
    config = kept_config(run, trust_code=trust_code)
    views = {name: training_subset(dataset, fraction) for name, fraction in FRACTIONS.items()}
    images = [*map(_training_images, views.values()), _training_images(dataset)]
    if images != sorted({*images}):
        raise DataError(
            f"--learning_curve: a quarter, a half and all of the training images of {dataset.directory} are "
            f"{images[0]}, {images[1]} and {images[2]} images, with at least one per class and images that belong "
            "together. Add training images."
        )
    of_fraction = {name: configs.scaled(config, count / images[-1]) for name, count in zip(views, images, strict=False)}
    for name in views:
        _check_same_plan(run, RunDirectory(run.fraction(name)), of_fraction[name])
    finished: list[tuple[RunDirectory, View]] = []
    for name, view in views.items():
        fraction, count = RunDirectory(run.fraction(name)), _training_images(view)
        if not _is_finished(fraction, view):
            gc.collect()  # frees the model of the run before
            time = duration_text(count / images[-1] * _seconds(result))
            say(f"A {name} of the training images, {counted(count, 'image')}, about {time}: {fraction.path}")
            of_run = train(
                of_fraction[name],
                data=view,
                workdir=str(fraction.path),
                devices=devices,
                callbacks=make_callbacks(),
                command=command,
                owns_process=owns_process,
            )
            if of_run["stop"] and of_run["stop"]["resumable"]:
                say("Rerun the same command to go on.")
                break
        finished.append((fraction, view))
    strategy = make_strategy(devices)
    points = []
    for each, seen in (*finished, (run, dataset)):
        evaluation = _evaluated(each, seen, split, strategy, checkpoint=checkpoint, trust_code=trust_code)
        points.append(_point(each, seen, evaluation))
    curve = LearningCurve(split, points)
    try:
        run.write_json(run.learning_curve, curve.content())
    except OSError as error:
        raise DataError(
            f"{run.learning_curve} cannot be written ({error.strerror}). Its runs are trained: free disk space and "
            "rerun the same command."
        ) from None
    return curve


def _checked(run: RunDirectory, checkpoint: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns dataset.json and result.json of a run; raises the errors of `measure_learning_curve` about it."""
    recorded, refusal = run.read_dataset(), f"--learning_curve: {run.path}"
    if run.folds:
        raise UsageError(f"{refusal} is a cross-validation. Pass a single run, trained without --folds.")
    if recorded.get("folds") or recorded.get("fraction"):
        raise UsageError(f"{refusal} was trained on a part of its dataset. Pass a run on all training images.")
    if task_of(recorded).multi_label:
        raise UsageError(f"{refusal} predicts several labels per image. Pass a run with one label per image.")
    result = read_json_object(run.result)
    if not result or (result.get("stop") or {}).get("resumable"):
        raise UsageError(f"{refusal} is not finished. Rerun its command to finish it.")
    if is_count(checkpoint):
        raise UsageError(
            f"--checkpoint={checkpoint}: with --learning_curve it is that of several runs. Pass best, last or mean:N."
        )
    return recorded, result


def _chosen_split(name: str, dataset: Dataset) -> str:
    if name == "train":
        raise UsageError("--split=train: a learning curve needs images that were not trained on. Pass another split.")
    wanted = (name,) if name else _SPLITS
    if found := [split for split in wanted if split in dataset.splits]:
        return found[0]
    if name:
        raise DataError(
            f"--split={name}: {dataset.directory} has no such split{did_you_mean(name, dataset.splits)}. It has "
            f"{', '.join(dataset.splits)}."
        )
    raise DataError(
        f"--learning_curve: {dataset.directory} has neither a split test nor validation to evaluate on. Add one with "
        "`convoy convert --split=test`."
    )


def _check_same_plan(run: RunDirectory, fraction: RunDirectory, config: ml_collections.ConfigDict) -> None:
    """Raises a UsageError if the run of a fraction was begun with another length or V than the run has now."""
    if not fraction.config.exists():
        return
    before, now = fraction.read_config(), configs.to_json(config)
    if any(
        before.get(field, now[field]) != now[field] for field in ("epochs", "steps", "extended", "virtual_replicas")
    ):
        raise UsageError(
            f"--learning_curve: {fraction.path} was trained before {run.path} got another length or number of virtual "
            f"replicas. Remove {fraction.path.parent} to train it again."
        )


def _is_finished(fraction: RunDirectory, view: View) -> bool:
    result = read_json_object(fraction.result)
    is_at_end = bool(result) and not (result.get("stop") or {}).get("resumable")
    return is_at_end and fraction.read_dataset().get("train_digest") == dataset_identity(view)["train_digest"]


def _evaluated(
    run: RunDirectory,
    dataset: Dataset,
    split: str,
    strategy: tf.distribute.Strategy,
    *,
    checkpoint: str,
    trust_code: bool,
) -> Evaluation:
    """Returns the evaluation of a run on a split: the saved one if it is of the same weights and images.

    A new one is saved unless that would replace the saved one.
    """
    steps, flip_tta = chosen_steps(run, checkpoint), run.read_config().get("flip_tta", False)
    saved = next((one for one in predictions.evaluations(run) if one.split == split), None)
    wanted = (steps, "", 1, flip_tta, dataset.digest(split))
    if saved and ((saved.step,), saved.checkpoint, saved.models, saved.flip_tta, saved.digest) == wanted:
        return saved
    gc.collect()
    trained = open_steps(run, steps, strategy, trust_code=trust_code)
    evaluated = evaluate_split(trained, split, data=dataset, flip_tta=flip_tta)
    if not saved:
        evaluated.save()
    return evaluated.evaluation


def _point(run: RunDirectory, dataset: Dataset, evaluation: Evaluation) -> Point:
    result, images = run.read_json(run.result), _training_images(dataset)
    return Point(
        fraction=dataset.fraction if isinstance(dataset, View) else 1.0,
        images=images,
        step=evaluation.step,
        top1=evaluation.quality["top1"],
        evaluated_images=evaluation.images,
        seconds=_seconds(result),
        weights_sha256=str(result.get("weights_sha256")),
    )


def _seconds(result: Mapping[str, Any]) -> float:
    return sum(result.get("seconds", {}).values())


def _training_images(dataset: Dataset) -> int:
    return dataset.split("train").num_images
