"""`convoy convert`: converts images to a dataset directory of TFRecord shards.

convoy convert --images=photos/train --output=data
convoy convert --images=photos/train --manifest=train.csv --output=data --splits=train:0.8,validation:0.1,test:0.1
convoy convert --images=photos/test --output=data --split=test
convoy convert --tfds=food101 --output=data
"""

import os
import statistics
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

    from convoy.input_pipeline.convert.convert import ClassSummary, Summary
    from convoy.input_pipeline.convert.options import Options
    from convoy.input_pipeline.convert.sources import Table

REQUIRED = ("output",)

_EXTREMES = 3
_LONGEST_NAME = 40


def define_flags(flags: absl_flags.FlagValues, argv: Sequence[str]) -> None:
    """Defines the flags."""
    del argv
    string, integer, number = absl_flags.DEFINE_string, absl_flags.DEFINE_integer, absl_flags.DEFINE_float
    string(
        "images", None, "folder of images, with one subfolder per class unless --manifest is given", flag_values=flags
    )
    string("tfds", None, "instead of --images: a dataset prepared by TFDS, NAME[/CONFIG][:VERSION]", flag_values=flags)
    string("tfds_dir", None, "folder of TFDS datasets; TFDS's own default if not given", flag_values=flags)
    string("manifest", None, "CSV with the category of each image: filename,category", flag_values=flags)
    string("filename_column", "filename", "column of file names in the manifest", flag_values=flags)
    string("category_column", "category", "column of categories in the manifest", flag_values=flags)
    string("csv_delimiter", "", "delimiter of the manifest; detected from its header if not given", flag_values=flags)
    string(
        "csv_encoding",
        "",
        "encoding of the manifest, such as cp1252; UTF-8 or UTF-16 (by its byte order mark) if not given",
        flag_values=flags,
    )
    absl_flags.DEFINE_enum(
        "missing",
        "error",
        ("error", "skip"),
        "files that are in the manifest but do not exist: an error, or skipped and listed in quarantine.jsonl",
        flag_values=flags,
    )
    string("output", None, "dataset directory: a new one, or an existing one to add a split to", flag_values=flags)
    string("split", "train", "split to write", flag_values=flags)
    number(
        "validation_fraction",
        None,
        "share of each class for the split 'validation'; if not given, 0.1 for the split train and 0 otherwise",
        flag_values=flags,
    )
    string(
        "splits",
        None,
        "write several stratified splits at once: train:0.8,validation:0.1,test:0.1; overrides --split and "
        "--validation_fraction",
        flag_values=flags,
    )
    integer(
        "image_size",
        None,
        "resize every image to N x N pixels, ignoring the aspect ratio; 0 keeps the size; if not given, as in the "
        "existing dataset, or 0",
        flag_values=flags,
    )
    string(
        "encoding",
        None,
        "keep, jpeg, png or raw (uint8 RGB); keep stores JPEG and PNG files unchanged unless pixels must change; if "
        "not given, as in the existing dataset, or keep",
        flag_values=flags,
    )
    integer("workers", 0, "worker processes; 0 is one per core; does not affect the result", flag_values=flags)
    integer("seed", 0, "seed of the splits and of the order within shards", flag_values=flags)
    number("max_bad_fraction", 0.01, "largest share of images that may fail to decode", flag_values=flags)
    string("name", None, "dataset name in file names; the name of the output folder if not given", flag_values=flags)
    integer(
        "shards", 0, "shards per split; 0 is one per 128 MiB, at least 8 if there are enough images", flag_values=flags
    )
    absl_flags.DEFINE_bool("verbose", False, "print one row per class", flag_values=flags)


def run(flags: absl_flags.FlagValues, arguments: Sequence[str]) -> int:
    """Converts images, shows progress, and prints a summary."""
    del arguments
    from convoy.core.processes import terminable
    from convoy.input_pipeline.convert.convert import convert
    from convoy.input_pipeline.convert.options import Options, parse_splits
    from convoy.input_pipeline.dataset.storage import is_remote

    for name in ("images", "manifest", "tfds_dir", "output"):
        if is_remote(flags[name].value or ""):
            raise UsageError(
                f"--{name}={flags[name].value}: convert reads and writes local folders only. Copy or mount the images, "
                "convert them to a local folder, and upload that: training can read it from there."
            )
    if flags.splits and (flags["split"].present or flags["validation_fraction"].present):
        raise UsageError(f"--splits={flags.splits} overrides --split and --validation_fraction: omit them.")
    if flags.tfds:
        images, splits = _prepared(flags)
    elif flags.images:
        images, splits = Path(flags.images), parse_splits(flags.splits) if flags.splits else None
    else:
        raise UsageError("--images or --tfds is required. Example: convoy convert --images=photos --output=data")
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
    with _reports_kept_shards(options), terminable(), shown_progress("converting", "images") as progress:
        summary = convert(options, progress, say=lambda line: print(f"convoy: {line}", file=sys.stderr, flush=True))
    _print_summary(summary, options.output, time.monotonic() - started, verbose=flags.verbose)
    return 0


def _prepared(flags: absl_flags.FlagValues) -> tuple[Path, dict[str, float] | None]:
    """Returns the directory prepared by TFDS, and its splits, train first."""
    from convoy.input_pipeline.convert.tfds_sources import default_folder, find_prepared
    from convoy.input_pipeline.dataset.open import open_dataset

    for name in ("images", "manifest", "split", "splits", "validation_fraction"):
        if flags[name].present:
            raise UsageError(
                f"--{name} cannot be used with --tfds={flags.tfds}, which has its own images and splits: omit it."
            )
    directory = find_prepared(flags.tfds, Path(flags.tfds_dir) if flags.tfds_dir else default_folder())
    dataset = open_dataset(directory)
    usable = []
    for split in sorted(dataset.splits, key=lambda split: (split != "train", split)):
        try:
            dataset.split(split)
            usable.append(split)
        except DataError as error:
            print(f"convoy: {error}: skipped.", file=sys.stderr)
    if not usable:
        raise DataError(f"--tfds={flags.tfds}: {directory} has no usable split.")
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
def _reports_kept_shards(options: "Options") -> Iterator[None]:
    """Reports the finished shards of a conversion that fails or is interrupted."""
    from convoy.input_pipeline.convert.publish import working_folder

    try:
        yield
    except UsageError:  # raised before any work, or while another process converts
        raise
    except BaseException:
        work = working_folder(options.output, next(iter(options.shares)))
        if number := len(work.finished()):
            print(
                f"convoy: {number} finished shards are kept in {os.path.relpath(work.folder)}. Rerun the same command "
                "to resume.",
                file=sys.stderr,
            )
        raise


def _print_summary(summary: "Summary", output: Path, seconds: float, *, verbose: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("split", box=None, pad_edge=False)
    for heading in ("images", "classes", "shards", "MB"):
        table.add_column(heading, justify="right")
    for split in summary.splits:
        numbers = (f"{split.images:,}", f"{split.classes:,}", f"{split.shards:,}", f"{split.size / 1e6:,.1f}")
        table.add_row(split.name, *numbers)
    console = Console(highlight=False)
    if verbose:
        console.print(_class_table(summary))
        console.print()
    console.print(table)
    images = sum(split.images for split in summary.splits)
    lines = [*class_lines(summary.classes), f"{images:,} images in {seconds:.1f} s. Left out: {_left_out(summary)}."]
    if summary.conflicting:
        lines.append(f"{summary.conflicting:,} images have the same bytes as one in another category; all were kept.")
    if any(_counts_left_out(summary).values()):
        lines.append(f"{output}/quarantine.jsonl lists the files that were left out, with the reasons.")
    lines.append(f"{output}/report.html shows every class, and what stands out.")
    lines.append(f"Next: convoy train --data={output} --workdir=RUN")
    for line in lines:
        print(line)


def class_lines(classes: Sequence["ClassSummary"]) -> list[str]:
    """Returns a few lines about the classes, whatever their number: sizes, extremes, most images left out."""
    by_size = sorted(classes, key=lambda one: (sum(one.kept.values()), one.name))
    sizes = [sum(one.kept.values()) for one in by_size]
    if not sizes:
        return []
    spread = f"{sizes[0]:,}" if sizes[0] == sizes[-1] else f"{sizes[0]:,} to {sizes[-1]:,}"
    lines = [f"Images per class: {spread}, median {statistics.median_low(sizes):,}."]
    if sizes[0] != sizes[-1]:
        for name, chosen in (("Smallest", by_size[:_EXTREMES]), ("Largest", by_size[::-1][:_EXTREMES])):
            listed = ", ".join(f"{_shown(one.name)} {sum(one.kept.values()):,}" for one in chosen)
            lines.append(f"{name} classes: {listed}.")
    worst = sorted(classes, key=lambda one: (-one.duplicates - one.quarantined, one.name))[:_EXTREMES]
    if worst := [one for one in worst if one.duplicates + one.quarantined]:
        listed = ", ".join(
            f"{_shown(one.name)} {one.duplicates:,} duplicates, {one.quarantined:,} quarantined" for one in worst
        )
        lines.append(f"Most left out: {listed.replace(' quarantined, ', ' quarantined; ')}.")
    return lines


def _shown(name: str) -> str:
    text = name.encode("utf-8", "replace").decode()
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "…"


def _class_table(summary: "Summary") -> "RichTable":
    from rich.table import Table
    from rich.text import Text

    splits = [split.name for split in summary.splits]
    table = Table("class", box=None, pad_edge=False)
    for heading in (*splits, "re-encoded", "duplicates", "quarantined"):
        table.add_column(heading, justify="right")
    for one in summary.classes:
        numbers = (*(one.kept[split] for split in splits), one.changed, one.duplicates, one.quarantined)
        name = Text(one.name.encode("utf-8", "replace").decode(), overflow="ellipsis", no_wrap=True)
        table.add_row(name, *(f"{number:,}" for number in numbers))
    return table


def _left_out(summary: "Summary") -> str:
    counts = _counts_left_out(summary)
    always = ("duplicates", "quarantined", "other files ignored")
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count or what in always)


def _counts_left_out(summary: "Summary") -> dict[str, int]:
    return {
        "duplicates": summary.duplicates,
        "already in another split": summary.leaked,
        "quarantined": summary.quarantined,
        "missing": summary.missing,
        "other files ignored": summary.ignored,
    }
