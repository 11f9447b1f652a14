"""Confusion matrices: as geometry for the page's SVG, and as RUN/confusion_matrix.png for mails and slides.

counts = analysis.confusion_matrix(predictions, classes)
matrix = matrix_plot(counts, names, complete=True)
draw_matrix(run.confusion_matrix, counts, names, "test, step 385")
"""

import math
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convoy.core.files import written_whole
from convoy.core.html.templates import shown

_SIDE, _SMALLEST_CELL, _LARGEST_CELL = 720, 18, 44  # pixels
_NAME_LENGTH = 20


@dataclass(frozen=True)
class Cell:
    """A field of a confusion matrix; `strength` is its opacity."""

    x: float
    y: float
    strength: float
    tone: str
    text: str
    title: str


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix in a box of `width` x `height`: names, short and whole, with their places, and its fields."""

    width: float
    height: float
    cell: float
    left: float
    top: float
    rows: Sequence[tuple[str, str, float]]
    columns: Sequence[tuple[str, str, float]]
    cells: Sequence[Cell]


def matrix_plot(counts: np.ndarray, names: Sequence[str], *, complete: bool) -> Matrix:
    """Returns a confusion matrix: right ones in one colour, mistakes in another, by their share of the row.

    Args:
      counts: [n, n + 1], as `analysis.confusion_matrix` has it.
      names: [n] of the classes, in this order.
      complete: whether these are all classes, so that nothing can be in the last column.
    """
    columns = [*names] if complete else [*names, "other classes"]
    cell = min(_LARGEST_CELL, max(_SMALLEST_CELL, _SIDE / len(columns)))
    longest = max(_width(_short(name)) for name in columns)
    left, top = 14 + 6.4 * longest, 14 + 5.2 * longest
    totals = counts.sum(1)
    cells = []
    for row, column in np.argwhere(counts[:, : len(columns)]).tolist():
        count, part = int(counts[row, column]), counts[row, column] / totals[row]
        title = f"{count:,} of {totals[row]:,} images of {shown(names[row])} taken for {shown(columns[column])}"
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
    """Returns a name, or as much of it as is about as wide as `_NAME_LENGTH` Latin letters."""
    text = shown(name, _NAME_LENGTH)
    while _width(text) > _NAME_LENGTH:
        text = text[:-2] + "…"
    return text


def _width(text: str) -> int:
    """Returns how many Latin letters are about as wide: a letter of East Asia is as wide as two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def draw_matrix(path: Path, counts: np.ndarray, names: Sequence[str], title: str) -> None:
    """Draws a confusion matrix into a PNG file, without the column of other classes.

    Raises:
      OSError: it cannot be written.
    """
    from matplotlib.figure import Figure

    side = 3 + 0.24 * len(names)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = counts[:, :-1] / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(counts[:, :-1]).tolist():
        colour = "white" if shares[row, column] > 0.4 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=colour)
    labels = [shown(name, _NAME_LENGTH) for name in names]
    options = {"fontsize": 8, "parse_math": False}  # a name with two dollars is no formula
    axes.set_xticks(range(len(names)), labels, rotation=90, **options)
    axes.set_yticks(range(len(names)), labels, **options)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    axes.set_title(title, fontsize=10, parse_math=False)
    with written_whole(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # of names in scripts that its font has not
        figure.savefig(file, format="png", dpi=100)
