"""`convoy verify`: checks every byte of a dataset directory and rebuilds its indexes on request.

convoy verify --data=data
convoy verify --data=data --repair_index
convoy verify --data=imagenet --json=faults.json
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags as absl_flags

from convoy.cli.foreign_records import define_record_flags, record_format
from convoy.cli.progress import progress_display
from convoy.cli.tables import print_table
from convoy.core.errors import DataError, UsageError
from convoy.core.files import write_whole
from convoy.core.flags import FlagDefiner
from convoy.core.processes import terminable
from convoy.core.text import counted

if TYPE_CHECKING:
    from convoy.input_pipeline.verify.faults import Fault
    from convoy.input_pipeline.verify.verify import Report

REQUIRED = ("data",)

_SHOWN = 20


def define_flags(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Defines the command's flags."""
    define = FlagDefiner(flags)
    define.string(
        "data",
        None,
        "dataset directory to check: from `convoy convert`, local or s3://..., or from TFDS, or a folder of TFRecords",
    )
    define.bool(
        "repair_index",
        False,
        "rebuild index-SPLIT.npz and the .idx files of every split whose shards are intact; shards and manifest are "
        "never written to",
    )
    define_record_flags(flags)
    define.integer("workers", 0, "number of processes; 0: one per core")
    define.string("json", None, "file to write the full result to, as JSON")


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Verifies the dataset and prints a table and the faults."""
    if flags.workers < 0:
        raise UsageError(f"--workers={flags.workers}: must be 0 or more")
    from convoy.input_pipeline.dataset.index import index_path
    from convoy.input_pipeline.dataset.source import source_name
    from convoy.input_pipeline.dataset.storage import dataset_path
    from convoy.input_pipeline.verify.verify import verify

    if source_name(flags.data):
        raise UsageError(f"--data={flags.data}: verify checks files. Pass a dataset directory")
    directory = dataset_path(flags.data)
    with terminable(), progress_display("verifying", "MB") as progress:
        report = verify(
            directory,
            workers=flags.workers,
            repair_index=flags.repair_index,
            record_format=record_format(flags, flags.data),
            progress=lambda done, total: progress(done // 10**6, total // 10**6),
        )
    print_table(
        ("split",),
        ("records", "classes", "shards", "MB", "faults"),
        [(one.name, one.records, one.classes, one.shards, one.size / 1e6, one.faults) for one in report.splits],
    )
    for one in report.splits:
        if one.viewed:
            print(
                f"{one.name}: {counted(one.viewed, 'image')} turned by EXIF or transparent. They are read as a viewer "
                "shows them, upright and on white; a run that began under the earlier reading keeps that one."
            )
    if report.first_label:
        print(f"Labels are from {report.first_label}: that is the first class.")
    for fault in report.faults[:_SHOWN]:
        print(fault.line())
    if len(report.faults) > _SHOWN:
        print(f"... and {len(report.faults) - _SHOWN:,} more; --json=FILE writes all of them.")
    for split in report.not_rebuilt:
        print(f"Index of {split}: not rebuilt. Fix its other faults first.")
    if flags.json:
        _write_json(Path(flags.json), report)
    if report.rebuilt:
        print(f"Rebuilt: {', '.join(index_path(directory, split).name for split in report.rebuilt)}.")
    if report.faults:
        raise DataError(f"{directory} has {counted(len(report.faults), 'fault')}")
    print(f"{directory}: no faults found.")


def _write_json(path: Path, report: "Report") -> None:
    content = {
        "splits": [asdict(split) for split in report.splits],
        "faults": [_fault_json(fault) for fault in report.faults],
        "repaired": [_fault_json(fault) for fault in report.repaired],
        "rebuilt": report.rebuilt,
        "not_rebuilt": report.not_rebuilt,
    }
    try:
        write_whole(path, json.dumps(content, indent=1).encode("ascii"))
    except OSError as error:
        raise DataError(f"--json={path} cannot be written ({error.strerror})") from None


def _fault_json(fault: "Fault") -> dict[str, str | int | None]:
    return {
        "code": fault.code,
        "kind": fault.section,
        "split": fault.split,
        "file": fault.file,
        "offset": fault.offset,
        "record": fault.record,
        "problem": fault.text,
        "fix": fault.fix,
    }
