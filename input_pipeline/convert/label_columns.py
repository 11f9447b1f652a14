"""Several labels per image in a CSV: separated in one cell, or one column of 0 and 1 per class.

    split_labels("cat dog", " ")                                         # ("cat", "dog")
    class_columns(path, header, used=[0])                                # {"cat": 1, "dog": 2}
    one_hot_labels(path, line, row, columns)                             # ("dog",)

A CSV that needs other flags is refused or noted (`refuse_one_hot`, `note_on_lists`).
"""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from convoy.core.errors import DataError
from convoy.core.remote import RemotePath
from convoy.core.text import counted

_ON, _OFF = ("1", "1.0"), ("0", "0.0")  # programs write whole numbers of a column with gaps with a decimal
_SEPARATORS = (" ", ";", "|", ",", "/")
_LISTED = 3


def split_labels(cell: str, delimiter: str) -> tuple[str, ...]:
    """Returns the labels in a cell, each once, sorted; there may be none."""
    return tuple(sorted({label.strip() for label in cell.split(delimiter)} - {""}))


def class_columns(path: Path | RemotePath, header: Sequence[str], used: Sequence[int]) -> dict[str, int]:
    """Returns the columns of a CSV that are classes, by name: all but those that are used for something else.

    Raises:
      DataError: there is none, one has no name, or two have the same.
    """
    columns: dict[str, int] = {}
    for column, name in enumerate(header):
        if column in used:
            continue
        if not name:
            raise DataError(f"{path}: column {column + 1} has no name. With --multi_label it is that of a class")
        if name in columns:
            raise DataError(f"{path} has more than one column {name!r}. Rename one")
        columns[name] = column
    if not columns:
        raise DataError(f"{path} has no columns besides {','.join(header)!r}. --multi_label expects one per class")
    return columns


def one_hot_labels(
    path: Path | RemotePath, line: int, row: Sequence[str], columns: Mapping[str, int]
) -> tuple[str, ...]:
    """Returns the classes whose column is 1 in a row, sorted.

    Raises:
      DataError: a cell is neither 0 nor 1.
    """
    labels = []
    for name, column in columns.items():
        cell = row[column].strip()
        if cell in _ON:
            labels.append(name)
        elif cell not in _OFF:
            raise DataError(
                f"{path} line {line}: column {name!r} is {cell!r}. With --multi_label every column but that of the "
                "file names is a class and has 0 or 1. Fix the cell, or remove a column that is not a class"
            )
    return tuple(sorted(labels))


def refuse_one_hot(
    path: Path | RemotePath, header: Sequence[str], rows: Sequence[tuple[int, list[str]]], category: str
) -> None:
    """Raises a DataError if a CSV without the column of categories has columns of 0 and 1 instead."""
    columns = [
        name
        for column, name in enumerate(header)
        if name and all(row[column].strip() in (*_ON, *_OFF) for _, row in rows)
    ]
    if category not in header and len(columns) > 1:
        listed = ", ".join(map(repr, columns[:_LISTED])) + ", ..." * (len(columns) > _LISTED)
        raise DataError(
            f"{path} has no column {category!r}, and {len(columns)} columns of 0 and 1: {listed}. Pass --multi_label "
            "if they are classes, or name the column of categories with --category_column"
        )


def note_on_lists(path: Path | RemotePath, categories: Set[str]) -> tuple[str, ...]:
    """Returns a note if categories look like lists of others: all parts of one are categories too."""
    for separator in _SEPARATORS:
        lists = [
            name
            for name in sorted(categories)
            if len(parts := split_labels(name, separator)) > 1 and all(part in categories for part in parts)
        ]
        if lists:
            are = counted(len(lists), "category looks like a list", "categories look like lists")
            return (
                f"{path}: {are} of others, such as {lists[0]!r}, and each is one class. Pass "
                f"--label_delimiter='{separator}' if an image may have several labels.",
            )
    return ()
