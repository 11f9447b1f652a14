"""`convoy runs DIR`: lists the runs under a folder, best first, with the config fields that differ.

convoy runs runs
convoy runs runs --json=runs.json
"""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags as absl_flags

from convoy.core.errors import DataError, UsageError
from convoy.core.files import write_whole
from convoy.core.text import counted

if TYPE_CHECKING:
    from convoy.trainer.run.listing import ListedRun

TAKES_ARGUMENTS = True

Column = tuple[str, ...]  # heading and cells
_CELL = 24  # characters of a config field's value
_GAP = "  "
_NOTHING = ("-", "''")


def define_flags(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Defines the command's flags."""
    absl_flags.DEFINE_string("json", None, "JSON file to write the list to, with every config field", flag_values=flags)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Prints the table.

    Raises:
      UsageError: the argument is not one existing folder, or the JSON file cannot be written.
      DataError: there are no runs.
    """
    if len(arguments) != 1:
        problem = f"expected one folder, not {' '.join(arguments)!r}" if arguments else "no folder given"
        raise UsageError(f"{problem}. Example: convoy runs runs")
    folder = Path(arguments[0])
    from convoy.trainer.run.listing import list_runs

    runs = list_runs(folder)
    if not runs:
        raise DataError(
            f"{folder}: no runs in it or its subfolders. "
            f"Train one with `convoy train --data=DATA --workdir={folder / 'first'}`."
        )
    if flags.json:
        content = {"folder": str(folder), "runs": [found.as_json() for found in runs]}
        try:
            write_whole(Path(flags.json), (json.dumps(content, indent=1) + "\n").encode())
        except OSError as error:
            raise UsageError(f"--json={flags.json}: cannot be written ({error.strerror}).") from None
    titles = {found.score_title for found in runs}
    title = titles.pop() if len(titles) == 1 else "score"
    print(f"{counted(len(runs), 'run')} in {folder}, by validation {title}")
    facts = [
        ("run", *(found.name for found in runs)),
        (f"best {title}", *(_score(found, titled=title == "score") for found in runs)),
        ("at step", *("-" if found.best_step is None else f"{found.best_step:,}" for found in runs)),
        (
            "images/s",
            *("-" if found.images_per_second is None else f"{found.images_per_second:,.0f}" for found in runs),
        ),
    ]
    state = ("state", *(found.state_text for found in runs))
    fields = [_field(name, runs) for name in dict.fromkeys(name for found in runs for name in found.differences)]
    columns, left_out = _that_fit(facts, fields, state)
    print("\n".join(_aligned(columns, right=(1, 2, 3))))
    if left_out:
        print(f"Also different: {', '.join(left_out)}. --json=FILE writes all.")


def _score(found: "ListedRun", *, titled: bool) -> str:
    if found.best_score is None:
        return "-"
    return (f"{found.score_title} " if titled else "") + f"{found.best_score:.2%}"


def _field(name: str, runs: Sequence["ListedRun"]) -> tuple[str, ...]:
    """Returns the column of a config field: its name and the value of each run, cut to what tells them apart."""
    values = [_text(found.differences[name]) if name in found.differences else "-" for found in runs]
    if max(map(len, values)) > _CELL:
        shared = len(os.path.commonprefix([value for value in values if value not in _NOTHING]))
        values = [value if value in _NOTHING or not shared else f"…{value[shared:]}" for value in values]
    return (name, *(value if len(value) <= _CELL else f"{value[: _CELL - 1]}…" for value in values))


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value) or "''"


def _that_fit(facts: Sequence[Column], fields: Sequence[Column], state: Column) -> tuple[list[Column], list[str]]:
    """Returns the columns that a terminal has room for, and the names of the fields left out; all if it is a file."""
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    # A reason of a failure may be of any length and comes last: it counts as no longer than others.
    room -= sum(map(_width, facts)) + min(_width(state), _CELL)
    shown = []
    for field in fields:
        if _width(field) <= room:
            room -= _width(field)
            shown.append(field)
    return [*facts, *shown, state], [field[0] for field in fields if field not in shown]


def _width(column: Column) -> int:
    return max(map(len, column)) + len(_GAP)


def _aligned(columns: Sequence[Column], right: Sequence[int]) -> list[str]:
    padded = []
    for number, column in enumerate(columns):
        width = max(map(len, column))
        padded.append([f"{cell:>{width}}" if number in right else f"{cell:<{width}}" for cell in column])
    return [_GAP.join(row).rstrip() for row in zip(*padded, strict=True)]
