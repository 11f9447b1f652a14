"""The folder of an export: created atomically and described by its export.json.

with export_folder(Path("exported")) as folder:
    ...write files into it...
    write_description(folder, {...})
read_description(Path("exported"))["step"]
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from convoy.core.errors import DataError, UsageError
from convoy.core.files import locked, sha256_of, write_whole
from convoy.core.reading import read_json
from convoy.trainer.run.records import EXPORT_DESCRIPTION

_FORMAT_VERSION = 1
_NEW, _BEFORE = "new", "before"  # in OUTPUT.partial: the export being built, and the one that it replaces


@contextlib.contextmanager
def export_folder(output: Path) -> Iterator[Path]:
    """Yields a folder to fill. On exit it replaces `output`; on an exception it is deleted.

    The folder is in `OUTPUT.partial`. The next export to the same place deletes what a killed one left there.

    Raises:
      UsageError: `output` or `OUTPUT.partial` has content that no export wrote, or another process is exporting to
        `output`.
      DataError: the folder cannot be written.
    """
    output = Path(os.path.normpath(output.absolute()))
    if os.path.lexists(output) and not _may_be_replaced(output):
        raise UsageError(f"--output={output}: exists and is not an export. Pass a new folder.")
    partial = output.with_name(f"{output.name}.partial")
    if os.path.lexists(partial) and not _is_leftover(partial):
        raise UsageError(f"--output={output}: the export is built in {partial}, which has other content. Move it away.")
    missing = [folder for folder in output.parents if not folder.exists()]
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with locked(partial, f"--output={output}: another process is exporting to it. Wait for it."):
            if (partial / _BEFORE).exists() and not output.exists():  # killed in the middle of `_replace`
                os.rename(partial / _BEFORE, output)
            try:
                shutil.rmtree(partial / _NEW, ignore_errors=True)
                (partial / _NEW).mkdir()
                yield partial / _NEW
                _replace(output, partial)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
                with contextlib.suppress(OSError):  # fails at the first one that is not empty
                    for folder in missing:
                        folder.rmdir()
    except OSError as error:
        raise DataError(f"--output={output}: cannot be written ({error.strerror or error}).") from None


def write_description(folder: Path, description: Mapping[str, Any]) -> None:
    """Writes a folder's export.json. Raises OSError if it cannot be written."""
    content = json.dumps({"format_version": _FORMAT_VERSION, **description}, indent=2) + "\n"
    write_whole(folder / EXPORT_DESCRIPTION, content.encode("ascii"))


def read_description(folder: Path) -> dict[str, Any]:
    """Returns the content of a folder's export.json.

    Raises:
      DataError: the folder is not an export, or its format version is not supported.
    """
    path = folder / EXPORT_DESCRIPTION
    try:
        description = read_json(path)
        version = description["format_version"]
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"--export={folder}: has no {EXPORT_DESCRIPTION}. Pass the --output of `convoy export`."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Export again.") from None
    if version != _FORMAT_VERSION:
        raise DataError(f"{path}: format version {version!r} is not supported (only {_FORMAT_VERSION}). Export again.")
    return description


def file_digests(path: Path) -> dict[str, dict[str, Any]]:
    """Returns `bytes` and `sha256` of each file in a folder, or of a single file, by path relative to `path`."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return {
        file.relative_to(path).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in files
    }


def _may_be_replaced(output: Path) -> bool:
    if output.is_symlink() or not output.is_dir():
        return False
    try:
        read_description(output)
    except DataError:
        return not any(output.iterdir())
    return True


def _is_leftover(partial: Path) -> bool:
    return partial.is_dir() and all(entry.name in (_NEW, _BEFORE) for entry in partial.iterdir())


def _replace(output: Path, partial: Path) -> None:
    before = partial / _BEFORE
    shutil.rmtree(before, ignore_errors=True)
    try:
        if output.exists():
            os.rename(output, before)
        os.rename(partial / _NEW, output)
    except BaseException:  # a signal too
        if before.exists() and not output.exists():
            os.rename(before, output)
        raise
