"""The kinds of sources that images are converted from. A new one is a function in a module of its own, and one entry.

with options_of(Request(output="data", origin={"images": "photos"}), log) as options:
    convert(options, log=log)
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from convoy.core.errors import UsageError
from convoy.core.text import joined
from convoy.input_pipeline.convert.imagenet import opened_imagenet
from convoy.input_pipeline.convert.options import Options
from convoy.input_pipeline.convert.parquet_sources import opened_parquet
from convoy.input_pipeline.convert.request import Log, Request
from convoy.input_pipeline.convert.staging import staged
from convoy.input_pipeline.convert.stream import opened_images
from convoy.input_pipeline.convert.tar_sources import opened_tars
from convoy.input_pipeline.convert.tfds_sources import opened_records, opened_tfds


class SourceKind(NamedTuple):
    """A kind of source.

    Attributes:
      opened: returns the options of a conversion from the source that a request names. Its images can be listed and
        read until the context ends. Raises a UsageError for what cannot be combined with it.
      example: what its flag takes, as errors list it.
      settings: further flags that only this kind has.
      table: whether `Request.table` may name the images.
    """

    opened: Callable[[Request, Log], contextlib.AbstractContextManager[Options]]
    example: str
    settings: tuple[str, ...] = ()
    table: bool = False


SOURCE_KINDS = {
    "images": SourceKind(opened_images, "FOLDER", ("labels",), table=True),
    "tfrecords": SourceKind(opened_records, "FOLDER"),
    "parquet": SourceKind(opened_parquet, "'train-*.parquet'", ("image_column", "label_column")),
    "tar": SourceKind(opened_tars, "'shard-{000..099}.tar'", ("label_field",)),
    "tfds": SourceKind(opened_tfds, "NAME", ("tfds_dir", "download")),
    "imagenet": SourceKind(opened_imagenet, "FOLDER"),
}
ORIGIN_FLAGS = (*SOURCE_KINDS, *sorted({flag for kind in SOURCE_KINDS.values() for flag in kind.settings}))


@contextlib.contextmanager
def options_of(request: Request, log: Log) -> Iterator[Options]:
    """Yields the options of the conversion; temporary copies of images exist until the context ends.

    Args:
      request: what to convert.
      log: called with one line for each note.

    Raises:
      UsageError: no source or several are given, or arguments exclude each other.
      DataError: the source cannot be read.
    """
    if request.splits and (request.split or request.validation_fraction is not None):
        splits = ",".join(f"{name}:{share:g}" for name, share in request.splits.items())
        raise UsageError(f"--splits={splits} cannot be combined with --split or --validation_fraction. Omit them")
    given = list(filter(request.has, SOURCE_KINDS))
    if not given:
        flags = joined([f"--{flag}={kind.example}" for flag, kind in SOURCE_KINDS.items()], "or")
        raise UsageError(f"{flags} must be given. Example: convoy convert --images=photos --output=data")
    if len(given) > 1:
        first, second = (f"--{flag}={request.text(flag)}" for flag in given[-2:])
        raise UsageError(f"{first} cannot be combined with {second}, which has its own images. Pass one of them")
    (source,) = given
    kind = SOURCE_KINDS[source]
    for flag in filter(request.has, sorted(set(request.origin) - {source, *kind.settings})):
        owners = joined([f"--{name}" for name, other in SOURCE_KINDS.items() if flag in other.settings], "and")
        raise UsageError(f"--{flag}={request.text(flag)} is for {owners}, not for --{source}. Omit it")
    if source != "images" and not isinstance(request.origin[source], str | os.PathLike):
        raise UsageError(f"--{source}={request.text(source)}: must be one path or name, as {kind.example}")
    if not kind.table:
        request.refuse(source, ("table",), "its own categories")
    with staged(request, log) as local, kind.opened(local, log) as options:
        yield options
