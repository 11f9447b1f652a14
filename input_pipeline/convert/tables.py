"""CSV files as written by people and spreadsheet programs.

    header, rows = read_table(Path("train.csv"))
    filename, category = column_indices(Path("train.csv"), header, ["filename", "category"])

The separator is the comma, semicolon, tab or bar that is most frequent in the header. The encoding is UTF-8, or UTF-16
with a byte order mark. Both can be given. Quoted fields may contain separators and line breaks (RFC 4180).
"""

import codecs
import csv
import io
from collections.abc import Sequence
from pathlib import Path

from convoy.core.errors import DataError, UsageError, did_you_mean
from convoy.core.remote import RemotePath
from convoy.core.text import counted, one_line

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_LONGEST_FIELD = 2**20  # bytes; an unclosed quote makes one field of the rest of the file


def read_table(
    path: Path | RemotePath, *, delimiter: str = "", encoding: str = ""
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Returns the header of a CSV, and its rows as (number of the last line, fields) without blank rows.

    Args:
      path: the CSV.
      delimiter: separator of columns; "" detects it from the header.
      encoding: name of a Python codec; "" is UTF-8, or UTF-16 with a byte order mark.

    Raises:
      UsageError: unknown encoding, or a delimiter of more than one character.
      DataError: the file is missing, wrongly encoded, malformed or without rows, or a row has another number of fields
        than the header.
    """
    if len(delimiter) > 1:
        raise UsageError(f"--csv_delimiter={delimiter!r}: must be one character, such as ';', or a tab as $'\\t'")
    text = _text(path, encoding)
    first = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = delimiter or max(SEPARATORS, key=first.count)
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
        header = [column.strip() for column in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader if any(field.strip() for field in row)]
    except csv.Error as error:
        raise DataError(f"manifest {path} line {reader.line_num} cannot be read as CSV ({error})") from None
    finally:
        csv.field_size_limit(before)
    if header and not rows:
        raise DataError(f"manifest {path} has a header and no rows. List one image per row")
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(
                f"{path} line {line} has {counted(len(row), 'field')}, and the header {len(header)} "
                f"({one_line(','.join(header))}). Quote fields that contain {SEPARATORS.get(delimiter, 'separators')}"
            )
    return header, rows


def column_indices(path: Path | RemotePath, header: Sequence[str], wanted: Sequence[str], fix: str = "") -> list[int]:
    """Returns the indices of columns in a CSV's header.

    Args:
      path: the CSV, for error messages.
      header: names of all columns.
      wanted: names of the columns to find.
      fix: appended to error messages.

    Raises:
      DataError: a column is missing or repeated.
    """
    if not any(header):
        raise DataError(f"{path} is empty. Expected: a CSV with the columns {','.join(wanted)!r}{fix}")
    for column in wanted:
        if column not in header:
            raise DataError(
                f"{path} has no column {column!r}{did_you_mean(column, header)}; its header is "
                f"{','.join(header)!r}. Expected: {','.join(wanted)!r}{fix}"
            )
        if list(header).count(column) > 1:
            raise DataError(f"{path} has more than one column {column!r} ({','.join(header)!r}). Rename one")
    return [header.index(column) for column in wanted]


def _text(path: Path | RemotePath, encoding: str) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        folder = path.parent
        known = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        raise DataError(f"manifest {path} does not exist{did_you_mean(path.name, known)}") from None
    except OSError as error:
        raise DataError(f"manifest {path} cannot be read ({error.strerror})") from None
    if not encoding and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"  # "Unicode text" of spreadsheet programs
    try:
        # A byte order mark would become part of the first column's name.
        return data.decode(encoding or "utf-8").removeprefix("\ufeff")
    except LookupError:
        raise UsageError(f"--csv_encoding={encoding}: unknown encoding. Examples: utf-8, cp1252, shift_jis") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"manifest {path} is not {encoding or 'UTF-8'} (byte {error.start}). Save it as UTF-8, or pass its "
            "encoding, such as --csv_encoding=cp1252"
        ) from None
