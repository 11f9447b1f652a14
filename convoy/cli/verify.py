"""`convoy verify`: checks every byte of a dataset directory, and rebuilds its indexes.

convoy verify --data=data
convoy verify --data=data --repair_index
convoy verify --data=imagenet --json=faults.json
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags as absl_flags

from convoy.core.errors import DataError, UsageError
from convoy.input_pipeline.dataset.storage import is_remote

if TYPE_CHECKING:
    from convoy.input_pipeline.verify.verify import Report

REQUIRED = ("data",)

_SHOWN = 20


def define_flags(flags: absl_flags.FlagValues, argv: Sequence[str]) -> None:
    """Defines the command's flags."""
    del argv
    absl_flags.DEFINE_string(
        "data", None, "Dataset directory: of convert, of TFDS, or a folder of TFRecords.", flag_values=flags
    )
    absl_flags.DEFINE_bool(
        "repair_index",
        False,
        "Writes index-SPLIT.npz and the .idx files anew from the shards, of every split whose shards are whole. "
        "Shards and manifest are never written to.",
        flag_values=flags,
    )
    absl_flags.DEFINE_integer("workers", 0, "Processes; 0 is one a core.", flag_values=flags)
    absl_flags.DEFINE_string("json", None, "A file for all that was found, as JSON.", flag_values=flags)


def run(flags: absl_flags.FlagValues, arguments: Sequence[str]) -> int:
    """Checks, shows how far it is, and says what was found."""
    del arguments
    if is_remote(flags.data):
        raise UsageError(
            f"--data={flags.data}: every byte is read, and only of a folder: run it where the data is one, or mount it"
        )
    if flags.workers < 0:
        raise UsageError(f"--workers={flags.workers}: 0 or more")
    from convoy.cli.progress import shown_progress
    from convoy.core.processes import terminable
    from convoy.input_pipeline.dataset.index import index_path
    from convoy.input_pipeline.verify.verify import verify

    directory = Path(flags.data)
    with terminable(), shown_progress("verifying", "MB") as progress:
        report = verify(
            directory,
            workers=flags.workers,
            repair_index=flags.repair_index,
            progress=lambda done, total: progress(done // 10**6, total // 10**6),
        )
    _print_table(report)
    for fault in report.faults[:_SHOWN]:
        print(fault.line())
    if len(report.faults) > _SHOWN:
        print(f"... and {len(report.faults) - _SHOWN:,} more; --json=FILE writes all.")
    for split in report.not_rebuilt:
        print(f"The index of {split} was not rebuilt: its shards, or what describes them, must be whole first.")
    if flags.json:
        _write_json(Path(flags.json), report)
    if report.rebuilt:
        print(f"Rebuilt: {', '.join(index_path(directory, split).name for split in report.rebuilt)}.")
    if report.faults:
        number = len(report.faults)
        raise DataError(f"{directory} has {number:,} fault{'s' if number > 1 else ''}")
    print(f"{directory} is whole.")
    return 0


def _print_table(report: "Report") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("split", box=None, pad_edge=False)
    for heading in ("records", "classes", "shards", "MB", "faults"):
        table.add_column(heading, justify="right")
    for split in report.splits:
        numbers = (split.records, split.classes, split.shards, split.size / 1e6, split.faults)
        table.add_row(split.name, *(f"{n:,.1f}" if isinstance(n, float) else f"{n:,}" for n in numbers))
    Console(highlight=False).print(table)


def _write_json(path: Path, report: "Report") -> None:
    from convoy.core.files import write_whole

    try:
        write_whole(path, json.dumps(asdict(report), indent=1).encode("ascii"))
    except OSError as error:
        raise DataError(f"--json={path} cannot be written ({error.strerror})") from None
