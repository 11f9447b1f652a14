"""`convoy runs DIR`: lists the runs under a folder, best first, with the config fields that differ.

convoy runs runs
convoy runs runs --json=runs.json
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags as absl_flags

from convoy.core.errors import DataError, UsageError, did_you_mean
from convoy.core.files import write_whole
from convoy.core.text import counted

TAKES_ARGUMENTS = True


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
    if not folder.is_dir():
        siblings = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UsageError(
            f"{folder}: not a folder{did_you_mean(folder.name, siblings)}. Pass a folder that contains runs."
        )
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
    print(f"{counted(len(runs), 'run')} in {folder}, by validation top-1")
    rows = [("run", "best top-1", "at step", "images/s", "state", "differences")]
    for found in runs:
        rows.append(
            (
                found.name,
                "-" if found.best_top1 is None else f"{found.best_top1:.2%}",
                "-" if found.best_step is None else f"{found.best_step:,}",
                "-" if found.images_per_second is None else f"{found.images_per_second:,.0f}",
                found.state_text,
                " ".join(f"{name}={value}" for name, value in found.differences.items()),
            )
        )
    print("\n".join(_aligned(rows, right=(1, 2, 3))))


def _aligned(rows: Sequence[Sequence[str]], right: Sequence[int]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            f"{cell:>{width}}" if number in right else f"{cell:<{width}}"
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
