"""RUN/results.csv: one row an evaluation, for spreadsheets and `sort`."""

import csv
import time
from collections.abc import Mapping

from trainer.run_directory import RunDirectory

_COLUMNS = ("time", "step", "split", "loss", "top1", "top5", "macro_f1", "ece")


def append_result(run: RunDirectory, *, step: int, split: str, quality: Mapping[str, float]) -> None:
    """Adds a row.

    Args:
      run: where.
      step: of the weights that were evaluated.
      split: what they were evaluated on.
      quality: from `metrics.summarize`.
    """
    is_new = not run.results_table.exists()
    with open(run.results_table, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        if is_new:
            writer.writeheader()
        row = {name: f"{value:.6f}" for name, value in quality.items()}
        writer.writerow({"time": time.strftime("%Y-%m-%dT%H:%M:%S"), "step": step, "split": split, **row})
