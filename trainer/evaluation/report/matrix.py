"""The confusion matrix of the report page, as geometry that its template draws as SVG.

counts = analysis.confusion_matrix(predictions, classes)
matrix = matrix_plot(counts, names, complete=True)
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convoy.core.html.templates import shown
from convoy.core.text import counted

_SIDE, _SMALLEST_CELL, _LARGEST_CELL = 720, 18, 44  # pixels
_NAME_LENGTH = 20


@dataclass(frozen=True)
class Cell:
    """A cell of a confusion matrix; `strength` is its opacity, `tone` its CSS class, `title` its tooltip."""

    x: float
    y: float
    strength: float
    tone: str
    text: str
    title: str


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix in a box of `width` x `height` pixels.

    Attributes:
      cell: side of a cell.
      left: x of the first column.
      top: y of the first row.
      rows: short name, full name and center of each row.
      columns: short name, full name and center of each column.
      cells: those with images.
    """

    width: float
    height: float
    cell: float
    left: float
    top: float
    rows: Sequence[tuple[str, str, float]]
    columns: Sequence[tuple[str, str, float]]
    cells: Sequence[Cell]


def matrix_plot(counts: np.ndarray, names: Sequence[str], *, complete: bool) -> Matrix:
    """Returns a confusion matrix whose cells are colored by their share of the row.

    Args:
      counts: [n, n + 1] int64, from `analysis.confusion_matrix`.
      names: [n] names of the classes, in the same order.
      complete: whether these are all classes; the last column is then empty and not drawn.
    """
    columns = [*names] if complete else [*names, "other classes"]
    cell = min(_LARGEST_CELL, max(_SMALLEST_CELL, _SIDE / len(columns)))
    longest = max(_width(_short(name)) for name in columns)
    left, top = 14 + 6.4 * longest, 14 + 5.2 * longest
    totals = counts.sum(1)
    cells = []
    for row, column in np.argwhere(counts[:, : len(columns)]).tolist():
        count, part = int(counts[row, column]), counts[row, column] / totals[row]
        title = (
            f"{count:,} of {counted(totals[row], 'image')} of {shown(names[row])} classified as "
            f"{shown(columns[column])}"
        )
        strength = round(0.12 + 0.78 * math.sqrt(part), 2)
        text = f"{count}" if count < 1000 else f"{count / 1000:.0f}k"
        tone = "right" if row == column else "wrong"
        cells.append(Cell(left + column * cell, top + row * cell, strength, tone, text, title))

    def placed(labels: Sequence[str], start: float) -> list[tuple[str, str, float]]:
        return [(_short(name), shown(name), start + (place + 0.5) * cell) for place, name in enumerate(labels)]

    return Matrix(
        width=left + len(columns) * cell + 0.7 * top,
        height=top + len(names) * cell + 4,
        cell=cell,
        left=left,
        top=top,
        rows=placed(names, top),
        columns=placed(columns, left),
        cells=cells,
    )


def _short(name: str) -> str:
    """Returns a name, cut to about the width of `_NAME_LENGTH` Latin letters."""
    text = shown(name, _NAME_LENGTH)
    while _width(text) > _NAME_LENGTH:
        text = text[:-2] + "…"
    return text


def _width(text: str) -> int:
    """Returns the width in Latin letters; an East Asian character counts as two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
