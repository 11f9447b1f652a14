"""What a person should know of a run and can do something about: each told once, or each time when it begins.

advice = Advice(config, dataset, say=console.say)
advice.start(plan)                                                   # classes without images, a scaled learning rate
advice.logged(31.0, ["--config.cache=memory"])                       # input wait
advice.evaluated(train_top1=0.95, top1=0.61, best_top1=0.63)

Every piece names its number and a mend.
"""

from collections.abc import Callable, Sequence

import ml_collections
import numpy as np

from convoy.core.thresholds import INPUT_BOUND_PCT, OVERFITTING_GAP
from convoy.input_pipeline.dataset.open import Dataset
from convoy.trainer.callbacks.bottleneck import any_of
from convoy.trainer.config import Plan

_PATIENCE = 5  # evaluations
_WAITING_LINES = 2  # one alone may have had bad luck
_SHOWN_CLASSES = 5
_LINE = "crop(scale=0.7..1) | flip | contrast(0.5) | saturation(0.7)"


class Advice:
    """Looks at what is measured, and says a line where something is amiss."""

    def __init__(self, config: ml_collections.ConfigDict, dataset: Dataset, *, say: Callable[[str], None]):
        """Says nothing yet.

        Args:
          config: complete.
          dataset: trained on.
          say: shows a line.
        """
        self._config = config
        self._dataset = dataset
        self._say = say
        self._waiting_lines = 0
        self._evaluations_since_best = 0
        self._gap_is_told = False

    def start(self, plan: Plan) -> None:
        """Tells what is known before the first step."""
        for split_name, consequence in (
            ("train", "they can never be learnt. Add images of them and convert again, or leave the classes out."),
            ("validation", "no metric tells of them. Convert with a larger --validation_fraction."),
        ):
            if split_name not in self._dataset.splits:
                continue
            counts = np.bincount(self._dataset.split(split_name).label, minlength=self._dataset.num_classes)
            empty = [self._dataset.class_names[k] for k in np.flatnonzero(counts == 0)]
            if empty:
                more = ", ..." if len(empty) > _SHOWN_CLASSES else ""
                self._say(
                    f"Warning: {len(empty)} of {self._dataset.num_classes} classes have no images in {split_name} "
                    f"({', '.join(map(repr, empty[:_SHOWN_CLASSES]))}{more}): {consequence}"
                )
        schedule, rate = self._config.schedule, self._config.optimizer.learning_rate
        if plan.peak_learning_rate != rate:
            self._say(
                f"Note: the learning rate is scaled from {rate:g} to {plan.peak_learning_rate:g} "
                f"({schedule.scaling}): the batch is {plan.global_batch_size}, and it was given for "
                f"{schedule.reference_batch_size}. --config.schedule.scaling=none keeps it as it is."
            )

    def logged(self, input_wait_pct: float, fixes: Sequence[str]) -> None:
        """Takes the share of the time that the steps of one line have waited for input.

        Args:
          input_wait_pct: in percent.
          fixes: what would make input faster.
        """
        self._waiting_lines = self._waiting_lines + 1 if input_wait_pct > INPUT_BOUND_PCT else 0
        if self._waiting_lines == _WAITING_LINES:
            self._say(
                f"Warning: training waits for images for {input_wait_pct:.0f} % of the time (over {INPUT_BOUND_PCT:.0f} %). "
                f"Try {any_of(fixes)}."
            )

    def evaluated(self, *, train_top1: float | None, top1: float, best_top1: float | None) -> None:
        """Takes an evaluation on validation images.

        Args:
          train_top1: of the training images of the last line; None where there was none.
          top1: of the validation images.
          best_top1: of all evaluations before this one; None where there were none.
        """
        is_best = best_top1 is None or top1 > best_top1
        self._evaluations_since_best = 0 if is_best else self._evaluations_since_best + 1
        if self._evaluations_since_best == _PATIENCE:
            self._say(
                f"Warning: validation top-1 has been no better than its best, {best_top1:.2%}, for {_PATIENCE} "
                "evaluations. Ctrl-C ends the run, and the best checkpoint stays; a next one may want fewer "
                "--config.epochs or a lower --config.optimizer.learning_rate."
            )
        gap = 0.0 if train_top1 is None else train_top1 - top1
        if gap > OVERFITTING_GAP and not self._gap_is_told:
            self._say(
                f"Warning: top-1 is {train_top1:.1%} on training images and {top1:.1%} on validation images, "
                f"{100 * gap:.0f} points apart (over {100 * OVERFITTING_GAP:.0f}): it may be learning them by heart. "
                f"Try {any_of(self._gap_fixes())}."
            )
        # Told again only after it had closed well: near the limit it goes to and fro.
        self._gap_is_told = gap > OVERFITTING_GAP or (self._gap_is_told and gap > OVERFITTING_GAP / 2)

    def _gap_fixes(self) -> list[str]:
        config = self._config
        fixes = [f"--config.augment.ops='{_LINE}'"] * (not config.augment.ops)
        fixes += ["--config.optimizer.weight_decay=0.05"] * (config.optimizer.weight_decay == 0)
        return [*fixes, "more images"]
