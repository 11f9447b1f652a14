"""The folder of an export: made as a whole or not at all, described by its export.json, and opened again.

with export_folder(Path("exported")) as folder:
    ...write files into it...
    describe(folder, {...})
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

_DESCRIPTION = "export.json"
_FORMAT_VERSION = 1
_NEW, _BEFORE = "new", "before"


@contextlib.contextmanager
def export_folder(output: Path) -> Iterator[Path]:
    """Gives a folder to fill and describe; on leaving it takes the place of `output`. An exception takes it away.

    It lies in `OUTPUT.partial`. What a kill leaves there, the next export to the same place replaces.

    Raises:
      UsageError: `output` or `OUTPUT.partial` holds what no export wrote, or another process exports to `output`.
      DataError: the disk does not take it.
    """
    output = Path(os.path.normpath(output.absolute()))
    if os.path.lexists(output) and not _may_be_replaced(output):
        raise UsageError(f"--output={output} is there and is no export: it is left as it is. Give a new folder.")
    partial = output.with_name(f"{output.name}.partial")
    if os.path.lexists(partial) and not _is_left_over(partial):
        raise UsageError(f"{partial}, where the export would be built, holds something else: move it away.")
    missing = [folder for folder in output.parents if not folder.exists()]
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with locked(partial, f"--output={output}: another process is exporting to it. Wait for it."):
            if (partial / _BEFORE).exists() and not output.exists():  # a kill in the middle of `_replace`
                os.rename(partial / _BEFORE, output)
            try:
                shutil.rmtree(partial / _NEW, ignore_errors=True)
                (partial / _NEW).mkdir()
                yield partial / _NEW
                _replace(output, partial)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
                with contextlib.suppress(OSError):  # the first that is not empty holds the export
                    for folder in missing:
                        folder.rmdir()
    except OSError as error:
        raise DataError(f"--output={output} cannot be written ({error.strerror or error}).") from None


def describe(folder: Path, description: Mapping[str, Any]) -> None:
    """Writes a folder's export.json. Raises OSError where it cannot."""
    content = json.dumps({"format_version": _FORMAT_VERSION, **description}, indent=2) + "\n"
    write_whole(folder / _DESCRIPTION, content.encode("ascii"))


def read_description(folder: Path) -> dict[str, Any]:
    """Returns what export.json says.

    Raises:
      DataError: the folder holds no export, or one of another version of Convoy.
    """
    path = folder / _DESCRIPTION
    try:
        description = json.loads(path.read_bytes())
        version = description["format_version"]
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"--export={folder}: it has no {_DESCRIPTION}. Give the --output of `convoy export`.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}). Export again.") from None
    if version != _FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {version!r}, and this Convoy reads {_FORMAT_VERSION}: export again."
        )
    return description


def contents_of(path: Path) -> dict[str, dict[str, Any]]:
    """Returns `bytes` and `sha256` of a file, or of each file in a folder, by its path below `path`."""
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


def _is_left_over(partial: Path) -> bool:
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
