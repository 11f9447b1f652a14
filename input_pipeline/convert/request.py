"""What to convert, as the flags of `convoy convert` and the arguments of `convoy.convert` say it.

with options_of(Request(output="data", images="photos"), log) as options:
    convert(options, log=log)
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convoy.core.errors import DataError, UsageError
from convoy.input_pipeline.convert.compressed import uncompressed
from convoy.input_pipeline.convert.options import Options, with_split_folders
from convoy.input_pipeline.convert.sources import Table
from convoy.input_pipeline.convert.stream import Images
from convoy.input_pipeline.convert.tfds_sources import default_folder, find_prepared
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import Dataset, open_dataset
from convoy.input_pipeline.dataset.storage import is_remote

_Log = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What to convert. Empty texts and None stand for what is not given.

    Attributes:
      output: dataset directory.
      images: folder of images, unless one of the next two is given; with a stream, its name for messages.
      stream: (bytes, category) of each image, in place of the folder.
      tfrecords: folder of TFRecords of other tools.
      tfds: dataset prepared by TFDS, `NAME[/CONFIG][:VERSION]`.
      tfds_dir: TFDS' data_dir.
      table: as in `Options`.
      split: as in `Options`.
      splits: as in `Options`.
      validation_fraction: as in `Options`.
      record_format: as in `Options`.
      others: other fields of `Options` by name.
    """

    output: str
    images: str = ""
    stream: Images | None = None
    tfrecords: str = ""
    tfds: str = ""
    tfds_dir: str = ""
    table: Table | None = None
    split: str = ""
    splits: Mapping[str, float] | None = None
    validation_fraction: float | None = None
    record_format: RecordFormat = RecordFormat()
    others: Mapping[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def options_of(request: Request, log: _Log) -> Iterator[Options]:
    """Yields the options of the conversion; compressed records are kept uncompressed meanwhile.

    Args:
      request: what to convert.
      log: called with one line for each note.

    Raises:
      UsageError: nothing to convert is given, or arguments exclude each other.
      DataError: images or records cannot be read.
    """
    paths = {name: getattr(request, name) for name in ("images", "tfds_dir", "tfrecords", "output")}
    paths["manifest"] = str(request.table.path) if request.table else ""
    for name, path in paths.items():
        if is_remote(path):
            raise UsageError(
                f"--{name}={path}: convert reads and writes local folders only. Copy or mount the images, convert them "
                "to a local folder, and copy the result to the bucket"
            )
    if request.splits and (request.split or request.validation_fraction is not None):
        splits = ",".join(f"{name}:{share:g}" for name, share in request.splits.items())
        raise UsageError(f"--splits={splits} cannot be combined with --split or --validation_fraction. Omit them")
    if request.stream is not None:
        _refuse_with(request, "images", ("table", "tfds", "tfrecords"))
    if not request.tfrecords:
        yield _options(request, log)
        return
    with uncompressed(Path(request.tfrecords), Path(request.output), log) as folder:
        yield _options(request, log, folder)


def _options(request: Request, log: _Log, tfrecords: Path | None = None) -> Options:
    """Returns the options for the images, the TFDS dataset, or the uncompressed records in `tfrecords`."""
    splits, split = request.splits, request.split or "train"
    split_folders: dict[str, str] | None = None
    if tfrecords:
        images = tfrecords
        split_folders = _splits_of_records(request, images, log, default_split=next(iter(splits or [split])))
    elif request.tfds:
        images, splits = _tfds_dataset(request, log)
    elif request.images:
        images = Path(request.images)
    else:
        raise UsageError(
            "--images=FOLDER, --tfrecords=FOLDER or --tfds=NAME must be given. Example: convoy convert --images=photos "
            "--output=data"
        )
    options = Options(
        images=images,
        output=Path(request.output),
        table=request.table,
        split=split,
        splits=splits,
        validation_fraction=request.validation_fraction,
        prepared=bool(request.tfds or tfrecords),
        record_format=request.record_format,
        split_folders=split_folders,
        **request.others,
    )
    return options if request.stream is not None else with_split_folders(options)


def _tfds_dataset(request: Request, log: _Log) -> tuple[Path, dict[str, float]]:
    """Returns the directory of the prepared TFDS dataset, and equal shares of its splits, train first."""
    _refuse_with(request, "tfds", ("images", "table", "tfrecords", "split", "splits", "validation_fraction"))
    directory = find_prepared(request.tfds, Path(request.tfds_dir) if request.tfds_dir else default_folder())
    usable = _usable_splits(open_dataset(directory, request.record_format), f"--tfds={request.tfds}", log)
    return directory, dict.fromkeys(usable, 1 / len(usable))


def _splits_of_records(request: Request, folder: Path, log: _Log, default_split: str) -> dict[str, str]:
    """Returns the splits of a folder of records by itself, train first: those of their names, or the given one."""
    _refuse_with(request, "tfrecords", ("images", "table", "tfds"))
    dataset = open_dataset(folder, request.record_format, default_split=default_split)
    if not dataset.manifest and dataset.record_format.first_label:
        log(f"{request.tfrecords}: labels are from {dataset.record_format.first_label}: that is the first class.")
    usable = _usable_splits(dataset, f"--tfrecords={request.tfrecords}", log)
    if list(usable) != [default_split]:
        _refuse_with(request, "tfrecords", ("split", "splits"), f" (they have {', '.join(usable)})")
    if "validation" in usable and request.validation_fraction:
        _refuse_with(request, "tfrecords", ("validation_fraction",))
    return {split: split for split in usable}


def _refuse_with(request: Request, source: str, others: Sequence[str], splits: str = "") -> None:
    for name in others:
        if (value := getattr(request, name)) not in ("", None):
            flag = f"manifest={value.path}" if isinstance(value, Table) else name
            raise UsageError(
                f"--{flag} cannot be combined with --{source}={getattr(request, source)}, which has its own images and "
                f"{'categories' if source == 'images' else 'splits'}{splits}"
            )


def _usable_splits(dataset: Dataset, source: str, log: _Log) -> list[str]:
    """Returns the splits of a dataset whose records have labels, train first; logs the others."""
    usable = []
    for split in sorted(dataset.splits, key=lambda split: (split != "train", split)):
        try:
            dataset.split(split)
            usable.append(split)
        except DataError as error:
            log(f"{error}: split left out.")
    if not usable:
        raise DataError(f"{source}: {dataset.directory} has no usable split")
    return usable
