"""CSV files as people and spreadsheet programs write them.

    header, rows = read_table(Path("train.csv"))
    filename, category = column_indices(Path("train.csv"), header, ["filename", "category"])

Columns are separated by commas, semicolons, tabs or bars, whichever the header has, and the text is UTF-8 or, with a
byte order mark, UTF-16, where nothing else is said. Quoted fields may hold separators and line breaks (RFC 4180).
"""

import codecs
import csv
import io
from collections.abc import Sequence
from pathlib import Path

from convoy.core.errors import DataError, UsageError, did_you_mean

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_LONGEST_FIELD = 2**20  # a quote that is never closed makes one field of the rest of the file


def read_table(path: Path, *, delimiter: str = "", encoding: str = "") -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Returns a CSV's header and its rows with the numbers of their last lines, blank rows left out.

    Args:
      path: the CSV.
      delimiter: between columns; "" takes what the header has most of.
      encoding: as Python names it; "" is UTF-8, or UTF-16 where a byte order mark says so.

    Raises:
      UsageError: no such encoding, or a delimiter of more than one character.
      DataError: missing, not of that encoding, no CSV, no rows, or a row with another number of fields than the header.
    """
    if len(delimiter) > 1:
        raise UsageError(f"--csv_delimiter={delimiter!r}: one character, such as ';', or a tab as $'\\t'")
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
        raise DataError(f"manifest {path} has a header and no rows: it must name every image")
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(
                f"{path} line {line} has {len(row)} fields and the header {len(header)} ({','.join(header)}); "
                f"quote a field that holds one of the {SEPARATORS.get(delimiter, 'separators')}"
            )
    return header, rows


def column_indices(path: Path, header: Sequence[str], wanted: Sequence[str], fix: str = "") -> list[int]:
    """Returns where the wanted columns stand in a CSV's header.

    Raises:
      DataError: one is not there, or stands there twice; names the nearest.
    """
    if not any(header):
        raise DataError(f"{path} is empty. Wanted: a CSV with the columns {','.join(wanted)!r}{fix}")
    for column in wanted:
        if column not in header:
            raise DataError(
                f"{path} has the header {','.join(header)!r} and no column {column!r}"
                f"{did_you_mean(column, header)}. Wanted: {','.join(wanted)!r}{fix}"
            )
        if list(header).count(column) > 1:
            raise DataError(f"{path} has the header {','.join(header)!r} with more than one {column!r}; rename one")
    return [header.index(column) for column in wanted]


def _text(path: Path, encoding: str) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        folder = path.parent
        known = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        raise DataError(f"manifest {path} does not exist{did_you_mean(path.name, known)}") from None
    except OSError as error:
        raise DataError(f"manifest {path} cannot be read ({error.strerror})") from None
    if not encoding and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"  # what spreadsheet programs call Unicode text
    try:
        # A byte order mark would become part of the first column's name.
        return data.decode(encoding or "utf-8").removeprefix("\ufeff")
    except LookupError:
        raise UsageError(f"--csv_encoding={encoding} is no text encoding. Examples: utf-8, cp1252, shift_jis") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"manifest {path} is not {encoding or 'UTF-8'} (byte {error.start}); save it as UTF-8, or say what it is: "
            "--csv_encoding=cp1252"
        ) from None
