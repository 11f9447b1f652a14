"""`sample`, `convert` and `verify`: images to datasets."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convoy.api.datasets import Dataset, open_dataset
from convoy.api.shown import Rows, Shown
from convoy.api.spelling import spelled_for_python
from convoy.core.errors import UsageError
from convoy.core.remote import RemotePath
from convoy.core.text import megabytes
from convoy.input_pipeline.dataset.open import stated_format
from convoy.input_pipeline.dataset.storage import dataset_path

if TYPE_CHECKING:
    import numpy as np

    from convoy.input_pipeline.convert.quarantine import LeftOut
    from convoy.input_pipeline.convert.summary import ClassSummary, GroupSummary, SplitSummary
    from convoy.input_pipeline.verify.faults import Fault
    from convoy.input_pipeline.verify.verify import SplitReport

_Path = str | os.PathLike[str]

_logger = logging.getLogger("convoy")


@spelled_for_python()
def sample(
    output: _Path,
    *,
    categories: int = 42,
    per_category: int = 60,
    test_per_category: int = 0,
    size: int = 64,
    seed: int = 0,
    workers: int = 0,
) -> Path:
    """Draws a small set of product-like images, to try the other functions with.

    Args:
      output: folder to create: `{train,test}/CATEGORY/*.jpg`, and `train.csv` and `test.csv` (`filename,category`).
      categories: number of categories, 1 to 42.
      per_category: training images per category.
      test_per_category: test images per category; 0 draws half as many as for training.
      size: width and height in pixels, 16 to 1024.
      seed: equal seeds give byte-identical images.
      workers: number of processes; 0 is one per core. The images do not depend on it.

    Returns:
      The folder.

    Raises:
      UsageError: an argument is out of range, or the folder exists and is not empty.

    Example:
      photos = convoy.sample("photos", categories=4, per_category=12, size=32)
      sorted(path.name for path in (photos / "train").iterdir())
    """
    from convoy.input_pipeline.sample.sample_set import SampleSet

    images = SampleSet(categories, per_category, test_per_category, size, seed)
    images.write(Path(output), workers=workers)
    return Path(output)


@dataclass(frozen=True, repr=False)
class Conversion(Shown):
    """The result of `convert`.

    Attributes:
      output: the dataset directory.
      splits: what was written: `name`, `images`, `classes`, `shards` and `size` in bytes of each split.
      classes: the classes by label: `name`, images `kept` by split, `changed`, `duplicates` and `quarantined`.
      duplicates: images left out because another one of the class has the same bytes.
      leaked: images left out because an earlier split has them.
      conflicts: pairs of images of two classes with the same bytes.
      ignored: files left out: not in the CSV, or without the suffix of an image.
      missing: files that the CSV names and that do not exist.
      quarantined: unusable images, with reasons in quarantine.jsonl.
      grouped: what became of groups of images; None without groups.
      left_out: `split`, `path`, `category` and `reason` of each image or file that was left out.

    Example:
      conversion = convoy.convert("photos/train", output="more", workers=1)
      {split.name: split.images for split in conversion.splits}
      conversion.dataset.class_names
      conversion
    """

    output: Path | RemotePath
    splits: "tuple[SplitSummary, ...]"
    classes: "tuple[ClassSummary, ...]"
    duplicates: int
    leaked: int
    conflicts: tuple[tuple[str, str], ...]
    ignored: int
    missing: int
    quarantined: int
    grouped: "GroupSummary | None"
    left_out: "tuple[LeftOut, ...]"

    @property
    def dataset(self) -> Dataset:
        """The dataset, opened again. A dry run has written none."""
        return open_dataset(self.output)

    def _title(self) -> str:
        return f"Conversion to {self.output}"

    def _facts(self) -> Mapping[str, object]:
        names = ("duplicates", "leaked", "ignored", "missing", "quarantined")
        return {**{name: getattr(self, name) for name in names}, "conflicts": len(self.conflicts)}

    def _table(self) -> Rows:
        return Rows({**vars(split), "size": megabytes(split.size)} for split in self.splits)


@spelled_for_python()
def convert(
    images: "_Path | np.ndarray | Iterable[tuple[bytes | np.ndarray, str]] | None" = None,
    *,
    output: _Path,
    labels: Iterable[int | str] | None = None,
    splits: Mapping[str, float] | str | None = None,
    split: str | None = None,
    validation_fraction: float | None = None,
    manifest: _Path | None = None,
    filename_column: str = "filename",
    category_column: str = "category",
    group_column: str = "",
    csv_delimiter: str = "",
    csv_encoding: str = "",
    missing: str = "error",
    label_delimiter: str = "",
    multi_label: bool = False,
    folders: str = "auto",
    group_similar: bool = False,
    tfrecords: _Path | None = None,
    parquet: _Path | None = None,
    image_column: str = "",
    label_column: str = "",
    tar: _Path | None = None,
    label_field: str = "",
    tfds: str | None = None,
    tfds_dir: _Path | None = None,
    download: bool = False,
    imagenet: _Path | None = None,
    image_key: str = "",
    label_key: str = "",
    class_names: Sequence[str] = (),
    image_size: int | None = None,
    encoding: str | None = None,
    workers: int = 0,
    seed: int = 0,
    max_bad_fraction: float = 0.01,
    name: str | None = None,
    shards: int = 0,
    dry_run: bool = False,
    max_megapixels: float | None = None,
    max_file_mib: int | None = None,
    max_metadata_mib: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Converts images to a dataset directory of TFRecord shards, or to a further split of one.

    The same as `convoy convert`, with the same files. Interrupted, it resumes when it is called again.

    Args:
      images: folder of images, local or `s3://...`: one subfolder per class, or one per split with class folders
        inside; or any iterable of (image, category), or the name of one, `FILE.py:NAME`; or, with `labels`, an array
        [n, height, width, 3] or [n, height, width], or any iterable of images. An image is the bytes of a file, a uint8
        array or a PIL image.
      output: dataset directory, new or existing; `s3://...` is built in the cache folder and uploaded.
      labels: label of each image: a number, of `class_names` if they are given, or a name.
      splits: shares by split, with the sum 1: `{"train": 0.8, "validation": 0.1, "test": 0.1}`.
      split: the only split to write; `train` by default, from which 10 % go to `validation`.
      validation_fraction: share of each class for the split `validation`, in [0, 1).
      manifest: CSV of file names and categories, instead of one folder per class.
      filename_column: its column of file names.
      category_column: its column of categories.
      group_column: its column whose equal values keep images in one split, where splits are drawn.
      csv_delimiter: its column separator; detected by default.
      csv_encoding: its encoding; UTF-8 or UTF-16 by default.
      missing: `error`, or `skip` for files of the CSV, or of ImageNet's validation list, that do not exist.
      label_delimiter: what separates any number of labels of an image in its column of categories.
      multi_label: whether all its other columns are classes, with 1 for the images that have them, else 0.
      folders: what the folders in `images` are: `classes`, `splits` or `auto`.
      group_similar: keep images that look alike in one split.
      tfrecords: folder of TFRecords of other tools, instead of `images`.
      parquet: parquet files, instead of `images`: `data/train-*.parquet`, or a folder of them.
      image_column: their column of images; detected by default.
      label_column: their column of labels; detected by default.
      tar: WebDataset archives, instead of `images`: `shard-{000..099}.tar`, or a folder of them.
      label_field: where the labels are in them: `cls`, `txt`, or `json:KEY`; detected by default.
      tfds: dataset of TFDS, `NAME[/CONFIG][:VERSION]`, or `FILE.py:CLASS`, instead of `images`.
      tfds_dir: TFDS' data_dir.
      download: have TFDS download and prepare the dataset if it is not in its data_dir.
      imagenet: folder of ImageNet (ILSVRC 2012), as downloaded, unpacked, or from Kaggle, instead of `images`.
      image_key: feature of the encoded image in TFRecords.
      label_key: feature of the label in them.
      class_names: class of each number, where labels are numbers.
      image_size: side in pixels of the square that images are resized to; 0 keeps their size.
      encoding: `keep`, `jpeg`, `png` or `raw`.
      workers: number of processes; 0 is one per core. The result does not depend on it.
      seed: seed of the splits and of the order within the shards.
      max_bad_fraction: largest tolerated share of images that cannot be used.
      name: name of the dataset in file names.
      shards: shards per split; 0 chooses.
      dry_run: decode every image, write nothing, and return what a conversion would.
      max_megapixels: largest image, width x height in millions; 89.5 by default.
      max_file_mib: largest file in MiB; 1024 by default.
      max_metadata_mib: largest text or color profile of a PNG in MiB; 64 by default.
      progress: called several times per second with the number of images done and the total.

    Raises:
      UsageError: arguments are out of range, exclude each other, or do not fit the existing dataset.
      DataError: images or CSV cannot be used, or the output cannot be written. The dataset is unchanged.

    Example:
      conversion = convoy.convert("photos/train", output="data", splits={"train": 0.75, "validation": 0.25})
      convoy.convert("photos/test", output="data", split="test")
      conversion.splits[0].images, conversion.quarantined
      convoy.convert("photos/test", output="new", dry_run=True).left_out
    """
    from convoy.input_pipeline.convert.convert import convert as convert_images
    from convoy.input_pipeline.convert.options import parse_splits
    from convoy.input_pipeline.convert.request import Request
    from convoy.input_pipeline.convert.source_kinds import options_of
    from convoy.input_pipeline.convert.sources import Table
    from convoy.input_pipeline.images.pixels import Limits

    if missing not in ("error", "skip"):
        raise UsageError(f"missing={missing!r}: must be error or skip.")
    if group_column and not manifest:
        raise UsageError(f"group_column={group_column} is a column of a CSV. Pass the CSV as manifest")
    if (label_delimiter or multi_label) and not manifest:
        given = f"label_delimiter={label_delimiter!r}" if label_delimiter else "multi_label=True"
        raise UsageError(f"{given} is for labels in a CSV. Pass the CSV as manifest")
    table = None
    if manifest:
        table = Table(
            dataset_path(manifest),
            filename_column=filename_column,
            category_column=category_column,
            group_column=group_column,
            delimiter=csv_delimiter,
            encoding=csv_encoding,
            skip_missing=missing == "skip",
            label_delimiter=label_delimiter,
            one_hot=multi_label,
        )
    if isinstance(splits, Mapping):
        splits = ",".join(f"{part}:{share}" for part, share in splits.items())
    request = Request(
        output=os.fspath(output),
        origin={
            "images": images,
            "labels": labels,
            "tfrecords": tfrecords,
            "parquet": parquet,
            "image_column": image_column,
            "label_column": label_column,
            "tar": tar,
            "label_field": label_field,
            "tfds": tfds,
            "tfds_dir": tfds_dir,
            "download": download or None,
            "imagenet": imagenet,
        },
        table=table,
        split=split or "",
        splits=parse_splits(str(splits)) if splits else None,
        validation_fraction=validation_fraction,
        record_format=stated_format(
            os.fspath(tfrecords) if tfrecords else None, image_key, label_key, class_names=class_names
        ),
        skip_missing=missing == "skip",
        others={
            "folders": folders,
            "group_similar": group_similar,
            "image_size": image_size,
            "encoding": encoding,
            "workers": workers,
            "seed": seed,
            "max_bad_fraction": max_bad_fraction,
            "name": name,
            "shards": shards,
            "dry_run": dry_run,
            "limits": Limits.with_defaults(
                max_megapixels=max_megapixels, max_file_mib=max_file_mib, max_metadata_mib=max_metadata_mib
            ),
        },
    )
    with options_of(request, _logger.info) as options:
        summary = convert_images(options, progress or (lambda done, total: None), log=_logger.info)
    return Conversion(dataset_path(output), **vars(summary))


@dataclass(frozen=True, repr=False)
class Verification(Shown):
    """The result of `verify`; true where there are no faults.

    Attributes:
      data: the dataset directory.
      splits: `name`, `records`, `classes`, `shards`, `size` in bytes and number of `faults` of each split.
      faults: what remains wrong: `code`, `split`, `file`, `offset`, `record`, `text` and `fix` of each.
      repaired: faults that were fixed by rebuilding indexes.
      rebuilt: splits whose indexes were rebuilt.

    Example:
      found = convoy.verify("data", workers=1)
      [fault.code for fault in found.faults], found.splits[0].records
    """

    data: Path | RemotePath
    splits: "tuple[SplitReport, ...]"
    faults: "tuple[Fault, ...]"
    repaired: "tuple[Fault, ...]"
    rebuilt: tuple[str, ...]

    def __bool__(self) -> bool:
        """Whether there are no faults."""
        return not self.faults

    def _title(self) -> str:
        return f"Verification of {self.data}: {len(self.faults)} faults"

    def _facts(self) -> Mapping[str, object]:
        return {fault.code: fault.line() for fault in self.faults}

    def _table(self) -> Rows:
        return Rows({**vars(split), "size": megabytes(split.size)} for split in self.splits)


@spelled_for_python()
def verify(
    data: _Path,
    *,
    repair_index: bool = False,
    workers: int = 0,
    image_key: str = "",
    label_key: str = "",
    class_names: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Checks every checksum, record, image, label and count of a dataset directory.

    Args:
      data: dataset directory, from `convert` (local or `s3://...`) or TFDS, or a folder of TFRecords.
      repair_index: rebuild the indexes of the splits whose shards are intact. Shards are never written to.
      workers: number of processes; 0 is one per core.
      image_key: feature of the encoded image in TFRecords of other tools.
      label_key: feature of the label in them.
      class_names: class of each label in them.
      progress: called with the number of bytes checked and the total.

    Raises:
      DataError: it is not a dataset, or its manifest cannot be read. Faults are returned, not raised.

    Example:
      found = convoy.verify("data")
      assert found, found.faults
      found
    """
    from convoy.input_pipeline.verify.verify import verify as verify_directory

    stated = stated_format(os.fspath(data), image_key, label_key, class_names=class_names)
    directory = dataset_path(data)
    report = verify_directory(
        directory,
        workers=workers,
        repair_index=repair_index,
        record_format=stated,
        progress=progress or (lambda done, total: None),
    )
    return Verification(directory, report.splits, report.faults, report.repaired, report.rebuilt)
