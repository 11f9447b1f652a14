"""`convoy convert`: turns images into a dataset directory of TFRecord shards.

convoy convert --images=photos/train --output=data
convoy convert --images=photos/train --manifest=train.csv --output=data --splits=train:0.8,validation:0.1,test:0.1
convoy convert --images=photos/test --output=data --split=test
convoy convert --tfds=food101 --output=data
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags as absl_flags

from convoy.cli.progress import shown_progress
from convoy.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from convoy.input_pipeline.convert.convert import Summary
    from convoy.input_pipeline.convert.options import Options
    from convoy.input_pipeline.convert.sources import Table

REQUIRED = ("output",)

_CLASSES_SHOWN = 50


def define_flags(flags: absl_flags.FlagValues, argv: Sequence[str]) -> None:
    """Defines the command's flags."""
    del argv
    string, integer, number = absl_flags.DEFINE_string, absl_flags.DEFINE_integer, absl_flags.DEFINE_float
    string("images", None, "Folder of images: a folder a class, unless --manifest is given.", flag_values=flags)
    string(
        "tfds",
        None,
        "In place of --images: a dataset that TFDS has prepared, NAME[/CONFIG][:VERSION].",
        flag_values=flags,
    )
    string("tfds_dir", None, "Where TFDS keeps its datasets. Left out: its own choice.", flag_values=flags)
    string("manifest", None, "CSV that says which image is what: filename,category.", flag_values=flags)
    string("filename_column", "filename", "The manifest's column of file names.", flag_values=flags)
    string("category_column", "category", "The manifest's column of categories.", flag_values=flags)
    string("csv_delimiter", "", "Between the manifest's columns. Left out: what its header has.", flag_values=flags)
    string(
        "csv_encoding",
        "",
        "The manifest's encoding, such as cp1252. Left out: UTF-8, or UTF-16 where it begins so.",
        flag_values=flags,
    )
    absl_flags.DEFINE_enum(
        "missing",
        "error",
        ("error", "skip"),
        "Files that the manifest names and that are not there: an error, or left out and listed in quarantine.jsonl.",
        flag_values=flags,
    )
    string("output", None, "Dataset directory: a new one, or one to add a split to.", flag_values=flags)
    string("split", "train", "The split to write.", flag_values=flags)
    number(
        "validation_fraction",
        None,
        "Share of each class that goes into the split 'validation'. Left out: 0.1 for the split train, else 0.",
        flag_values=flags,
    )
    string(
        "splits",
        None,
        "Writes several splits at once, stratified: train:0.8,validation:0.1,test:0.1. Stands in place of --split and "
        "--validation_fraction.",
        flag_values=flags,
    )
    integer(
        "image_size",
        None,
        "Resizes every image to N x N pixels, aspect ratio not kept; 0 leaves images their size. Left out: what the "
        "dataset has, or 0.",
        flag_values=flags,
    )
    string(
        "encoding",
        None,
        "keep, jpeg, png or raw (uint8 RGB). keep passes JPEG and PNG bytes through unless pixels must change. "
        "Left out: what the dataset has, or keep.",
        flag_values=flags,
    )
    integer("workers", 0, "Processes; 0 is one a core. The result does not depend on it.", flag_values=flags)
    integer("seed", 0, "Seed of the splits and of the order in the shards.", flag_values=flags)
    number(
        "max_bad_fraction",
        0.01,
        "Share of images that may be left out because they cannot be decoded, before it is an error.",
        flag_values=flags,
    )
    string("name", None, "The dataset's name in file names. Left out: the output folder's name.", flag_values=flags)
    integer(
        "shards", 0, "Shards a split; 0 is one per 128 MiB, and 8 where there are images enough.", flag_values=flags
    )


def run(flags: absl_flags.FlagValues, arguments: Sequence[str]) -> int:
    """Converts, shows how far it is, and says what was done."""
    del arguments
    from convoy.core.processes import terminable
    from convoy.input_pipeline.convert.convert import convert
    from convoy.input_pipeline.convert.options import Options, parse_splits
    from convoy.input_pipeline.dataset.storage import is_remote

    for name in ("images", "manifest", "tfds_dir", "output"):
        if is_remote(flags[name].value or ""):
            raise UsageError(
                f"--{name}={flags[name].value}: convert reads and writes folders of this machine. Copy or mount the "
                "images, convert them to a folder, and copy that where it is wanted: training reads it from there"
            )
    if flags.splits and (flags["split"].present or flags["validation_fraction"].present):
        raise UsageError(
            f"--splits={flags.splits} stands in place of --split and --validation_fraction: leave them out"
        )
    if flags.tfds:
        images, splits = _prepared(flags)
    elif flags.images:
        images, splits = Path(flags.images), parse_splits(flags.splits) if flags.splits else None
    else:
        raise UsageError(
            "--images=FOLDER is missing (or --tfds=NAME). Example: convoy convert --images=photos --output=data"
        )
    options = Options(
        images=images,
        output=Path(flags.output),
        table=_table(flags),
        splits=splits,
        prepared=bool(flags.tfds),
        split=flags.split,
        validation_fraction=flags.validation_fraction,
        image_size=flags.image_size,
        encoding=flags.encoding,
        workers=flags.workers,
        seed=flags.seed,
        max_bad_fraction=flags.max_bad_fraction,
        name=flags.name,
        shards=flags.shards,
    )
    started = time.monotonic()
    with _kept_shards_told(options), terminable(), shown_progress("converting", "images") as progress:
        summary = convert(options, progress, say=lambda line: print(f"convoy: {line}", file=sys.stderr, flush=True))
    _print_summary(summary, options.output, time.monotonic() - started)
    return 0


def _prepared(flags: absl_flags.FlagValues) -> tuple[Path, dict[str, float]]:
    """Returns the directory that TFDS has prepared, and its splits, train first."""
    from convoy.input_pipeline.convert.tfds_sources import default_folder, find_prepared
    from convoy.input_pipeline.dataset.open import open_dataset

    for name in ("images", "manifest", "split", "splits", "validation_fraction"):
        if flags[name].present:
            raise UsageError(f"--{name} with --tfds={flags.tfds}: a dataset of TFDS has its own images and splits")
    directory = find_prepared(flags.tfds, Path(flags.tfds_dir) if flags.tfds_dir else default_folder())
    dataset = open_dataset(directory)
    usable = []
    for split in sorted(dataset.splits, key=lambda split: (split != "train", split)):
        try:
            dataset.split(split)
            usable.append(split)
        except DataError as error:
            print(f"convoy: {error}: left out.", file=sys.stderr)
    if not usable:
        raise DataError(f"--tfds={flags.tfds}: no split of {directory} can be used")
    return directory, dict.fromkeys(usable, 1 / len(usable))


def _table(flags: absl_flags.FlagValues) -> "Table | None":
    from convoy.input_pipeline.convert.sources import Table

    if not flags.manifest:
        return None
    return Table(
        Path(flags.manifest),
        filename_column=flags.filename_column,
        category_column=flags.category_column,
        delimiter=flags.csv_delimiter,
        encoding=flags.csv_encoding,
        skip_missing=flags.missing == "skip",
    )


@contextmanager
def _kept_shards_told(options: "Options") -> Iterator[None]:
    """Says what is left of a conversion that ends early, and what it is good for."""
    from convoy.input_pipeline.convert.publish import working_folder

    try:
        yield
    except UsageError:  # before any work, or beside that of another
        raise
    except BaseException:
        work = working_folder(options.output, next(iter(options.shares)))
        if number := len(work.finished()):
            print(
                f"convoy: {number} whole shards are kept in {os.path.relpath(work.folder)}: the same command goes on "
                "from them.",
                file=sys.stderr,
            )
        raise


def _print_summary(summary: "Summary", output: Path, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("split", box=None, pad_edge=False)
    for heading in ("images", "classes", "shards", "MB"):
        table.add_column(heading, justify="right")
    for split in summary.splits:
        numbers = (f"{split.images:,}", f"{split.classes:,}", f"{split.shards:,}", f"{split.size / 1e6:,.1f}")
        table.add_row(split.name, *numbers)
    console = Console(highlight=False)
    console.print(_class_table(summary))
    console.print()
    console.print(table)
    images = sum(split.images for split in summary.splits)
    lines = [f"{images:,} images in {seconds:.1f} s. Left out: {_left_out(summary)}."]
    if summary.conflicting:
        lines.append(f"{summary.conflicting:,} images have the bytes of one in another category; all were kept.")
    if any(_counts_left_out(summary).values()):
        lines.append(f"{output}/quarantine.jsonl says which files were left out, and why.")
    lines.append(f"{output}/report.html shows what is in the data, and what stands out.")
    lines.append(f"Next: convoy train --data={output} --workdir=RUN")
    for line in lines:
        print(line)


def _class_table(summary: "Summary") -> "RichTable":
    """Returns a line a class; of many classes, those with most left out and those with fewest images."""
    from rich.table import Table
    from rich.text import Text

    splits = [split.name for split in summary.splits]
    table = Table("class", box=None, pad_edge=False)
    for heading in (*splits, "re-encoded", "duplicates", "quarantined"):
        table.add_column(heading, justify="right")
    shown = sorted(summary.classes, key=lambda one: (-one.quarantined - one.duplicates, sum(one.kept.values())))
    chosen = {one.name for one in shown[:_CLASSES_SHOWN]}
    for one in summary.classes:
        if one.name in chosen:
            numbers = (*(one.kept[split] for split in splits), one.changed, one.duplicates, one.quarantined)
            name = Text(one.name.encode("utf-8", "replace").decode(), overflow="ellipsis", no_wrap=True)
            table.add_row(name, *(f"{number:,}" for number in numbers))
    if len(summary.classes) > len(chosen):
        table.add_row(f"and {len(summary.classes) - len(chosen):,} more classes")
    return table


def _left_out(summary: "Summary") -> str:
    counts = _counts_left_out(summary)
    always = ("duplicates", "quarantined", "other files ignored")
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count or what in always)


def _counts_left_out(summary: "Summary") -> dict[str, int]:
    return {
        "duplicates": summary.duplicates,
        "that another split has": summary.leaked,
        "quarantined": summary.quarantined,
        "missing": summary.missing,
        "other files ignored": summary.ignored,
    }
