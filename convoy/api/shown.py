"""How results look: a title, facts and a table, as text in a terminal and as HTML in a notebook."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convoy.core.errors import UsageError
from convoy.core.text import counted

if TYPE_CHECKING:
    import pandas

_ROWS = 20  # rows of a table that are shown


class Rows(list[dict[str, Any]]):
    """A list of rows, each a dict from column to value, which a terminal and a notebook show as a table.

    Example:
      rows = convoy.open_run("run").metrics("validation")
      rows[-1]["quality/top1"]
      rows
    """

    def to_pandas(self) -> "pandas.DataFrame":
        """Returns the rows as a data frame; a column that a row lacks is NaN there.

        Raises:
          UsageError: pandas is not installed.

        Example:
          convoy.open_run("run").evaluations().to_pandas()
        """
        try:
            import pandas
        except ImportError:
            raise UsageError("to_pandas() needs pandas, which is not installed. Run `pip install pandas`.") from None
        return pandas.DataFrame(list(self))

    def __repr__(self) -> str:
        """Returns the table as text."""
        return text_of("", {}, self)

    def _repr_html_(self) -> str:
        return html_of("", {}, self)


class Shown:
    """An object with a title, facts and a table."""

    def _title(self) -> str:
        raise NotImplementedError

    def _facts(self) -> Mapping[str, object]:
        return {}

    def _table(self) -> Rows:
        return Rows()

    def __repr__(self) -> str:
        """Returns title, facts and table as text."""
        return text_of(self._title(), self._facts(), self._table())

    def _repr_html_(self) -> str:
        return html_of(self._title(), self._facts(), self._table())


def text_of(title: str, facts: Mapping[str, object], rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns title, facts and the first rows of a table as lines of text."""
    width = max(map(len, facts), default=0)
    lines = [title] if title else []
    lines += [f"  {name:<{width}}  {cell(value)}" for name, value in facts.items()]
    columns, cells = _cells(rows)
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in [columns, *cells] if columns else []:
        padded = (f"{text:<{width}}" for text, width in zip(row, widths, strict=True))
        lines.append(f"  {'  '.join(padded)}".rstrip())
    return "\n".join([*lines, *_rest(rows)]) or "no rows"


def html_of(title: str, facts: Mapping[str, object], rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns title, facts and the first rows of a table as HTML; all texts are escaped."""
    from convoy.core.html.templates import page_template

    columns, cells = _cells(rows)
    shown = {name: cell(value) for name, value in facts.items()}
    template = page_template(Path(__file__).with_name("result.html.j2"))
    return template.render(title=title, facts=shown, columns=columns, rows=cells, rest=" ".join(_rest(rows)))


def cell(value: object) -> str:
    """Returns a value as text: floats with four digits or more, and invisible characters of names escaped."""
    from convoy.core.html.templates import shown

    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value))
    return shown(str(value))


def _cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    columns = list(dict.fromkeys(name for row in rows[:_ROWS] for name in row))
    return columns, [[_cell(name, row.get(name)) for name in columns] for row in rows[:_ROWS]]


def _cell(name: str, value: object) -> str:
    if name == "time" and isinstance(value, int | float):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    return cell(value)


def _rest(rows: Sequence[object]) -> list[str]:
    return [f"  ... and {counted(len(rows) - _ROWS, 'more row')}"] if len(rows) > _ROWS else []
