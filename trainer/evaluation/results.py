"""RUN/results.csv: one row per evaluation, for spreadsheets and `sort`."""

import contextlib
import csv
import io
import time
from collections.abc import Mapping

from convoy.core.files import append_whole, write_whole
from convoy.core.reading import read_table
from convoy.core.text import is_count
from convoy.trainer.run.directory import RunDirectory

_COLUMNS = ("time", "step", "split", "loss", "top1", "top5", "macro_f1", "ece")


def append_result(run: RunDirectory, *, step: int, split: str, quality: Mapping[str, float]) -> None:
    """Adds a row for the weights of `step`; `quality` is from `metrics.summarize`.

    Raises:
      OSError: the file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS)
    if not run.results_table.exists() or not run.results_table.stat().st_size:
        writer.writeheader()
    row = {name: f"{value:.6f}" for name, value in quality.items()}
    writer.writerow({"time": time.strftime("%Y-%m-%dT%H:%M:%S"), "step": step, "split": split, **row})
    append_whole(run.results_table, text.getvalue().encode())


def truncate_results(run: RunDirectory, last_step: int) -> None:
    """Drops the rows of steps after `last_step`, which a resumed run repeats, and a row that a crash truncated."""
    if not run.results_table.exists():
        return
    rows: list[dict[str, str]] = []
    with contextlib.suppress(csv.Error):
        rows.extend(read_table(run.results_table))
    rows = [row for row in rows if None not in row.values() and row.keys() == set(_COLUMNS)]
    kept = io.StringIO(newline="")
    writer = csv.DictWriter(kept, _COLUMNS)
    writer.writeheader()
    writer.writerows(row for row in rows if is_count(row["step"]) and int(row["step"]) <= last_step)
    write_whole(run.results_table, kept.getvalue().encode())
