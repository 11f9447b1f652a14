"""The form of a sample submission, as competitions give one: its header, rows and columns, with our predictions in it.

    sample = read_sample(Path("sample_submission.csv"), images=Path("test"), decision=Decision(("00", "01", "02")))
    [sample.row(number, probabilities) for number, probabilities in enumerate(...)]

The column of the images is the one whose values name files of the folder, with or without suffix or folder. The others
are a column per class, which gets its probability, or one column with the category; if its cells list several
categories, as many of the most probable ones. Further columns are kept as they are.

With several labels per image, a column per class gets 0 or 1 if the sample has only these, else the probability, and a
column of categories all labels of the image, separated as in the sample, or as in the dataset if no cell has several.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convoy.core.errors import DataError, did_you_mean
from convoy.core.text import counted
from convoy.input_pipeline.convert.folders import ImageFile
from convoy.input_pipeline.convert.sources import match_files, number_without_suffix
from convoy.input_pipeline.convert.tables import read_table
from convoy.trainer.run.task import Decision

_SEPARATORS = (" ", ";", "|", ",", "\t")
_DECIMALS = 6


@dataclass(frozen=True)
class SampleSubmission:
    """A sample submission.

    Attributes:
      header: names of the columns.
      rows: cells of each row, as in the sample.
      names: name of the image of each row.
      files: its file.
      category_column: index of the column of categories; None with a column per class.
      label_of: labels by index of the columns with probabilities.
      separator: between the categories of a cell; "" for one category.
      decision: how probabilities become labels.
      is_one_hot: whether the columns per class get 0 or 1.
      notes: what was taken for what, for the user.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: Sequence[str]
    files: Sequence[ImageFile]
    category_column: int | None
    label_of: dict[int, int]
    separator: str
    decision: Decision
    is_one_hot: bool
    notes: tuple[str, ...]

    def row(self, number: int, probabilities: np.ndarray) -> list[str]:
        """Returns a row with its predictions.

        Args:
          number: index of the row.
          probabilities: [num_classes], of its image.
        """
        cells, class_names = list(self.rows[number]), self.decision.class_names
        labels = self.decision.labels(probabilities)
        for column, label in self.label_of.items():
            cells[column] = str(int(label in labels)) if self.is_one_hot else f"{probabilities[label]:.{_DECIMALS}f}"
        if self.category_column is not None and self.decision.multi_label:
            cells[self.category_column] = self.separator.join(class_names[label] for label in sorted(labels))
        elif self.category_column is not None:
            listed = len(cells[self.category_column].split(self.separator)) if self.separator else 1
            best = np.argsort(-probabilities, kind="stable")[:listed]
            cells[self.category_column] = self.separator.join(class_names[label] for label in best)
        return cells


def read_sample(path: Path, images: Path, decision: Decision) -> SampleSubmission:
    """Reads a sample submission.

    Args:
      path: the CSV.
      images: folder of images.
      decision: how the model's probabilities become labels.

    Raises:
      DataError: it has no images of the folder, or its other columns are neither categories nor all classes.
    """
    class_names = decision.class_names
    header, numbered = read_table(path)
    rows = [row for _, row in numbered]
    if len(header) < 2:
        raise DataError(
            f"--like={path} has the header {','.join(header)!r}: it needs a column of images and one of categories, or "
            "one per class."
        )
    image_column, files = _image_column(path, images, header, rows)
    names = [row[image_column] for row in rows]
    others = [column for column in range(len(header)) if column != image_column]
    labels = {name: label for label, name in enumerate(class_names)}
    label_of = {column: labels[header[column]] for column in others if header[column] in labels}
    notes = []
    if without := number_without_suffix(names):
        notes.append(
            f"{path}: {counted(without, 'name has', 'names have')} no suffix, and an image with one is taken for each."
        )
    if label_of:
        _check_classes(path, header, others, label_of, class_names)
        is_one_hot = decision.multi_label and all(row[column] in ("0", "1") for row in rows for column in label_of)
        return SampleSubmission(header, rows, names, files, None, label_of, "", decision, is_one_hot, tuple(notes))
    category_column, *kept = others
    if kept:
        listed = ", ".join(repr(header[column]) for column in kept)
        notes.append(f"{path}: the categories go to {header[category_column]!r}; {listed} as in the sample.")
    separator = _separator([row[category_column] for row in rows], labels) or decision.delimiter
    return SampleSubmission(header, rows, names, files, category_column, {}, separator, decision, False, tuple(notes))


def _image_column(
    path: Path, images: Path, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[int, list[ImageFile]]:
    """Returns the first column whose values all name images, and the images.

    Raises:
      DataError: there is none. The message is that of the first column.
    """
    problem = None
    for column in range(len(header)):
        try:
            return column, match_files(images, [row[column] for row in rows], path)
        except DataError as error:
            problem = problem or error
    raise problem or DataError(f"--like={path} has no columns.")


def _check_classes(
    path: Path, header: Sequence[str], others: Sequence[int], label_of: dict[int, int], class_names: Sequence[str]
) -> None:
    unknown = [header[column] for column in others if column not in label_of]
    missing = sorted(set(class_names) - {class_names[label] for label in label_of.values()})
    if unknown or missing:
        which = f"the column {unknown[0]!r} is not a class{did_you_mean(unknown[0], class_names)}" if unknown else ""
        which = which or f"the class {missing[0]!r} has no column"
        raise DataError(
            f"--like={path} has a column per class, but {which}. The model has {len(class_names)} classes: "
            f"{', '.join(class_names[:8])}{', ...' * (len(class_names) > 8)}."
        )


def _separator(cells: Sequence[str], labels: dict[str, int]) -> str:
    """Returns what separates several categories in a cell; "" if there is one in each."""
    cells = [cell.strip() for cell in cells]
    if all(cell in labels for cell in cells):
        return ""
    for separator in _SEPARATORS:
        parts = [part for cell in cells for part in cell.split(separator)]
        if len(parts) > len(cells) and all(part in labels for part in parts):
            return separator
    return ""
