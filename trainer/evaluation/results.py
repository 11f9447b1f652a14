"""RUN/results.csv: one row per evaluation, for spreadsheets and `sort`."""

import contextlib
import csv
import io
import time
from collections.abc import Mapping, Sequence

from convoy.core.files import append_whole, write_whole
from convoy.core.reading import read_table
from convoy.core.text import is_count
from convoy.trainer.run.directory import RunDirectory

COLUMNS = ("time", "step", "split")  # before those of the metrics


def append_result(
    run: RunDirectory, *, step: int, split: str, quality: Mapping[str, float], checkpoint: str = ""
) -> None:
    """Adds a row for the weights of `step`; `quality` is from `MetricSet.summarize`.

    Metrics that the table lacks become columns, in which earlier rows are empty. So does `checkpoint`, which is as
    `TrainedRun.checkpoint`.

    Raises:
      OSError: the file cannot be written.
    """
    row = {"time": time.strftime("%Y-%m-%dT%H:%M:%S"), "step": step, "split": split}
    row |= {name: f"{value:.6f}" for name, value in quality.items()}
    row |= {"checkpoint": checkpoint} if checkpoint else {}
    columns, rows = _read(run)
    needed = list(dict.fromkeys([*columns, *COLUMNS, *row]))
    is_ours = not columns or set(COLUMNS) <= set(columns)  # or a spreadsheet has saved it in its own way
    if is_ours and needed != list(columns):
        write_whole(run.results_table, _text(needed, [*rows, row], header=True))
    else:
        append_whole(run.results_table, _text(columns, [row], header=False))


def truncate_results(run: RunDirectory, last_step: int) -> None:
    """Drops the rows of steps after `last_step`, which a resumed run repeats, and a row that a crash truncated."""
    if run.results_table.exists():
        columns, rows = _read(run)
        if not set(COLUMNS) <= set(columns):
            columns, rows = COLUMNS, []
        kept = [row for row in rows if is_count(row["step"]) and int(row["step"]) <= last_step]
        write_whole(run.results_table, _text(columns, kept, header=True))


def _read(run: RunDirectory) -> tuple[Sequence[str], list[dict[str, str]]]:
    """Returns the columns and the complete rows of the table; nothing if it is missing or empty."""
    rows: list[dict[str, str]] = []
    with contextlib.suppress(csv.Error, FileNotFoundError):
        rows.extend(read_table(run.results_table))
    columns = [name for name in rows[0] if name is not None] if rows else []
    return columns, [row for row in rows if None not in row.values() and list(row) == columns]


def _text(columns: Sequence[str], rows: Sequence[Mapping[str, object]], *, header: bool) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
