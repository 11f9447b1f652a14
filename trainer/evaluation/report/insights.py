"""What a run comes to, in a sentence each: how good it is, what holds it back, what to try.

derive_insights(history, evaluated)     # [Insight("odd", "It overfits: ...", advice="more images, ...", section="curves")]
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convoy.core.html.templates import shown
from convoy.core.text import counted, share
from convoy.core.thresholds import INPUT_BOUND_PCT, OVERFITTING_GAP
from convoy.trainer.evaluation.predictions import Evaluation
from convoy.trainer.evaluation.report import analysis
from convoy.trainer.evaluation.report.analysis import ByClass, Pair, Reliability
from convoy.trainer.evaluation.report.history import History

_SHIFT_POINTS = 5  # between validation and another split
_MISCALIBRATED = 0.05  # expected calibration error
_WIDE_INTERVAL = 0.1
_GOOD = 0.9  # top-1
_MANY_IMAGES = 10
_MOST_LABEL_ERRORS = 0.1  # of a split's images: data sets that people trained on have less
_UNDERFITTED = 0.6  # top-1 in training below which a run has not learnt what it was shown
_LEVELS = ("bad", "odd", "note", "fine")
_NAME_LENGTH = 40


@dataclass(frozen=True)
class Insight:
    """Something to know: `level` is one of `_LEVELS`, `advice` what to try, `section` where the page has more of it."""

    level: str
    text: str
    section: str
    advice: str = ""


@dataclass(frozen=True)
class Evaluated:
    """An evaluation and what its predictions tell (`analysis`)."""

    evaluation: Evaluation
    classes: ByClass
    pairs: Sequence[Pair]
    reliability: Reliability
    label_errors: np.ndarray

    @property
    def too_weak_to_doubt(self) -> bool:
        """Whether the model disagrees with so many labels that most will be right."""
        return len(self.label_errors) > _MOST_LABEL_ERRORS * self.evaluation.images


def derive_insights(history: History, evaluated: Evaluated | None) -> list[Insight]:
    """Returns what there is to say: how good it is, then the rest, the worst first."""
    first, insights = [], [*_of_training(history), *_of_speed(history)]
    if evaluated:
        first = [_of_quality(history, evaluated)]
        insights += [*_of_gaps(history, evaluated.evaluation), *_of_predictions(history, evaluated)]
    return first + sorted(insights, key=lambda insight: _LEVELS.index(insight.level))


def training_quality(history: History, step: int) -> tuple[float, str] | None:
    """Returns top-1 on the training images and how it was measured, where it was."""
    row = history.newest_result("train", step)
    if row and row.step == step:
        return row.quality["top1"], "on the training images"
    top1 = history.last_values("train", step).get("quality/top1")
    return (top1, "on the training images as they were augmented") if top1 is not None else None


def _of_quality(history: History, evaluated: Evaluated) -> Insight:
    evaluation = evaluated.evaluation
    top1, images = evaluation.quality["top1"], evaluation.images
    low, high = analysis.interval(round(top1 * images), images)
    largest = evaluated.classes.support.max() / images
    text = (
        f"{share(top1)} of the {counted(images, 'image')} of {evaluation.split} are classified right "
        f"(95 % interval {share(low)} to {share(high)}). "
    )
    if largest == 1 and len(history.class_names) > 1:
        text += "All are of one class: that does not tell whether it has learnt anything."
        return Insight("odd", text, "classes", "evaluating on images of every class")
    text += f"Always saying the largest class would give {share(largest)}."
    if low <= largest and len(history.class_names) > 1:
        if top1 > largest:
            text += " So few images do not tell whether it has learnt anything."
            return Insight("bad", text, "classes", "evaluating on more images, training longer")
        text += " It has learnt nothing."
        return Insight("bad", text, "classes", "another learning rate, more epochs, a look at the data's report")
    advice = "evaluating on more images, to know it better" if high - low > _WIDE_INTERVAL else ""
    return Insight("fine" if top1 >= _GOOD else "note", text, "classes", advice)


def _of_gaps(history: History, evaluation: Evaluation) -> list[Insight]:
    step, split, top1 = evaluation.step, evaluation.split, evaluation.quality["top1"]
    insights = []
    unseen, on_unseen = split, top1
    validation = history.newest_result("validation", step)
    if validation and validation.step == step and split != "validation":
        unseen, on_unseen = "validation", validation.quality["top1"]
        shift = 100 * (on_unseen - top1)
        if split != "train" and shift > _SHIFT_POINTS:
            text = (
                f"{share(on_unseen)} are right in validation and {share(top1)} in {split}: {shift:.0f} points less. "
                f"The images of {split} differ from those it was trained on in more than being new."
            )
            insights.append(
                Insight("odd", text, "mistakes", f"training images that are more like {split}, more augmentation")
            )
    training = training_quality(history, step)
    if not training or unseen == "train":
        return insights
    gap = 100 * (training[0] - on_unseen)
    seen = f"{share(training[0])} {training[1]}, {share(on_unseen)} in {unseen}"
    if gap > 100 * OVERFITTING_GAP:
        text = f"It overfits: {seen}, a gap of {gap:.0f} points."
        advice = (
            "more images, stronger config.augment, more config.optimizer.weight_decay, a smaller model, fewer epochs"
        )
        insights.append(Insight("odd", text, "curves", advice))
    elif max(training[0], on_unseen) < _UNDERFITTED:  # augmented training images may be far harder
        text = f"It underfits: {seen}. It has not learnt what it was shown."
        advice = "more epochs, a higher config.optimizer.learning_rate, a larger model, weaker config.augment"
        insights.append(Insight("odd", text, "curves", advice))
    else:
        words = f"a gap of {counted(round(gap), 'point')}" if gap > 0.5 else "no gap"
        insights.append(Insight("fine", f"It does not overfit much: {seen}, {words}.", "curves"))
    return insights


def _of_predictions(history: History, evaluated: Evaluated) -> list[Insight]:
    evaluation, classes, calibration = evaluated.evaluation, evaluated.classes, evaluated.reliability
    names = [shown(name, _NAME_LENGTH) for name in history.class_names]
    insights = []
    never = np.flatnonzero((classes.support > 0) & (classes.hits == 0))
    if len(never):
        text = f"{counted(len(never), 'class is', 'classes are')} never found, “{names[never[0]]}” for one."
        insights.append(Insight("odd", text, "classes", "more images of them, a look at their labels"))
    missing = np.flatnonzero(classes.support == 0)
    if len(missing):
        text = f"{evaluation.split} has no image of {counted(len(missing), 'class', 'classes')}: nothing tells of them."
        insights.append(Insight("note", text, "classes"))
    excess = classes.predicted - 2 * classes.support
    if len(excess) > 2 and excess.max() > _MANY_IMAGES:
        label = int(excess.argmax())
        text = (
            f"{classes.predicted[label]} images are called “{names[label]}”; {classes.support[label]} are labelled so."
        )
        insights.append(
            Insight("odd", text, "confusion", "a look at what they have in common: background, colours, shape")
        )
    if evaluated.pairs and evaluated.pairs[0].images > 2:
        pair = evaluated.pairs[0]
        text = (
            f"Most often confused: {pair.images} of {classes.support[pair.label]} images of “{names[pair.label]}” are "
            f"taken for “{names[pair.predicted]}”."
        )
        insights.append(Insight("note", text, "confusion"))
    errors = len(evaluated.label_errors)
    if errors and not evaluated.too_weak_to_doubt:
        found = f"{counted(errors, 'image')} ({share(errors / evaluation.images)})"
        text = f"{found} may have wrong labels, or be confident mistakes: the model is sure of another class."
        insights.append(Insight("note", text, "labels", "looking at them, and mending the labels that are wrong"))
    ece, over = evaluation.quality["ece"], calibration.overconfidence
    if ece > _MISCALIBRATED:
        sure = "too sure of itself" if over > 0 else "less sure than it could be"
        text = f"It is {sure}: its probabilities are off by {share(ece)} on average (ECE)."
        advice = (
            "config.label_smoothing, temperature scaling"
            if over > 0
            else "less config.label_smoothing, longer training"
        )
        insights.append(Insight("note", text, "confidence", advice))
    else:
        insights.append(
            Insight("fine", f"Its probabilities can be taken at their word (ECE {share(ece)}).", "confidence")
        )
    return insights


def _of_training(history: History) -> list[Insight]:
    insights = []
    if history.result is None:
        where = f"at step {history.last_step}" if history.metrics else "before its first steps"
        insights.append(Insight("note", f"The run is not done: this page shows it {where}.", "curves"))
    _, top1 = history.curve("validation", "quality/top1")
    _, loss = history.curve("validation", "quality/loss")
    if len(top1) >= 5 and history.result is not None and top1[-1] - top1[: -len(top1) // 5].max() > 0.01:
        insights.append(
            Insight("note", "Validation was still getting better when the run ended.", "curves", "more epochs")
        )
    if len(loss) >= 5 and loss.argmin() < 0.7 * len(loss) and loss[-1] > 1.1 * loss.min():
        text = (
            f"The validation loss rose from {loss.min():.2f} to {loss[-1]:.2f} after evaluation {loss.argmin() + 1} of "
            f"{len(loss)}."
        )
        insights.append(
            Insight("odd", text, "curves", "fewer epochs; the best checkpoint is kept and used in any case")
        )
    failures = [event for event in history.events if event["event"] in ("diverged", "checkpoint_failed")]
    if failures:
        kinds = ", ".join(sorted({event["event"] for event in failures}))
        text = f"Something went wrong {counted(len(failures), 'time')}: {kinds}."
        insights.append(Insight("odd", text, "run", "a look into events.jsonl"))
    return insights


def _of_speed(history: History) -> list[Insight]:
    limits = (history.result or {}).get("limits") or {}
    if sentence := str(limits.get("sentence") or ""):
        level = "fine" if limits.get("bound") == "compute" else "odd"
        return [Insight(level, f"{sentence[0].upper()}{sentence[1:].rstrip('.')}.", "speed")]
    waits = history.last_values("train").get("perf/input_wait_pct")
    if waits is None:
        return []
    if waits > INPUT_BOUND_PCT:
        text = f"It is input-bound: {waits:.0f} % of the time it waited for images."
        advice = "config.cache=auto or memory, convoy convert with --encoding=raw or a smaller --image_size, more cores"
        return [Insight("odd", text, "speed", advice)]
    return [Insight("fine", f"It is not input-bound: {waits:.1f} % of the time it waited for images.", "speed")]
