"""File layout of RUN, the run directory, for the trainer and for launchers.

layout = RunLayout("run")
layout.metrics                                   # run/metrics.jsonl
checkpoint_step("step-000000120.npz")            # 120
"""

import os
import re
from pathlib import Path

_CHECKPOINT = re.compile(r"step-([0-9]{9})\.npz")
MOST_FOLDS = 1000  # of a cross-validation

_ATTEMPT = re.compile(r"attempt-([0-9]{1,18})")


class RunLayout:
    """The paths in one run directory. Does no I/O."""

    def __init__(self, path: str | os.PathLike[str]):
        """Args: path: run directory; need not exist."""
        self.path = Path(os.path.normpath(path))
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.logs = self.path / "logs"
        self.config = self.path / "config.json"
        self.dataset = self.path / "dataset.json"
        self.environment = self.path / "environment.json"
        self.command = self.path / "command.txt"
        self.code = self.path / "code"
        self.recipe = self.path / "recipe.py"
        self.metrics = self.path / "metrics.jsonl"
        self.events = self.path / "events.jsonl"
        self.result = self.path / "result.json"
        self.results_table = self.path / "results.csv"
        self.launch = self.path / "launch.json"
        self.report = self.path / "report.html"
        self.model_card = self.path / "MODEL_CARD.md"
        self.curves = self.path / "curves.png"
        self.confusion_matrix = self.path / "confusion_matrix.png"
        self.learning_rates = self.path / "find_lr.csv"
        self.learning_rate_plot = self.path / "find_lr.png"
        self.label_errors = self.path / "label_errors.csv"
        self.sample_order = self.path / "order"
        self.learning_curve = self.path / "learning_curve.json"
        self.lock_file = self.path / ".lock"

    def fold(self, number: int) -> Path:
        """Returns the run directory of a fold of a cross-validation; numbers start at 1."""
        return self.path / f"fold-{number}"

    def fraction(self, name: str) -> Path:
        """Returns the run directory of a fraction of the training images, such as `half`, for the learning curve."""
        return self.path / "learning_curve" / name

    def predictions(self, split: str) -> Path:
        """Returns the CSV of the latest predictions on a split."""
        return self.path / f"predictions_{split}.csv"

    def evaluation(self, split: str) -> Path:
        """Returns the JSON file about the latest predictions on a split."""
        return self.path / f"evaluation_{split}.json"

    def heat_maps(self, split: str) -> Path:
        """Returns the JSON file with heat maps of the errors among the latest predictions on a split."""
        return self.path / f"heat_maps_{split}.json"

    def tracker(self, name: str) -> Path:
        """Returns the JSON file about the run in an experiment tracker, whose folder has the tracker's own files."""
        return self.path / "trackers" / f"{name}.json"

    def attempt(self, number: int) -> Path:
        """Returns the log folder of a launcher's attempt; numbers start at 1 and continue over restarts."""
        return self.logs / f"attempt-{number}"


def checkpoint_name(step: int) -> str:
    """Returns the file name of a checkpoint; `step` is 0 to 999,999,999."""
    return f"step-{step:09}.npz"


def checkpoint_step(name: str) -> int | None:
    """Returns the step in a checkpoint's file name; None for other names."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match[1]) if match else None


def attempt_number(name: str) -> int | None:
    """Returns the number in an attempt's folder name; None for other names."""
    match = _ATTEMPT.fullmatch(name)
    return int(match[1]) if match else None
