"""Readers for the files of a run directory that never fail on missing, damaged or half-written content.

They are for looking at runs that may still train or may have been killed in the middle of a line.

    read_json_object(run.result)                 # {} if missing or damaged
    read_json_lines(run.metrics)                 # complete lines only
    read_evaluations(run.results_table)          # complete rows only

Nothing is written or locked. Imports no TensorFlow.
"""

import contextlib
import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convoy.core.reading import parsed_json, read_file, read_json, read_table
from convoy.core.text import weights_text

EXPORT_DESCRIPTION = "export.json"  # in the folder of an export
_OTHER_COLUMNS = ("time", "step", "split", "checkpoint")


@dataclass(frozen=True)
class EvaluationRow:
    """A row of results.csv.

    Attributes:
      split: split that was evaluated.
      step: last step of the evaluated weights.
      quality: every other column, by name, that is not empty.
      checkpoint: which checkpoints the weights are the mean of; empty for a single one.
    """

    split: str
    step: int
    quality: Mapping[str, float]
    checkpoint: str = ""

    @property
    def weights(self) -> str:
        """Which weights were evaluated, as text."""
        return weights_text(self.step, self.checkpoint)


def number_in(content: Mapping[str, Any], name: str) -> float | None:
    """Returns the number under a name; None if it is missing, something else, or not finite."""
    value = content.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def read_json_object(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; empty if the file is missing, damaged or contains another type."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_json_lines(path: Path, *, last_bytes: int | None = None) -> list[dict[str, Any]]:
    """Returns the objects in a JSON-lines file, without damaged lines; empty if the file is missing.

    Args:
      path: the file.
      last_bytes: read only this many bytes at the end of the file; None reads all of it.
    """
    try:
        lines = read_file(path, last_bytes).splitlines()
    except OSError:
        return []
    objects = []
    for line in lines:
        with contextlib.suppress(ValueError):
            content = parsed_json(line)
            if isinstance(content, dict):
                objects.append(content)
    return objects


def read_evaluations(path: Path) -> list[EvaluationRow]:
    """Returns the rows of results.csv in file order, without damaged ones; empty if the file is missing."""
    rows = []
    with contextlib.suppress(OSError, csv.Error):
        for row in read_table(path):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                values = {name: value for name, value in row.items() if name not in _OTHER_COLUMNS and value != ""}
                quality = {name: float(value) for name, value in values.items()}
                rows.append(EvaluationRow(row["split"], int(row["step"]), quality, row.get("checkpoint") or ""))
    return rows
