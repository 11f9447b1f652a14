"""The findings of a run's report: how good the model is, what limits it, what to try.

evaluated = Evaluated.of(evaluation, predictions, num_classes)
derive_insights(history, evaluated)     # [Finding(Severity.WARNING, "overfitting", "The model overfits: ...", ...)]

The section of a finding is the id of the page's section with the details.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from convoy.core.finding import Finding, Severity
from convoy.core.html.templates import shown
from convoy.core.text import counted, joined, share
from convoy.core.thresholds import INPUT_BOUND_PCT, OVERFITTING_GAP
from convoy.trainer.evaluation.predictions import Evaluation, Predictions
from convoy.trainer.evaluation.report import analysis
from convoy.trainer.evaluation.report.analysis import ByClass, Pair, Reliability
from convoy.trainer.evaluation.report.history import History
from convoy.trainer.evaluation.report.label_insights import label_insights
from convoy.trainer.evaluation.report.label_section import LabelEvaluated

_SHIFT = 0.02  # between validation and another split: a smaller difference does not matter
_SOME_GAP = 0.05  # between training and unseen images
_MISCALIBRATED = 0.05  # expected calibration error
_WIDE_INTERVAL = 0.1
_GOOD = 0.9  # top-1
_MANY_IMAGES = 10
_MOST_LABEL_ERRORS = 0.1  # of a split's images; datasets in use have fewer
_UNDERFITTED = 0.6  # training top-1
_NAME_LENGTH = 40


@dataclass(frozen=True)
class Evaluated:
    """An evaluation and the analysis of its predictions."""

    evaluation: Evaluation
    predictions: Predictions
    classes: ByClass
    pairs: Sequence[Pair]
    reliability: Reliability
    label_errors: np.ndarray

    @classmethod
    def of(cls, evaluation: Evaluation, predictions: Predictions, num_classes: int) -> "Evaluated":
        """Analyses the predictions of an evaluation."""
        return cls(
            evaluation=evaluation,
            predictions=predictions,
            classes=analysis.by_class(predictions, num_classes),
            pairs=analysis.confused_pairs(predictions),
            reliability=analysis.reliability(predictions),
            label_errors=analysis.likely_label_errors(predictions, num_classes),
        )

    @property
    def label_errors_unreliable(self) -> bool:
        """Whether the model disagrees with so many labels that most of them are probably right."""
        return len(self.label_errors) > _MOST_LABEL_ERRORS * self.evaluation.images


AnyEvaluated = Evaluated | LabelEvaluated


def derive_insights(history: History, evaluated: AnyEvaluated | None) -> list[Finding]:
    """Returns the findings on a run: its accuracy first, then the others, the most serious first."""
    first: list[Finding] = []
    findings = [*_training(history), *_speed(history)]
    findings += history.learning_curve.findings() if history.learning_curve else []
    if isinstance(evaluated, LabelEvaluated):
        score, *others = label_insights(history, evaluated)
        first, findings = [score], [*findings, *others]
    elif evaluated:
        first = [_accuracy(history, evaluated)]
        findings += [*_generalization(history, evaluated.evaluation), *_predictions(history, evaluated)]
    return first + sorted(findings, key=lambda finding: finding.severity.rank)


def training_quality(history: History, step: int, checkpoint: str = "") -> tuple[float, str] | None:
    """Returns top-1 of weights on the training images, and how it was measured; None if it was not measured."""
    row = history.newest_result("train", step, checkpoint)
    if row and (row.step, row.checkpoint) == (step, checkpoint):
        return row.quality["top1"], "on training images"
    top1 = history.last_values("train", step).get("quality/top1")
    return (top1, "on augmented training images") if top1 is not None else None


def _accuracy(history: History, evaluated: Evaluated) -> Finding:
    evaluation = evaluated.evaluation
    top1, images = evaluation.quality["top1"], evaluation.images
    low, high = analysis.interval(round(top1 * images), images)
    largest = evaluated.classes.support.max() / images
    text = (
        f"Top-1 is {share(top1)} on {counted(images, 'image')} of {evaluation.split} "
        f"(95 % confidence interval {share(low)} to {share(high)})."
    )
    if largest == 1 and len(history.class_names) > 1:
        text += " All images are of one class, so this says nothing about the model's ability to classify."
        return Finding(Severity.WARNING, "single-class-split", text, "Evaluate on images of every class.", "classes")
    text += f" The majority-class baseline is {share(largest)}."
    if low <= largest and len(history.class_names) > 1:
        if top1 > largest:
            text += " The difference is not significant for this number of images."
            fix = "Evaluate on more images, or train longer."
            return Finding(Severity.ERROR, "not-significant", text, fix, "classes")
        text += " The model is no better than the majority-class baseline."
        fix = "Try another learning rate or more epochs, and check the dataset's report."
        return Finding(Severity.ERROR, "no-better-than-majority", text, fix, "classes")
    fix = "Evaluate on more images for a narrower interval." if high - low > _WIDE_INTERVAL else ""
    return Finding(Severity.OK if top1 >= _GOOD else Severity.NOTE, "accuracy", text, fix, "classes")


def _generalization(history: History, evaluation: Evaluation) -> Iterator[Finding]:
    weights, split, top1 = (evaluation.step, evaluation.checkpoint), evaluation.split, evaluation.quality["top1"]
    unseen, unseen_top1, images, shifted = split, top1, evaluation.images, False
    validation = history.newest_result("validation", *weights)
    if validation and (validation.step, validation.checkpoint) == weights and split != "validation":
        unseen, unseen_top1 = "validation", validation.quality["top1"]
        images = history.dataset.get("validation_images", evaluation.images)
        validated = (unseen_top1, history.dataset.get("validation_images", evaluation.images))
        low, high = analysis.difference_interval(validated, (top1, evaluation.images))
        shifted = split != "train" and low > _SHIFT
        if shifted:
            text = (
                f"Top-1 is {share(unseen_top1)} on validation and {share(top1)} on {split}, "
                f"{counted(round(100 * (unseen_top1 - top1)), 'point')} lower (95 % confidence interval "
                f"{100 * low:.0f} to {100 * high:.0f}). The images of {split} come from another distribution than the "
                "training images."
            )
            fix = f"Add training images that resemble {split}, or {_stronger_augmentation(history)}."
            yield Finding(Severity.WARNING, "distribution-shift", text, fix, "errors")
    training = training_quality(history, *weights)
    if not training or unseen == "train":
        return
    gap = 100 * (training[0] - unseen_top1)
    least_gap = training[0] - analysis.interval(round(unseen_top1 * images), images)[1]
    both = f"top-1 is {share(training[0])} {training[1]} and {share(unseen_top1)} on {unseen}"
    if gap > 100 * OVERFITTING_GAP and least_gap > _SOME_GAP:
        text = f"The model overfits: {both}, a gap of {counted(round(gap), 'point')}."
        fix = f"Try more images, or {_stronger_augmentation(history)}, or a smaller model or fewer epochs."
        yield Finding(Severity.WARNING, "overfitting", text, fix, "curves")
    elif gap > 100 * _SOME_GAP:
        text = f"The model may overfit somewhat: {both}, a gap of {counted(round(gap), 'point')}"
        few = f", on {counted(images, 'image')}, too few to tell" if least_gap <= _SOME_GAP else ""
        yield Finding(Severity.NOTE, "some-overfitting", f"{text}{few}.", section="curves")
    elif max(training[0], unseen_top1) < _UNDERFITTED:  # augmented training images may be much harder
        text = f"The model underfits: {both}."
        weaker = " or weaker config.augment.ops" if history.config.get("augment", {}).get("ops") else ""
        fix = f"Try more epochs, a higher config.optimizer.learning_rate, a larger model{weaker}."
        yield Finding(Severity.WARNING, "underfitting", text, fix, "curves")
    elif not shifted:
        gap_text = f"a gap of {counted(round(gap), 'point')}" if gap > 0.5 else "no gap"
        text = f"Little or no overfitting: {both}, {gap_text}."
        yield Finding(Severity.OK, "generalization", text, section="curves")


def _stronger_augmentation(history: History) -> str:
    """Returns advice on augmentation and regularization that the run does not follow already."""
    config = history.config
    ops, optimizer = config.get("augment", {}).get("ops"), config.get("optimizer", {})
    mixes = any(config.get("mix", {}).get(name) for name in ("mixup", "cutmix"))
    advice = [
        "stronger config.augment.ops" if ops else "augmentation (--config.augment.ops='crop(scale=0.7..1) | flip')"
    ]
    advice += [] if mixes else ["--config.mix.mixup=0.2"]
    advice += (
        []
        if optimizer.get("weight_decay") or optimizer.get("weight_decay_per_run")
        else ["--config.optimizer.weight_decay=0.05"]
    )
    return joined(advice, "or")


def _predictions(history: History, evaluated: Evaluated) -> Iterator[Finding]:
    evaluation, classes, calibration = evaluated.evaluation, evaluated.classes, evaluated.reliability
    names = [shown(name, _NAME_LENGTH) for name in history.class_names]
    undetected = np.flatnonzero((classes.support > 0) & (classes.hits == 0))
    if len(undetected):
        text = (
            f"{counted(len(undetected), 'class has', 'classes have')} a recall of 0, for example "
            f"“{names[undetected[0]]}”."
        )
        fix = "Add images of these classes and check their labels."
        yield Finding(Severity.WARNING, "zero-recall", text, fix, "classes")
    missing = np.flatnonzero(classes.support == 0)
    if len(missing):
        text = f"{evaluation.split} has no images of {counted(len(missing), 'class', 'classes')}: not evaluated."
        yield Finding(Severity.NOTE, "missing-classes", text, section="classes")
    excess = classes.predicted - 2 * classes.support
    if len(excess) > 2 and excess.max() > _MANY_IMAGES:
        label = int(excess.argmax())
        text = (
            f"“{names[label]}” is predicted for {counted(int(classes.predicted[label]), 'image')}, and "
            f"{classes.support[label]} have that label."
        )
        fix = "Check what these images have in common: background, colors, shape."
        yield Finding(Severity.WARNING, "overpredicted-class", text, fix, "confusion")
    if evaluated.pairs and evaluated.pairs[0].images > 2:
        pair = evaluated.pairs[0]
        text = (
            f"Most confused pair: {pair.images} of {classes.support[pair.label]} images of “{names[pair.label]}” are "
            f"classified as “{names[pair.predicted]}”."
        )
        yield Finding(Severity.NOTE, "confused-pair", text, section="confusion")
    errors = len(evaluated.label_errors)
    if errors and not evaluated.label_errors_unreliable:
        text = (
            f"{counted(errors, 'image')} ({share(errors / evaluation.images)}) may have a wrong label: the model "
            "confidently predicts another class."
        )
        yield Finding(Severity.NOTE, "label-errors", text, "Check them and fix the wrong labels.", "labels")
    ece, over = evaluation.quality["ece"], calibration.overconfidence
    if ece <= _MISCALIBRATED:
        text = f"The model is well calibrated (ECE {share(ece)})."
        yield Finding(Severity.OK, "calibrated", text, section="calibration")
    elif over > 0:
        text = f"The model is overconfident: the expected calibration error (ECE) is {share(ece)}."
        fix = "Use the probabilities with care. " + _calibration_advice(evaluation, "harder")
        yield Finding(Severity.NOTE, "overconfident", text, fix, "calibration")
    else:
        text = f"The model is underconfident: the expected calibration error (ECE) is {share(ece)}."
        fix = _calibration_advice(evaluation, "easier")
        yield Finding(Severity.NOTE, "underconfident", text, fix, "calibration")


def _calibration_advice(evaluation: Evaluation, kind: str) -> str:
    if not evaluation.temperature:
        return "`convoy evaluate --split=validation` fits a temperature to them."
    if evaluation.split == "validation":
        return "More validation images would fit their temperature better."
    return f"Their temperature fits the validation split, and the images of {evaluation.split} are {kind}."


def _training(history: History) -> Iterator[Finding]:
    if history.result is None:
        progress = f"at step {history.last_step}" if history.metrics else "before its first log line"
        text = f"The run is not finished; this page shows it {progress}."
        section = "curves" if history.metrics else "run"
        yield Finding(Severity.NOTE, "unfinished", text, section=section)
    _, score = history.curve("validation", f"quality/{history.task.score}")
    _, loss = history.curve("validation", "quality/loss")
    images = history.dataset.get("validation_images", 0)
    if history.result is not None and analysis.still_improves(score, images):
        text = f"Validation {history.task.score_title} was still improving when the run ended."
        yield Finding(
            Severity.NOTE, "still-improving", text, "Train for more epochs: --extend continues this run.", "curves"
        )
    if len(loss) >= 5 and loss.argmin() < 0.7 * len(loss) and loss[-1] > 1.1 * loss.min():
        text = (
            f"The validation loss rose from {loss.min():.2f} to {loss[-1]:.2f} after evaluation {loss.argmin() + 1} of "
            f"{len(loss)}."
        )
        fix = "Train for fewer epochs. The best checkpoint is kept and used by default."
        yield Finding(Severity.WARNING, "validation-loss-rises", text, fix, "curves")
    failures = [event for event in history.events if event["event"] in ("diverged", "checkpoint_failed")]
    if failures:
        kinds = ", ".join(sorted({event["event"] for event in failures}))
        text = f"{counted(len(failures), 'failure')} during training: {kinds}."
        yield Finding(Severity.WARNING, "training-failures", text, "See events.jsonl.", "run")


def _speed(history: History) -> Iterator[Finding]:
    limits = (history.result or {}).get("limits") or {}
    if sentence := str(limits.get("sentence") or ""):
        bound = str(limits.get("bound") or "compute")
        severity = Severity.OK if limits.get("bound") == "compute" else Severity.WARNING
        text = f"{sentence[0].upper()}{sentence[1:].rstrip('.')}."
        yield Finding(severity, f"{bound}-bound", text, section="speed")
        return
    wait_pct = history.last_values("train").get("perf/input_wait_pct")
    if wait_pct is None:
        return
    if wait_pct > INPUT_BOUND_PCT:
        text = f"Input-bound: {wait_pct:.0f} % of step time is spent waiting for images."
        cache = "" if history.config.get("cache") in ("memory", "disk") else "--config.cache=memory, "
        fix = f"Try {cache}`convoy convert` with --encoding=raw or a smaller --image_size, or more CPU cores."
        yield Finding(Severity.WARNING, "input-bound", text, fix, "speed")
    else:
        text = f"Not input-bound: {wait_pct:.1f} % of step time is spent waiting for images."
        yield Finding(Severity.OK, "not-input-bound", text, section="speed")
