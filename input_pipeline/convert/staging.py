"""Local copies of images that are in an object store, for the time of a conversion.

with staged(request, log) as local:
    local.origin["images"]        # a folder in the cache, instead of s3://bucket/photos
"""

import fnmatch
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from convoy.core.errors import DataError, UsageError
from convoy.core.remote import RemotePath, download_folder, is_remote
from convoy.core.text import counted, megabytes
from convoy.input_pipeline.convert.request import Log, Request
from convoy.input_pipeline.convert.scratch import scratch_folder
from convoy.input_pipeline.dataset.storage import dataset_path

_COPIED = ("images", "tfrecords", "parquet", "tar", "imagenet")  # flags with a folder, or with a pattern of files
_SPECIAL = re.compile(r"[*?[{]")
_BRACES = re.compile(r"\{[^{}]*\}")


@contextmanager
def staged(request: Request, log: Log) -> Iterator[Request]:
    """Yields the request with local copies in place of what is in an object store; they exist until the context ends.

    Args:
      request: what to convert.
      log: called with one line per copy.

    Raises:
      UsageError: the scheme or the credentials of a store cannot be used.
      DataError: there is nothing to copy, or no space for it.
    """
    remote = {flag: request.text(flag) for flag in request.origin if is_remote(request.text(flag))}
    if wrong := sorted(set(remote) - set(_COPIED)):
        raise UsageError(f"--{wrong[0]}={remote[wrong[0]]}: must be a local path. Copy it to this machine")
    if not remote:
        yield request
        return
    with scratch_folder(request.local_output, "source") as folder:
        origin = {flag: str(_copied(flag, text, folder / flag, log)) for flag, text in remote.items()}
        yield replace(request, origin={**request.origin, **origin})


def _copied(flag: str, url: str, target: Path, log: Log) -> Path:
    """Copies what a URL names into a folder; returns the path that names the copy in the same way."""
    parts = url.rstrip("/").split("/")
    fixed = next((number for number, part in enumerate(parts) if _SPECIAL.search(part)), len(parts))
    source = dataset_path("/".join(parts[:fixed]))
    assert isinstance(source, RemotePath)
    if fixed == len(parts) and source.is_file():
        source, fixed = source.parent, fixed - 1
    pattern = "/".join(parts[fixed:])
    files = source.files()
    if pattern:  # more files than it names do no harm
        likely = _BRACES.sub("*", pattern)
        files = {name: size for name, size in files.items() if fnmatch.fnmatch(name, f"{likely}*")}
    if not files:
        raise DataError(f"--{flag}={url}: there are no such files. List them with the tool of the store")
    log(f"--{flag}={url}: copying {counted(len(files), 'file')} ({megabytes(sum(files.values()))}) to {target}.")
    try:
        target.mkdir()
        download_folder(source, target, files)
        for name in files:
            # The checksum in place of a modification time: an interrupted conversion resumes with the same images only.
            os.utime(target / name, ns=(0, zlib.crc32((target / name).read_bytes())))
    except OSError as error:
        raise DataError(
            f"--{flag}={url}: cannot be copied to {target} ({error.strerror or error}). Free space there, or set "
            "CONVOY_CACHE to a folder on another disk"
        ) from None
    return target / pattern if pattern else target
