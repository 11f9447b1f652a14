"""Advice during training: findings that the user can act on, each shown when its condition begins.

Before the first step: classes without images, a scaled learning rate. At log lines: input wait. At evaluations: no
improvement, overfitting.
"""

import numpy as np

from convoy.core.finding import Finding, Severity
from convoy.core.text import counted, joined
from convoy.core.thresholds import INPUT_BOUND_PCT, OVERFITTING_GAP
from convoy.input_pipeline.dataset.views import View
from convoy.trainer.callbacks.callback import Callback, Evaluation, Log, Training
from convoy.trainer.config import resolution
from convoy.trainer.run.task import capitalized

_PATIENCE = 5  # evaluations
_INPUT_BOUND_LINES = 2  # consecutive log lines: a single slow one may be noise
_SHOWN_CLASSES = 5
_AUGMENTATION = "crop(scale=0.7..1) | flip | contrast(0.5) | saturation(0.7)"
_FIRST_EPOCHS = 3
_FIRST_SHARE = 0.1  # of the run's steps


class Advice(Callback):
    """Watches the measurements of a run and shows findings."""

    def __init__(self):
        """Shows nothing yet."""
        self._train_score: float | None = None
        self._input_bound_lines = 0
        self._best_score = -1.0
        self._evaluations_since_best = 0
        self._overfitting_shown = False

    def on_start(self, training: Training) -> None:
        """Shows what is known before the first step."""
        session = training.session
        self._config, self._plan, self._dataset, self._show = (
            session.config,
            session.plan,
            session.dataset,
            training.say,
        )
        self._task = session.objective.task
        plan, is_converted = self._plan, bool(self._dataset.manifest)
        side, resize = self._dataset.manifest.get("settings", {}).get("image_size"), self._config.resize
        if side and resize != "squash":
            text = f"config.resize={resize} has no effect: `convoy convert --image_size={side}` made all images square."
            fix = "Convert them again without --image_size to keep their aspect ratio."
            self._show(Finding(Severity.WARNING, "resize-has-no-effect", text, fix))
        more_validation = "Convert with a larger --validation_fraction." if is_converted else ""
        if isinstance(self._dataset, View) and self._dataset.folds:
            more_validation = "Pass fewer --folds, or add images of these classes."
        for split_name, consequence, fix in (
            (
                "train",
                "the model cannot learn them",
                "Add images of these classes or leave the classes out, and convert again." if is_converted else "",
            ),
            ("validation", "they are not evaluated", more_validation),
        ):
            if split_name not in self._dataset.splits:
                continue
            counts = self._dataset.split(split_name).class_counts(self._dataset.num_classes)
            empty = [self._dataset.class_names[k] for k in np.flatnonzero(counts == 0)]
            if empty:
                more = ", ..." if len(empty) > _SHOWN_CLASSES else ""
                text = (
                    f"{len(empty)} of {counted(self._dataset.num_classes, 'class', 'classes')} without images in "
                    f"{split_name} ({', '.join(map(repr, empty[:_SHOWN_CLASSES]))}{more}): {consequence}."
                )
                self._show(Finding(Severity.WARNING, f"missing-classes-{split_name}", text, fix))
        if plan.global_batch_size > plan.num_images:
            text = (
                f"A batch of {counted(plan.global_batch_size, 'image')} is larger than the dataset: each of its "
                f"images is in it more than once on average ({counted(plan.num_images, 'training image')})."
            )
            fix = f"Pass --config.batch_size={1 << max(0, plan.num_images.bit_length() - 2)} or less."
            self._show(Finding(Severity.WARNING, "batch-larger-than-data", text, fix))
        schedule, rate = self._config.schedule, self._config.optimizer.learning_rate
        if plan.peak_learning_rate != rate:
            text = (
                f"The learning rate is scaled from {rate:g} to {plan.peak_learning_rate:g} ({schedule.scaling} "
                f"scaling): the global batch size is {plan.global_batch_size}, the reference batch size "
                f"{schedule.reference_batch_size}."
            )
            fix = "Pass --config.schedule.scaling=none to keep it unscaled."
            self._show(Finding(Severity.NOTE, "scaled-learning-rate", text, fix))

    def on_log(self, training: Training, log: Log) -> None:
        """Checks the input wait of a log line."""
        self._train_score = log.values[f"quality/{self._task.score}"]
        wait_pct = log.values["perf/input_wait_pct"]
        self._input_bound_lines = self._input_bound_lines + 1 if wait_pct > INPUT_BOUND_PCT else 0
        if self._input_bound_lines == _INPUT_BOUND_LINES:
            text = f"Training waits for images {wait_pct:.0f} % of the time (threshold {INPUT_BOUND_PCT:.0f} %)."
            fix = f"Try {joined(log.input_fixes, 'or')}."
            self._show(Finding(Severity.WARNING, "input-bound", text, fix))

    def on_evaluation(self, training: Training, evaluation: Evaluation) -> None:
        """Checks an evaluation on validation images.

        Overfitting is not reported in the first 3 epochs or the first tenth of the run, whichever is longer, nor in a
        stage whose training images are smaller than those of the last stage and of evaluation
        (`config.progressive.sizes`): there the gap also comes from the change of size.
        """
        step, train_score, title = evaluation.step, self._train_score, self._task.score_title
        score = evaluation.metrics[self._task.score]
        if evaluation.best_score > self._best_score:
            self._best_score, self._evaluations_since_best = evaluation.best_score, 0
        else:
            self._evaluations_since_best += 1
            if self._evaluations_since_best == _PATIENCE:
                best = f"{evaluation.best_score:.2%}"
                text = f"Validation {title} has not exceeded its best, {best}, for {_PATIENCE} evaluations."
                fix = (
                    "Stop with Ctrl-C if it stays so: the best checkpoint is kept. For the next run try "
                    "--config.early_stopping.patience=5, fewer --config.epochs or a lower "
                    "--config.optimizer.learning_rate."
                )
                self._show(Finding(Severity.WARNING, "no-improvement", text, fix))
        if train_score is None or not self._gap_is_meaningful(step):
            return
        gap = train_score - score
        if gap > OVERFITTING_GAP and not self._overfitting_shown:
            text = (
                f"{capitalized(title)} is {train_score:.1%} on training images and {score:.1%} on validation images, a "
                f"gap of {100 * gap:.0f} points (threshold {100 * OVERFITTING_GAP:.0f}): the model may be overfitting."
            )
            self._show(
                Finding(Severity.WARNING, "overfitting", text, f"Try {joined(self._overfitting_fixes(), 'or')}.")
            )
        # Shown again only after the gap has halved: near the threshold it fluctuates.
        self._overfitting_shown = gap > OVERFITTING_GAP or (self._overfitting_shown and gap > OVERFITTING_GAP / 2)

    def _gap_is_meaningful(self, step: int) -> bool:
        config, plan = self._config, self._plan
        if step < max(_FIRST_EPOCHS * plan.steps_per_epoch, _FIRST_SHARE * plan.total_steps):
            return False
        size = resolution.stage_at(config, plan.total_steps, step - 1).size
        return size >= min(config.image_size, resolution.evaluation_size(config))

    def _overfitting_fixes(self) -> list[str]:
        config, plan = self._config, self._plan
        fixes = [f"--config.augment.ops='{_AUGMENTATION}'"] * (not config.augment.ops)
        fixes += ["--config.optimizer.weight_decay=0.05"] * (plan.weight_decay == 0)
        return [*fixes, "more images"]
