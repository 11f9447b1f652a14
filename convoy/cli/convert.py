"""`convoy convert`: converts images to a dataset directory of TFRecord shards.

convoy convert --images=photos/train --output=data
convoy convert --images=photos/train --manifest=train.csv --output=data --splits=train:0.8,validation:0.1,test:0.1
convoy convert --images=photos/test --output=data --split=test
convoy convert --images=photos --output=data --dry_run
convoy convert --images=photos --manifest=labels.csv --output=data --label_delimiter=' '
convoy convert --images=camera.py:photos --output=data
convoy convert --parquet='train-*.parquet' --output=data
convoy convert --tar='shard-{000..099}.tar' --output=data
convoy convert --tfds=food101 --output=data --download
convoy convert --imagenet=ILSVRC --output=data
convoy convert --tfrecords=records --output=data --image_key=image --label_key=class
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags as absl_flags

from convoy.cli.foreign_records import define_record_flags, record_format
from convoy.cli.limits import define_limit_flags, limits_of
from convoy.cli.progress import progress_display
from convoy.cli.tables import print_table
from convoy.core.errors import UsageError
from convoy.core.flags import FlagDefiner
from convoy.core.processes import terminable
from convoy.core.remote import RemotePath
from convoy.core.terminal import can_redraw
from convoy.core.text import counted, one_line

if TYPE_CHECKING:
    from convoy.input_pipeline.convert.options import Options
    from convoy.input_pipeline.convert.sources import Table
    from convoy.input_pipeline.convert.summary import ClassSummary, GroupSummary, SplitSummary, Summary

REQUIRED = ("output",)

_OPTIONS = (
    "folders",
    "group_similar",
    "image_size",
    "encoding",
    "workers",
    "seed",
    "max_bad_fraction",
    "name",
    "shards",
    "dry_run",
)
_EXTREMES = 3  # classes listed at each end
_LEFT_OUT = 10  # files that a dry run lists
_NAME_LENGTH = 40


def define_flags(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Defines the command's flags."""
    define = FlagDefiner(flags)
    define.once(
        "images",
        None,
        "folder of images, local or s3://...: one subfolder per class, or one per split (train, test, ...) with class "
        "folders inside, unless --manifest is given; or FILE.py:NAME, a function that yields (image, category): bytes "
        "or a uint8 array",
    )
    define.enum(
        "folders",
        "auto",
        ("auto", "classes", "splits"),
        "what the folders in --images are; auto: splits if they are named like splits and have class folders inside",
    )
    define.once(
        "parquet",
        None,
        "instead of --images: parquet files, as of Hugging Face: 'data/train-*.parquet', or a folder of them",
        "Pass one pattern, such as --parquet='{a,b}.parquet'",
    )
    define.string("image_column", "", "column of the images in the parquet files; default: detected")
    define.string("label_column", "", "column of the labels in the parquet files; default: detected")
    define.once(
        "tar",
        None,
        "instead of --images: WebDataset archives, such as 'shard-{000..099}.tar', 'shards/*.tar' or a folder of them; "
        "also compressed ones",
        "Pass one pattern, such as --tar='{a,b}.tar'",
    )
    define.string(
        "label_field",
        "",
        "where the labels are in the archives: cls, txt or another suffix, or json:KEY; default: detected",
    )
    define.once(
        "tfds",
        None,
        "instead of --images: a dataset of TFDS, `NAME[/CONFIG][:VERSION]`, or FILE.py:CLASS, a builder of yours",
    )
    define.once("tfrecords", None, "instead of --images: a folder of TFRecords of other tools, also compressed ones")
    define_record_flags(flags)
    define.string("tfds_dir", None, "data_dir of TFDS; default: that of TFDS itself")
    define.bool("download", None, "have TFDS download and prepare the dataset if it is not in its data_dir")
    define.once(
        "imagenet",
        None,
        "instead of --images: the folder of ImageNet (ILSVRC 2012), as downloaded, unpacked, or from Kaggle",
    )
    define.once("manifest", None, "CSV of file names and categories: filename,category")
    define.string("filename_column", "filename", "manifest column of file names")
    define.string("category_column", "category", "manifest column of categories")
    define.string(
        "label_delimiter",
        "",
        "the column of categories has any number of labels per image, separated by this, such as ' '",
    )
    define.bool(
        "multi_label",
        False,
        "every other column of the manifest is a class, with 1 for the images that have it, else 0",
    )
    define.string("csv_delimiter", "", "column separator of the manifest; default: detected from its header")
    define.string(
        "csv_encoding",
        "",
        "encoding of the manifest, such as cp1252; default: UTF-8, or UTF-16 with a byte order mark",
    )
    define.enum(
        "missing",
        "error",
        ("error", "skip"),
        "what to do if files of the manifest, or of ImageNet's validation images, are missing: fail, or skip "
        "them and list them in quarantine.jsonl",
    )
    define.string(
        "output",
        None,
        "dataset directory: a new one, or an existing one to add a split to; s3://... is built in the cache folder and "
        "uploaded",
    )
    define.string("split", "train", "split to write")
    define.float(
        "validation_fraction",
        None,
        "share of each class for the split 'validation'; default: 0.1 for the split train, else 0",
    )
    define.string(
        "splits",
        None,
        "write several stratified splits: train:0.8,validation:0.1,test:0.1; overrides --split and "
        "--validation_fraction",
    )
    define.bool(
        "group_similar",
        False,
        "keep images that look alike in one split, where splits are drawn; every image is read twice",
    )
    define.string(
        "group_column",
        "",
        "manifest column whose values, such as patients or products, name groups of images; each stays in one split",
    )
    define.integer(
        "image_size",
        None,
        "resize every image to N x N pixels, without keeping the aspect ratio; 0: original sizes; default: the setting "
        "of the dataset, or 0",
    )
    define.string(
        "encoding",
        None,
        "keep, jpeg, png or raw (uint8 RGB); keep passes JPEG and PNG bytes through unless pixels must change; "
        "default: the setting of the dataset, or keep",
    )
    define.integer("workers", 0, "number of processes; 0: one per core; the result does not depend on it")
    define.integer("seed", 0, "seed of the splits and of the order within the shards")
    define.float("max_bad_fraction", 0.01, "largest tolerated share of images that cannot be used and are left out")
    define_limit_flags(define)
    define.string("name", None, "name of the dataset in file names; default: name of the output folder")
    define.integer("shards", 0, "shards per split; 0: one per 128 MiB, and at least 8 if there are enough images")
    define.bool(
        "dry_run",
        False,
        "write nothing: list classes, images per split and what would be left out; every image is decoded",
    )
    define.bool("verbose", False, "print one row per class, and in a dry run one line per file that would be left out")


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Converts the images and prints a summary."""
    from convoy.input_pipeline.convert.convert import convert
    from convoy.input_pipeline.convert.options import parse_splits
    from convoy.input_pipeline.convert.request import Request
    from convoy.input_pipeline.convert.source_kinds import ORIGIN_FLAGS, options_of

    if flags.group_column and not flags.manifest:
        raise UsageError(f"--group_column={flags.group_column} is a column of a CSV. Pass the CSV as --manifest")
    for flag in ("label_delimiter", "multi_label"):
        if flags[flag].value and not flags.manifest:
            raise UsageError(f"--{flag} is for labels in a CSV. Pass the CSV as --manifest")
    request = Request(
        output=flags.output,
        origin={name: flags[name].value for name in ORIGIN_FLAGS if name in flags},
        table=_table(flags),
        split=flags.split if flags["split"].present else "",
        splits=parse_splits(flags.splits) if flags.splits else None,
        validation_fraction=flags.validation_fraction,
        record_format=record_format(flags, flags.tfrecords),
        skip_missing=flags.missing == "skip",
        show_bars=can_redraw(sys.stderr),
        others={**{name: flags[name].value for name in _OPTIONS}, "limits": limits_of(flags)},
    )
    started = time.monotonic()
    with terminable(), options_of(request, _log) as options:
        if options.dry_run:
            with _dry_run_display() as (progress, preview):
                summary = convert(options, progress, log=_log, preview=preview)
            _print_dry_run(summary, verbose=flags.verbose)
            return
        with _report_kept_shards(options), progress_display("converting", "images") as progress:
            summary = convert(options, progress, log=_log)
        _print_summary(summary, options.output, time.monotonic() - started, verbose=flags.verbose)


def _log(line: str) -> None:
    print(f"convoy: {line}", file=sys.stderr, flush=True)


def _table(flags: absl_flags.FlagValues) -> "Table | None":
    from convoy.input_pipeline.convert.sources import Table
    from convoy.input_pipeline.dataset.storage import dataset_path

    if not flags.manifest:
        return None
    return Table(
        dataset_path(flags.manifest),
        filename_column=flags.filename_column,
        category_column=flags.category_column,
        group_column=flags.group_column,
        delimiter=flags.csv_delimiter,
        encoding=flags.csv_encoding,
        skip_missing=flags.missing == "skip",
        label_delimiter=flags.label_delimiter,
        one_hot=flags.multi_label,
    )


@contextmanager
def _report_kept_shards(options: "Options") -> Iterator[None]:
    """Reports the finished shards of a conversion that fails or is interrupted."""
    from convoy.input_pipeline.convert.publish import working_folder

    try:
        yield
    except UsageError:  # raised before any work, or because of another conversion's
        raise
    except BaseException:
        work = working_folder(options.output, next(iter(options.shares)))
        if work.is_worth_keeping:
            shards = len(work.finished())
            compared = "finished comparisons of images are"
            kept = counted(shards, "finished shard is", "finished shards are") if shards else compared
            print(
                f"convoy: {kept} kept in {os.path.relpath(work.folder)}. Rerun the same command to resume.",
                file=sys.stderr,
            )
        raise


@contextmanager
def _dry_run_display() -> Iterator[tuple[Callable[[int, int], None], Callable[["Summary"], None]]]:
    """Yields the functions that show the progress of a dry run, and what it knows before it decodes the images."""
    with ExitStack() as displays:
        started: list[Callable[[int, int], None]] = []

        def progress(done: int, total: int) -> None:
            if not started:
                started.append(displays.enter_context(progress_display("checking", "images")))
            started[0](done, total)

        def preview(summary: "Summary") -> None:
            displays.close()  # its bar would be among the lines
            started.clear()
            for line in class_summary(summary):
                print(line)
            print(
                f"Left out so far: {_left_out(summary, ('duplicates', 'other files ignored'))}. Decoding all images:",
                flush=True,
            )

        yield progress, preview


def _print_dry_run(summary: "Summary", *, verbose: bool) -> None:
    _print_tables(summary, verbose=verbose)
    lines = [*_group_lines(summary.grouped)]
    lines.append(f"{_images(summary)} would be converted. Left out: {_left_out(summary)}.")
    listed = summary.left_out if verbose else summary.left_out[:_LEFT_OUT]
    lines += (f"  {entry.path}: {entry.reason}" for entry in listed)
    if len(listed) < len(summary.left_out):
        lines.append(f"  ... and {len(summary.left_out) - len(listed):,} more, which --verbose lists")
    lines += _conflict_lines(summary)
    lines.append("Nothing was written. The same command without --dry_run converts the images.")
    for line in lines:
        print(one_line(line))


def _print_tables(summary: "Summary", *, verbose: bool) -> None:
    if verbose:
        _print_class_table(summary)
        print()
    print_table(
        ("split",),
        ("images", "classes", "shards", "MB"),
        [(split.name, split.images, split.classes, split.shards, split.size / 1e6) for split in summary.splits],
    )


def _images(summary: "Summary") -> str:
    return counted(sum(split.images for split in summary.splits), "image")


def _conflict_lines(summary: "Summary") -> Iterator[str]:
    if summary.conflicts:
        listed = "; ".join(f"{one!r} and {other!r}" for one, other in summary.conflicts[:_EXTREMES])
        more = "; ..." if len(summary.conflicts) > _EXTREMES else ""
        same = counted(len(summary.conflicts), "image has", "images have")
        yield (
            f"{same} the bytes of an image with another label: {listed}{more}. Correct the labels, or keep one copy of "
            "each."
        )


def _print_summary(summary: "Summary", output: Path | RemotePath, seconds: float, *, verbose: bool) -> None:
    _print_tables(summary, verbose=verbose)
    lines = class_summary(summary)
    lines += _group_lines(summary.grouped)
    lines.append(f"{_images(summary)} in {seconds:.1f} s. Left out: {_left_out(summary)}.")
    lines += _conflict_lines(summary)
    if any(_counts_left_out(summary).values()):
        lines.append(f"{output}/quarantine.jsonl: files that were left out, with reasons")
    lines.append(f"{output}/report.html: contents of the dataset and findings")
    lines.append(f"Next: convoy train --data={output} --workdir=RUN")
    for line in lines:
        print(line)


def _group_lines(grouped: "GroupSummary | None") -> Iterator[str]:
    if not grouped:
        return
    groups, images = counted(grouped.groups, "group"), counted(grouped.images, "image")
    yield f"Kept in one split: {groups} ({images}); {grouped.otherwise_spread:,} would have been spread over several."
    for split, (wanted, actual) in grouped.missed.items():
        yield (
            f"{split} has {100 * actual:.1f} % of the images instead of {100 * wanted:.1f} %: the groups are too "
            f"large, up to {counted(grouped.largest, 'image')}."
        )
    if not grouped.complete:
        yield "Too many images look alike to compare all pairs: some of them may be in different splits."


def class_summary(summary: "Summary") -> list[str]:
    """Returns a few lines on the largest and smallest classes of each split, whatever the number of classes.

    A split has one line if all classes have the same number of images.
    """
    lines = []
    for split in summary.splits:
        ordered = sorted(summary.classes, key=lambda one: -one.kept[split.name])
        most = ordered[0].kept[split.name]
        lines.append(f"{split.name}: {counted(split.images, 'image')} of {counted(split.classes, 'class', 'classes')}")
        if split.labels_per_image:
            lines[-1] += f", {_labels_per_image(split)}"
        if most == ordered[-1].kept[split.name]:
            lines[-1] += f", {most:,} per class"
        elif len(ordered) <= 2 * _EXTREMES:
            lines.append(f"  classes: {_counts(ordered, split.name)}")
        else:
            lines.append(f"  largest: {_counts(ordered[:_EXTREMES], split.name)}")
            lines.append(f"  smallest: {_counts(ordered[: -_EXTREMES - 1 : -1], split.name)}")
    affected = sorted(summary.classes, key=lambda one: -one.quarantined - one.duplicates)[:_EXTREMES]
    left_out = [(one, one.quarantined + one.duplicates) for one in affected if one.quarantined + one.duplicates]
    if left_out:
        lines.append(f"most left out: {', '.join(f'{_shown(one.name)} {number:,}' for one, number in left_out)}")
    return lines


def _labels_per_image(split: "SplitSummary") -> str:
    """Returns the mean number of labels, and how many images have none."""
    numbers = split.labels_per_image
    mean = sum(number * images for number, images in enumerate(numbers)) / split.images
    return f"{mean:.2f} labels per image" + (f", none for {counted(numbers[0], 'image')}" if numbers[0] else "")


def _counts(classes: Sequence["ClassSummary"], split: str) -> str:
    return ", ".join(f"{_shown(one.name)} {one.kept[split]:,}" for one in classes)


def _shown(name: str) -> str:
    text = name.encode("utf-8", "replace").decode()
    return repr(text if len(text) <= _NAME_LENGTH else text[: _NAME_LENGTH - 1] + "…")


def _print_class_table(summary: "Summary") -> None:
    """Prints one row per class."""
    splits = [split.name for split in summary.splits]
    rows: list[tuple[str | int, ...]] = []
    for one in summary.classes:
        name = one.name.encode("utf-8", "replace").decode()
        rows.append((name, *(one.kept[split] for split in splits), one.changed, one.duplicates, one.quarantined))
    print_table(("class",), (*splits, "re-encoded", "duplicates", "quarantined"), rows)


def _left_out(summary: "Summary", always: Sequence[str] = ("duplicates", "quarantined", "other files ignored")) -> str:
    counts = _counts_left_out(summary)
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count or what in always)


def _counts_left_out(summary: "Summary") -> dict[str, int]:
    return {
        "duplicates": summary.duplicates,
        "already in another split": summary.leaked,
        "quarantined": summary.quarantined,
        "missing": summary.missing,
        "other files ignored": summary.ignored,
    }
