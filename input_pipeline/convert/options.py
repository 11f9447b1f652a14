"""Options of a conversion, and their validation."""

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convoy.core.errors import UsageError, did_you_mean
from convoy.core.remote import RemotePath
from convoy.input_pipeline.convert import metadata
from convoy.input_pipeline.convert.sources import Sources, Table
from convoy.input_pipeline.convert.split_folders import find_splits
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import MANIFEST, has_manifest, open_dataset
from convoy.input_pipeline.images.pixels import Limits

ENCODINGS = ("keep", "jpeg", "png", "raw")
FOLDERS = ("auto", "classes", "splits")
VALIDATION = "validation"

# Lists images, which can be read while the context is open.
Listing = Callable[[], AbstractContextManager[Sources]]


@dataclass(frozen=True)
class Options:
    """Options of a conversion.

    Attributes:
      images: folder of images, or directory of records of another tool.
      output: dataset directory, new or existing, local or in an object store.
      table: CSV of file names and categories; None takes each subfolder of `images` as a class.
      split: split to write.
      validation_fraction: share of the images, in [0, 1), for the split `validation`. None is 0.1 for the split `train`
        and 0 for others.
      splits: shares by split, each in (0, 1], with the sum 1; overrides `split` and `validation_fraction`.
      prepared: whether the images have splits by themselves, as records of other tools do; `split_folders` or `splits`
        then names those to convert.
      record_format: what is known about these records.
      listing: lists the images, in place of the files or records in `images`, which then only names them in messages.
      folders: what the folders in `images` are, without a table: one of `FOLDERS`. "auto" takes folders named like
        splits with class folders inside as splits, and others as classes.
      split_folders: folders of the splits in `images`, by split; `with_split_folders` finds them. Of records, the names
        of their splits.
      group_similar: whether images that look alike stay in one split, as those of one `Table.group_column` do.
      image_size: side of the resized square images, pixels; the aspect ratio is not kept. 0 keeps the original size.
        None is the setting of the dataset, or 0.
      encoding: one of `ENCODINGS`. None is the setting of the dataset, or "keep".
      workers: number of processes; 0 is one per core. The result does not depend on it.
      seed: seed of the splits and of the order within the shards.
      max_bad_fraction: share of unusable images that is tolerated, in [0, 1]; of each split if `prepared`.
      name: name of the dataset in file names; None is that of the dataset, or of the output folder.
      shards: number of shards per split; 0 chooses.
      limits: limits of the image files; files beyond them are left out.
      dry_run: whether to write nothing, and only find out what would be written.
    """

    images: Path
    output: Path | RemotePath
    table: Table | None = None
    split: str = "train"
    validation_fraction: float | None = None
    splits: Mapping[str, float] | None = None
    prepared: bool = False
    record_format: RecordFormat = RecordFormat()
    listing: Listing | None = None
    folders: str = "auto"
    split_folders: Mapping[str, str] | None = None
    group_similar: bool = False
    image_size: int | None = None
    encoding: str | None = None
    workers: int = 0
    seed: int = 0
    max_bad_fraction: float = 0.01
    name: str | None = None
    shards: int = 0
    limits: Limits = Limits()
    dry_run: bool = False

    @property
    def shares(self) -> dict[str, float]:
        """Share of the images by split; the first split gets the remainder. With folders of splits, of its folder."""
        if self.splits is not None:
            return dict(self.splits)
        own = dict.fromkeys(self.split_folders or (), 1.0)
        first = next(iter(own), self.split)
        fraction = self.validation_fraction
        if fraction is None:
            fraction = 0.1 if first == "train" and VALIDATION not in own else 0.0
        drawn = {first: 1 - fraction, VALIDATION: fraction} if fraction else {first: 1.0}
        return {**drawn, **{split: share for split, share in own.items() if split != first}}

    @property
    def drawn(self) -> dict[str, float]:
        """Those of `shares` whose splits are drawn from the same images; only the first if nothing is drawn."""
        own = list(self.split_folders or (self.shares if self.prepared else ()))
        return {split: share for split, share in self.shares.items() if split not in own[1:]}

    @property
    def grouping(self) -> str:
        """The flags that keep groups of images in one split, as text; "" without groups."""
        column = self.table.group_column if self.table else ""
        return " and ".join(["--group_similar"] * self.group_similar + [f"--group_column={column}"] * bool(column))


def with_split_folders(options: Options) -> Options:
    """Returns the options with `split_folders` set if `images` is a folder of splits.

    Raises:
      UsageError: the splits of the folder contradict other options.
      DataError: the folder cannot be read, or only some of its folders are splits.
    """
    if options.folders not in FOLDERS:
        raise UsageError(f"--folders={options.folders}: must be one of {', '.join(FOLDERS)}")
    own = options.listing or options.table or options.prepared or options.split_folders is not None
    if own or options.folders == "classes":
        return options
    folders = find_splits(options.images, by_name=options.folders == "auto")
    if not folders:
        return options
    first, last = next(iter(folders)), list(folders)[-1]
    has = f"{options.images} has its own splits, {', '.join(folders.values())}"
    otherwise = "or pass --folders=classes if these are the classes"
    if options.splits is not None:
        raise UsageError(f"--splits cannot be combined with --images={options.images}: {has}. Omit it, {otherwise}")
    if options.split != "train":
        part = options.images / folders.get(options.split, folders[last])
        raise UsageError(f"--split={options.split}: {has}. Pass --images={part}, {otherwise}")
    if options.validation_fraction and (VALIDATION in folders or first != "train"):
        raise UsageError(f"--validation_fraction={options.validation_fraction}: {has}. Omit it, {otherwise}")
    return replace(options, split_folders=folders)


def parse_splits(text: str) -> dict[str, float]:
    """Returns shares by split from `train:0.8,validation:0.1,test:0.1`.

    Raises:
      UsageError: the text cannot be parsed, or the shares do not add up to 1.
    """
    example = "Example: --splits=train:0.8,validation:0.1,test:0.1"
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.strip().partition(":")
        try:
            value = float(share)
        except ValueError:
            raise UsageError(f"--splits={text}: {part!r} is not NAME:SHARE. {example}") from None
        if not 0 < value <= 1 or name.lower() in map(str.lower, shares):
            raise UsageError(f"--splits={text}: {part!r} repeats a split, or its share is not in (0, 1]. {example}")
        shares[name] = value
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise UsageError(f"--splits={text}: the shares add up to {sum(shares.values()):g}, not to 1. {example}")
    return shares


def check(options: Options) -> dict[str, Any] | None:
    """Checks the options and returns the manifest of the dataset in `output`, or None for a new one.

    Raises:
      UsageError: the options are invalid, on their own or for the dataset in `output`.
      DataError: the dataset in `output` is damaged.
    """
    for split in options.shares:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", split) or split == "all":
            raise UsageError(
                f"--split={split}: must be letters, digits and underscores, starting with a letter, and not 'all'"
            )
    if options.encoding is not None and options.encoding not in ENCODINGS:
        raise UsageError(
            f"--encoding={options.encoding}: must be one of {', '.join(ENCODINGS)}"
            f"{did_you_mean(options.encoding, ENCODINGS)}"
        )
    if not 0 <= (options.validation_fraction or 0) < 1:
        raise UsageError(f"--validation_fraction={options.validation_fraction}: must be at least 0 and below 1")
    if not 0 <= options.max_bad_fraction <= 1:
        raise UsageError(f"--max_bad_fraction={options.max_bad_fraction}: must be from 0 to 1")
    for flag in ("image_size", "workers", "shards"):
        if (getattr(options, flag) or 0) < 0:
            raise UsageError(f"--{flag}={getattr(options, flag)}: must be 0 or more")
    if options.name is not None and metadata.dataset_name(options.name) != options.name:
        raise UsageError(
            f"--name={options.name}: must be lower case letters, digits and underscores, starting with a letter. "
            f"Pass --name={metadata.dataset_name(options.name)}"
        )
    if options.split.lower() == VALIDATION and options.validation_fraction:
        raise UsageError(f"--split={options.split} with --validation_fraction: both write the same split. Omit one")
    if options.table and options.table.label_delimiter and options.table.one_hot:
        raise UsageError(
            f"--label_delimiter={options.table.label_delimiter!r} is for labels in one column, and --multi_label for a "
            "column per class. Pass one of them"
        )
    if options.grouping and len(options.drawn) == 1:
        own = options.split_folders or options.prepared
        where = "have their splits" if own else f"go to the split {next(iter(options.drawn))!r}"
        raise UsageError(
            f"{options.grouping}: no splits are drawn, because the images of {options.images} {where}. Omit it"
            + ("" if own else ", or pass --splits")
        )
    output = options.output
    if isinstance(output, RemotePath):
        if not has_manifest(output):  # an interrupted upload may have left other files
            return None
    elif not output.exists() or (output.is_dir() and not any(output.iterdir())):
        # A new dataset is renamed to `output` as a whole, which replaces neither links nor mount points.
        if output.is_symlink():
            raise UsageError(f"--output={output} is a link. Pass its target, --output={output.resolve()}")
        if output.is_mount():
            raise UsageError(
                f"--output={output} is a mount point. Pass a folder inside it, such as --output={output}/data"
            )
        return None
    elif not (output / MANIFEST).is_file():
        raise UsageError(
            f"--output={output} exists and is not a dataset (it has no {MANIFEST}). Pass a new or an empty folder"
        )
    manifest = dict(open_dataset(output).manifest)
    _check_fits(options, manifest)
    return manifest


def _check_fits(options: Options, manifest: dict[str, Any]) -> None:
    existing = sorted(manifest["splits"])
    # Their files would be the same ones where names are not case-sensitive.
    lower_case = [split.lower() for split in existing]
    repeated = [split for split in options.shares if split.lower() in lower_case]
    if repeated and options.split_folders and not options.prepared:
        raise UsageError(
            f"{options.output} already has a split {repeated[0]!r} (it has {', '.join(existing)}). Pass one of the "
            f"other folders in --images={options.images} with --split, or another --output"
        )
    own = options.splits or options.split_folders or [options.split]
    if repeated == [VALIDATION] and VALIDATION not in own:
        raise UsageError(
            f"{options.output} already has a split {VALIDATION!r}. Pass --validation_fraction=0 to keep it"
        )
    if repeated:
        raise UsageError(
            f"--split={repeated[0]}: {options.output} already has this split (it has {', '.join(existing)}). "
            "Pass another --split or another --output"
        )
    multi_label = bool(options.table and options.table.multi_label)
    if multi_label != manifest.get("multi_label", False):
        kinds = ("any number of labels", "one label")
        fix = "Convert those from a folder and a CSV, with --label_delimiter or --multi_label"
        if multi_label:
            kinds, fix = kinds[::-1], "Omit --label_delimiter and --multi_label"
        raise UsageError(
            f"--output={options.output}: its images have {kinds[0]} each, and the new ones {kinds[1]}. {fix}, or pass "
            "another --output"
        )
    shared = {"name": manifest["name"], **manifest["settings"]}
    for flag, value in shared.items():
        given = getattr(options, flag)
        if given is not None and given != value:
            raise UsageError(
                f"--{flag}={given}: the other splits of {options.output} have --{flag}={value}, and all splits must "
                f"have the same. Omit --{flag}, or pass another --output"
            )
