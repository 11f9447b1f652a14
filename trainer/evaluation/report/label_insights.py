"""The findings of a run's report on an evaluation with several labels per image; `insights` has the others."""

from collections.abc import Iterator

import numpy as np

from convoy.core.finding import Finding, Severity
from convoy.core.html.templates import shown
from convoy.core.text import counted, share
from convoy.core.thresholds import OVERFITTING_GAP
from convoy.trainer.evaluation.report.history import History
from convoy.trainer.evaluation.report.label_section import LabelEvaluated

_GOOD = 0.9  # mean average precision
_NO_BETTER = 1.1  # times that of guessing
_SHIFT = 0.05  # between validation and another split
_NAME_LENGTH = 40


def label_insights(history: History, evaluated: LabelEvaluated) -> Iterator[Finding]:
    """Yields the findings on an evaluation, the one on its mean average precision first."""
    yield _score(evaluated)
    yield from _generalization(history, evaluated)
    yield from _classes(history, evaluated)


def _score(evaluated: LabelEvaluated) -> Finding:
    evaluation, scores = evaluated.evaluation, evaluated.scores
    precision = evaluation.quality["mean_average_precision"]
    shares = scores.actual[scores.actual > 0] / evaluation.images
    guessing = float(shares.mean()) if len(shares) else 0.0
    text = (
        f"Mean average precision is {share(precision)} on {counted(evaluation.images, 'image')} of {evaluation.split}; "
        f"guessing reaches {share(guessing)}. {share(evaluated.exact)} of the images get exactly their labels."
    )
    if precision <= _NO_BETTER * guessing:
        text += " The model is hardly better than guessing."
        fix = "Try another learning rate or more epochs, and check the dataset's report."
        return Finding(Severity.ERROR, "no-better-than-guessing", text, fix, "classes")
    return Finding(Severity.OK if precision >= _GOOD else Severity.NOTE, "mean-average-precision", text, "", "classes")


def _generalization(history: History, evaluated: LabelEvaluated) -> Iterator[Finding]:
    evaluation = evaluated.evaluation
    score, precision = history.task.score, evaluation.quality[history.task.score]
    weights = (evaluation.step, evaluation.checkpoint)
    validation = history.newest_result("validation", *weights)
    is_of_same = validation and (validation.step, validation.checkpoint) == weights
    if evaluation.split not in ("train", "validation") and validation and is_of_same:
        drop = validation.quality[score] - precision
        if drop > _SHIFT:
            text = (
                f"Mean average precision is {share(validation.quality[score])} on validation and {share(precision)} on "
                f"{evaluation.split}, {counted(round(100 * drop), 'point')} lower: these images may come from another "
                "distribution than the training images."
            )
            fix = f"Add training images that resemble {evaluation.split}."
            yield Finding(Severity.WARNING, "distribution-shift", text, fix, "errors")
    training = history.last_values("train", evaluation.step).get(f"quality/{score}")
    if training is None or evaluation.split == "train":
        return
    gap = training - precision
    both = f"mean average precision is {share(training)} on augmented training images and {share(precision)} on "
    both += evaluation.split
    if gap > OVERFITTING_GAP:
        text = f"The model overfits: {both}, a gap of {counted(round(100 * gap), 'point')}."
        fix = "Try more images, stronger augmentation, a smaller model or fewer epochs."
        yield Finding(Severity.WARNING, "overfitting", text, fix, "curves")
    else:
        yield Finding(Severity.OK, "generalization", f"Little or no overfitting: {both}.", section="curves")


def _classes(history: History, evaluated: LabelEvaluated) -> Iterator[Finding]:
    scores = evaluated.scores
    names = [shown(name, _NAME_LENGTH) for name in history.class_names]
    undetected = np.flatnonzero((scores.actual > 0) & (scores.hits == 0))
    if len(undetected):
        have = counted(len(undetected), "class has", "classes have")
        text = f"{have} a recall of 0, for example “{names[undetected[0]]}”."
        fix = "Add images of these classes, check their labels, or train with --config.loss.class_weights=balanced."
        yield Finding(Severity.WARNING, "zero-recall", text, fix, "classes")
    missing = np.flatnonzero(scores.actual == 0)
    if len(missing):
        split = evaluated.evaluation.split
        text = f"{split} has no images of {counted(len(missing), 'class', 'classes')}: not evaluated."
        yield Finding(Severity.NOTE, "missing-classes", text, section="classes")
