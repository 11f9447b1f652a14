"""The images of parquet files, as Hugging Face writes them, or with a plain column of encoded images.

    convoy convert --parquet='train-*.parquet' --output=data --image_column=image --label_column=label

The images are copied to a temporary file, a few rows at a time, since parquet files cannot be read at a row's position.
"""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from convoy.core.errors import DataError, did_you_mean
from convoy.core.reading import parsed_json
from convoy.core.text import one_line
from convoy.input_pipeline.convert.file_patterns import NamedFile, find_files
from convoy.input_pipeline.convert.labels import Labels, labelled
from convoy.input_pipeline.convert.options import Options
from convoy.input_pipeline.convert.request import Log, Request
from convoy.input_pipeline.convert.scratch import Spool, spool
from convoy.input_pipeline.convert.sources import Source, Sources

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

Batch = tuple["pa.Array", list[object]]  # images, as large_binary, and labels

_SUFFIXES = (".parquet", ".parq")
_ROWS = 64  # that are in memory at a time
_BUFFER_BYTES = 2**20
_LISTED = 20  # columns that an error lists
_SHOWN = 100  # characters of a type
_INSIDE = "bytes"  # field of the structs that Hugging Face writes
_IMAGE_NAMES = ("image", "img")
_LABEL_NAMES = ("label", "labels", "class", "category")
_COPY = "Copy it again, or leave it out of --parquet"


class Columns(NamedTuple):
    """The columns of images and labels.

    Attributes:
      image: column of the images.
      inside: field of that column with their bytes, if it has structs; else "".
      label: column of the labels.
      class_names: names of the classes in the order of their numbers; empty if the labels are the names.
    """

    image: str
    inside: str
    label: str
    class_names: tuple[str, ...]


class _NoLabelColumnError(DataError):
    """A file has no column of labels."""


@contextlib.contextmanager
def opened_parquet(request: Request, log: Log) -> Iterator[Options]:
    """Yields the options for parquet files, with the splits of their names."""
    pattern = request.text("parquet")
    files = find_files(pattern, flag="parquet", suffixes=_SUFFIXES)
    files = [file._replace(split=file.split or request.default_split) for file in files]
    files, columns = _with_columns(files, request, log)
    own = request.own_splits("parquet", {file.split for file in files})
    listing = partial(_listed, files, columns, request, log)
    yield request.options(Path(pattern), split_folders=own, prepared=True, listing=listing)


def _with_columns(files: Sequence[NamedFile], request: Request, log: Log) -> tuple[list[NamedFile], Columns]:
    """Returns the files, without splits that have no labels, and their columns.

    Raises:
      DataError: a file has no such columns, or others than the first.
    """
    found: list[tuple[NamedFile, Columns]] = []
    without: dict[str, _NoLabelColumnError] = {}
    for file in files:
        try:
            found.append((file, _columns_of(file.path, request)))
        except _NoLabelColumnError as error:
            without.setdefault(file.split, error)
    usable = {file.split for file, _ in found}
    for split, missing in without.items():
        if not usable or split in usable:
            raise missing
        log(f"Split {split!r}: left out. {missing}.")
    first, columns = found[0]
    for file, others in found:
        if name := next((name for name in Columns._fields if getattr(others, name) != getattr(columns, name)), ""):
            raise DataError(
                f"{file.path} has another {name.replace('_', ' ')} than {first.path}: {_shown(getattr(others, name))} "
                f"and {_shown(getattr(columns, name))}. Convert them on their own"
            )
    return [file for file, _ in found], columns


def _columns_of(path: Path, request: Request) -> Columns:
    """Returns the columns of a file.

    Raises:
      DataError: it has no such columns, or of other types.
    """
    import pyarrow.types as kinds

    with _opened(path) as parquet:
        schema = parquet.schema_arrow
    features = _features(schema)
    binary = [field.name for field in schema if _is_binary(field.type)]
    images = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    image = _chosen(path, schema.names, "image_column", request.text("image_column"), (images, _IMAGE_NAMES, binary))
    labels = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    kind = schema.field(image).type
    inside = _INSIDE if kinds.is_struct(kind) and kind.get_field_index(_INSIDE) >= 0 else ""
    if not _is_binary(kind.field(_INSIDE).type if inside else kind):
        raise DataError(
            f"{path}: --image_column={image} is {_shown(kind)}. Expected: image files (JPEG, PNG, ...) as bytes, or as "
            f"structs with a field {_INSIDE!r}"
        )
    label = _chosen(path, schema.names, "label_column", request.text("label_column"), (labels, _LABEL_NAMES))
    kind = schema.field(label).type
    kind = kind.value_type if kinds.is_dictionary(kind) else kind
    tests = (kinds.is_integer, kinds.is_floating, kinds.is_boolean, kinds.is_null, kinds.is_string)
    if not any(test(kind) for test in (*tests, kinds.is_large_string, kinds.is_string_view)):
        raise DataError(
            f"{path}: --label_column={label} is {_shown(kind)}. Expected: one class number or name per image"
        )
    names = features.get(label, {}).get("names") if label in labels else None
    return Columns(image, inside, label, request.record_format.class_names or tuple(map(str, names or ())))


def _chosen(path: Path, names: Sequence[str], flag: str, given: str, guesses: Sequence[Sequence[str]]) -> str:
    """Returns the column that a flag names, or else the only column of the first guess that has any.

    Raises:
      DataError: there is no such column, or there are several.
    """
    listed = f"its columns are {', '.join(map(one_line, names[:_LISTED]))}"
    error = _NoLabelColumnError if flag == "label_column" else DataError
    found = [[given]] if given else guesses
    known = next((list(filter(names.__contains__, guess)) for guess in found if set(guess) & set(names)), [])
    if given and not known:
        raise error(f"{path} has no column {given!r}{did_you_mean(given, names)}: {listed}. Pass another --{flag}")
    if not known:
        raise error(
            f"{path} has no column that looks like the {flag.partition('_')[0]}s: {listed}. Name it with --{flag}"
        )
    if len(known) > 1 or names.count(known[0]) > 1:
        raise DataError(
            f"{path} has several columns of {flag.partition('_')[0]}s: {', '.join(known)}. Name one with --{flag}"
        )
    return known[0]


def _features(schema: "pa.Schema") -> dict[str, dict[str, Any]]:
    """Returns the features of the columns as Hugging Face describes them; {} if it did not write the file."""
    try:
        features = parsed_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _is_binary(kind: "pa.DataType") -> bool:
    import pyarrow.types as kinds

    return kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_binary_view(kind)


def _shown(value: object) -> str:
    text = one_line(str(value))
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


@contextlib.contextmanager
def _listed(files: Sequence[NamedFile], columns: Columns, request: Request, log: Log) -> Iterator[Sources]:
    """Yields the images of parquet files, which are copied to a temporary file."""
    given = f"--parquet={request.text('parquet')}"
    labels = Labels(columns.class_names)
    images: list[Source] = []
    bad: list[tuple[Source, str]] = []
    with spool(request.local_output) as copies:
        log(
            f"{given}: copying the images of --image_column={columns.image} to a temporary file next to "
            f"{request.output}; labels are from --label_column={columns.label}."
        )
        for file in files:
            for source, problem in _images_of(file, columns, labels, copies):
                if problem:
                    bad.append((source, problem))
                else:
                    images.append(source)
        yield labelled(images, bad, labels, given, log)


def _images_of(file: NamedFile, columns: Columns, labels: Labels, copies: Spool) -> Iterator[tuple[Source, str]]:
    """Yields the images of a file after copying them, each with why it cannot be used, or ""."""
    modified = file.path.stat().st_mtime_ns
    row = 0
    for images, values in _read_ahead(_batches(file.path, columns)):
        offsets, sizes = _copied(images, copies)
        for offset, size, is_null, value in zip(offsets, sizes, images.is_null().to_pylist(), values, strict=True):
            category, problem = "", "no image (null)" if is_null else ""
            if not problem:
                try:
                    category = labels.category(value)
                except ValueError as error:
                    problem = str(error)
            name = f"{file.name}/{row:07d}"
            yield Source(copies.path, name, category, size, modified, offset, file.split), problem
            row += 1


def _read_ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yields batches, while a thread reads the next one."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


def _batches(path: Path, columns: Columns) -> Iterator[Batch]:
    """Yields the images and labels of some rows at a time.

    Raises:
      DataError: the file is damaged.
    """
    import pyarrow

    row = 0
    with _opened(path) as parquet:
        names = [f"{columns.image}.{columns.inside}" if columns.inside else columns.image, columns.label]
        try:
            for batch in parquet.iter_batches(_ROWS, columns=names, use_threads=False):
                images = batch.column(columns.image)
                images = images.flatten()[0] if columns.inside else images
                yield images.cast(pyarrow.large_binary()), batch.column(columns.label).to_pylist()
                row += len(batch)
        except Exception as error:  # damage makes pyarrow raise anything
            raise DataError(f"{path} is damaged after row {row} ({_first_line(error)}). {_COPY}") from None


def _copied(images: "pa.Array", copies: Spool) -> tuple[list[int], list[int]]:
    """Appends images to a file, in one piece; returns their offsets in it, and their sizes."""
    if not len(images):
        return [], []
    _, bounds, data = images.buffers()
    ends = np.frombuffer(bounds, np.int64)[images.offset : images.offset + len(images) + 1]
    first, last = ends[[0, -1]].tolist()
    start = copies.add(memoryview(data)[first:last]) if last > first else 0
    return (ends[:-1] + (start - first)).tolist(), np.diff(ends).tolist()


@contextlib.contextmanager
def _opened(path: Path) -> "Iterator[ParquetFile]":
    """Opens a parquet file.

    Raises:
      DataError: it is not one, is damaged, or cannot be read.
    """
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path, buffer_size=_BUFFER_BYTES, page_checksum_verification=True)
        file.schema_arrow  # noqa: B018
    except Exception as error:  # damage makes pyarrow raise anything
        raise DataError(f"{path} cannot be read as parquet ({_first_line(error)}). {_COPY}") from None
    with file:
        yield file


def _first_line(error: Exception) -> str:
    text = (isinstance(error, OSError) and error.strerror) or str(error).strip()
    return one_line(text.partition("\n")[0]).rstrip(".")
