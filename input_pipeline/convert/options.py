"""What to convert and how, checked before anything is looked at."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convoy.core.errors import UsageError, did_you_mean
from convoy.input_pipeline.convert import metadata
from convoy.input_pipeline.convert.sources import Table
from convoy.input_pipeline.dataset.open import MANIFEST, open_dataset

ENCODINGS = ("keep", "jpeg", "png", "raw")
VALIDATION = "validation"


@dataclass(frozen=True)
class Options:
    """What to convert, and how.

    Attributes:
      images: the folder of images, or the directory of a dataset that TFDS prepared.
      output: the dataset directory, new or to be given more splits.
      table: a CSV that says which image is what; without it each folder in `images` is a class.
      split: the split to write.
      validation_fraction: share of the images, in [0, 1), that goes into the split `validation`. None is 0.1 for the
        split `train` and 0 for others.
      splits: shares by split, in (0, 1] and 1 together; stands in place of `split` and `validation_fraction`.
      prepared: whether TFDS has prepared `images`; `splits` names those of its splits that are wanted then.
      image_size: side of the square images are resized to, aspect ratio not kept; 0 leaves them their size. None is
        what the dataset has, or 0.
      encoding: one of `ENCODINGS`. None is what the dataset has, or "keep".
      workers: processes; 0 is one a core. The result does not depend on it.
      seed: of which image goes into which split, and of the order within the shards.
      max_bad_fraction: the share of the images listed that may turn out not to be decodable; of each split's where
        they are in splits already.
      name: of the dataset, as in the shards' file names; None is what the dataset has, or the folder's own.
      shards: of each split; 0 chooses.
    """

    images: Path
    output: Path
    table: Table | None = None
    split: str = "train"
    validation_fraction: float | None = None
    splits: Mapping[str, float] | None = None
    prepared: bool = False
    image_size: int | None = None
    encoding: str | None = None
    workers: int = 0
    seed: int = 0
    max_bad_fraction: float = 0.01
    name: str | None = None
    shards: int = 0

    @property
    def shares(self) -> dict[str, float]:
        """The share of the images that each split gets, the one first that gets what the others leave."""
        if self.splits is not None:
            return dict(self.splits)
        fraction = self.validation_fraction
        if fraction is None:
            fraction = 0.1 if self.split == "train" else 0.0
        return {self.split: 1 - fraction, VALIDATION: fraction} if fraction else {self.split: 1.0}


def parse_splits(text: str) -> dict[str, float]:
    """Returns shares by split from `train:0.8,validation:0.1,test:0.1`.

    Raises:
      UsageError: it is no such list, or the shares are not 1 together.
    """
    example = "Example: --splits=train:0.8,validation:0.1,test:0.1"
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.strip().partition(":")
        try:
            value = float(share)
        except ValueError:
            raise UsageError(f"--splits={text}: {part!r} is no NAME:SHARE. {example}") from None
        if not 0 < value <= 1 or name in shares:
            raise UsageError(f"--splits={text}: each split once, with a share above 0. {example}")
        shares[name] = value
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise UsageError(f"--splits={text}: the shares are {sum(shares.values()):g} together, and must be 1. {example}")
    return shares


def check(options: Options) -> dict[str, Any] | None:
    """Checks the options and returns the manifest of the dataset that `output` holds, or None for a new one.

    Raises:
      UsageError: options that cannot work, on their own or with what `output` holds.
      DataError: what `output` holds is damaged.
    """
    for split in options.shares:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", split) or split == "all":
            raise UsageError(f"--split={split}: a split's name is letters, digits and underscores, and not 'all'")
    if options.encoding is not None and options.encoding not in ENCODINGS:
        raise UsageError(
            f"--encoding={options.encoding}{did_you_mean(options.encoding, ENCODINGS)}: one of {', '.join(ENCODINGS)}"
        )
    if not 0 <= (options.validation_fraction or 0) < 1:
        raise UsageError(f"--validation_fraction={options.validation_fraction}: at least 0 and below 1")
    if not 0 <= options.max_bad_fraction <= 1:
        raise UsageError(f"--max_bad_fraction={options.max_bad_fraction}: from 0 to 1")
    for flag in ("image_size", "workers", "shards"):
        if (getattr(options, flag) or 0) < 0:
            raise UsageError(f"--{flag}={getattr(options, flag)}: 0 or more")
    if options.name is not None and metadata.dataset_name(options.name) != options.name:
        raise UsageError(
            f"--name={options.name}: lower case letters, digits and underscores, a letter first, "
            f"such as --name={metadata.dataset_name(options.name)}"
        )
    if options.split == VALIDATION and options.validation_fraction:
        raise UsageError(f"--split={VALIDATION} with --validation_fraction: the share would go into the same split")
    output = options.output
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        # A new dataset takes its name as a whole, and so in the place of these.
        if output.is_symlink():
            raise UsageError(f"--output={output} is a link to {output.resolve()}: name that folder itself")
        if output.is_mount():
            raise UsageError(
                f"--output={output} is where a disk is mounted: name a folder in it, --output={output}/data"
            )
        return None
    if not (output / MANIFEST).is_file():
        raise UsageError(
            f"--output={output} exists and is not a dataset (it has no {MANIFEST}): name a new folder, or an empty one"
        )
    manifest = dict(open_dataset(output).manifest)
    _check_fits(options, manifest)
    return manifest


def _check_fits(options: Options, manifest: dict[str, Any]) -> None:
    existing = sorted(manifest["splits"])
    doubled = [split for split in options.shares if split in existing]
    if doubled == [VALIDATION] and options.splits is None and options.split != VALIDATION:
        raise UsageError(
            f"{options.output} has a split {VALIDATION!r} already: add --validation_fraction=0 to leave it as it is"
        )
    if doubled:
        raise UsageError(
            f"--split={doubled[0]}: {options.output} has that split already (it has {', '.join(existing)}). "
            "Name another split, or another --output"
        )
    shared = {"name": manifest["name"], **manifest["settings"]}
    for flag, value in shared.items():
        given = getattr(options, flag)
        if given is not None and given != value:
            raise UsageError(
                f"--{flag}={given}: the splits of {options.output} have --{flag}={value}, and all splits of a dataset "
                f"are alike. Leave --{flag} out, or name another --output"
            )
