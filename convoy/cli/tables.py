"""Tables on the console."""

import sys
from collections.abc import Iterable, Sequence
from typing import IO, cast

from convoy.core.streams import Terminal, escaped
from convoy.core.terminal import can_redraw

_UNCUT = 1000  # columns of output that is not a terminal


def print_table(
    names: Sequence[str], numbers: Sequence[str], rows: Iterable[Sequence[str | int | float]], *, wrap: bool = False
) -> None:
    """Prints a table.

    Args:
      names: headings of the first columns, left-aligned; long names are cut on narrow terminals only.
      numbers: headings of the other columns, right-aligned.
      rows: cells of each row; a float is printed with one decimal.
      wrap: wrap long names instead.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in names:
        table.add_column(heading, no_wrap=not wrap, overflow="fold" if wrap else "ellipsis")
    for heading in numbers:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*(Text(_text(cell)) for cell in row))
    width = None if can_redraw(sys.stdout) else _UNCUT
    Console(file=cast("IO[str]", Terminal()), highlight=False, width=width).print(table)


def _text(cell: str | int | float) -> str:
    if isinstance(cell, str):
        return escaped(cell)
    return f"{cell:,.1f}" if isinstance(cell, float) else f"{cell:,}"
