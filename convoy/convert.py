"""`convoy convert`: turns images into a dataset directory of TFRecord shards.

convoy convert --images=photos/train --output=data
convoy convert --images=photos/train --manifest=train.csv --output=data
convoy convert --images=photos/test --output=data --split=test
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags as absl_flags

if TYPE_CHECKING:
    from input_pipeline.converter.convert import Summary

REQUIRED = ("images", "output")

_PLAIN_LINE_SECONDS = 10.0


def define_flags(flags: absl_flags.FlagValues, argv: Sequence[str]) -> None:
    """Defines the command's flags."""
    del argv
    string, integer, number = absl_flags.DEFINE_string, absl_flags.DEFINE_integer, absl_flags.DEFINE_float
    string("images", None, "Folder of images: a folder a class, unless --manifest is given.", flag_values=flags)
    string("manifest", None, "CSV (UTF-8) that says which image is what: filename,category.", flag_values=flags)
    string("filename_column", "filename", "The manifest's column of file names.", flag_values=flags)
    string("category_column", "category", "The manifest's column of categories.", flag_values=flags)
    string("output", None, "Dataset directory: a new one, or one to add a split to.", flag_values=flags)
    string("split", "train", "The split to write.", flag_values=flags)
    number(
        "validation_fraction",
        None,
        "Share of each class that goes into the split 'validation'. Left out: 0.1 for the split train, else 0.",
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
    integer("seed", 0, "Seed of the validation split and of the order in the shards.", flag_values=flags)
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
    from input_pipeline.converter import convert
    from input_pipeline.processes import terminable

    options = convert.Options(
        images=Path(flags.images),
        output=Path(flags.output),
        manifest=Path(flags.manifest) if flags.manifest else None,
        split=flags.split,
        validation_fraction=flags.validation_fraction,
        image_size=flags.image_size,
        encoding=flags.encoding,
        workers=flags.workers,
        seed=flags.seed,
        max_bad_fraction=flags.max_bad_fraction,
        name=flags.name,
        shards=flags.shards,
        filename_column=flags.filename_column,
        category_column=flags.category_column,
    )
    started = time.monotonic()
    with terminable(), _progress() as progress:
        summary = convert.convert(options, progress)
    _print_summary(summary, options.output, time.monotonic() - started)
    return 0


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
    console.print(table)
    images = sum(split.images for split in summary.splits)
    lines = [f"{images:,} images in {seconds:.1f} s. Left out: {_left_out(summary)}."]
    if summary.conflicting:
        lines.append(f"{summary.conflicting:,} images have the bytes of one in another category; all were kept.")
    if summary.duplicates or summary.quarantined:
        lines.append(f"{output}/quarantine.jsonl says which images were left out, and why.")
    lines.append(f"Next: convoy train --data={output} --workdir=RUN")
    for line in lines:
        print(line)


def _left_out(summary: "Summary") -> str:
    counts = {
        "duplicates": summary.duplicates,
        "quarantined": summary.quarantined,
        "other files ignored": summary.ignored,
    }
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, and a line now and then elsewhere."""
    if not sys.stderr.isatty():
        yield _PlainProgress()
        return
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("converting"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[rate]}"),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("convert", total=None, rate="starting")

        def update(done: int, total: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=done, total=total, rate=f"{speed:,.0f} images/s" if speed else "starting")

        yield update


class _PlainProgress:
    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self._next = time.monotonic() + _PLAIN_LINE_SECONDS

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done and self._first is None:
            self._first = (now, done)
        if now < self._next:
            return
        self._next = now + _PLAIN_LINE_SECONDS
        rate = (done - self._first[1]) / (now - self._first[0]) if self._first and now > self._first[0] else 0.0
        left = f", {(total - done) / rate:,.0f} s left" if rate else ""
        print(f"converting: {done:,} of {total:,} images, {rate:,.0f} images/s{left}", file=sys.stderr, flush=True)
