"""The files that a pattern names: a file, a folder, wildcards, or numbers in braces; and the splits in their names.

find_files("shard-{000..099}.tar", flag="tar", suffixes=(".tar",))[0].name      # "shard-000.tar"
"""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from convoy.core.errors import DataError, UsageError, did_you_mean
from convoy.core.text import counted
from convoy.input_pipeline.convert.folders import first
from convoy.input_pipeline.dataset.folder_layout import check_complete, split_of
from convoy.input_pipeline.dataset.storage import similar_folder

_MOST_FILES = 10**6
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})", re.ASCII)
_SPECIAL = re.compile(r"[*?[{]")
# train-00000-of-00005.parquet; earlier versions of `datasets` appended a hash.
_NUMBERED = re.compile(r"(\d{1,6})-of-(\d{1,6})(?!\d)(?:-[0-9a-f]{16})?", re.ASCII)


class NamedFile(NamedTuple):
    """A file; its path below what the pattern has before its first wildcard; and the split in that, or ""."""

    path: Path
    name: str
    split: str


def find_files(pattern: str, *, flag: str, suffixes: tuple[str, ...]) -> list[NamedFile]:
    """Returns the files that a pattern names, those of the split `train` first, sorted by split and name.

    Args:
      pattern: path of a file, or of a folder, in which and below which files are searched for. `{000..099}` and `{a,b}`
        stand for names that must all exist; `*`, `?`, `[...]` and `**` for any.
      flag: the flag that has the pattern.
      suffixes: suffixes of the files in a folder.

    Raises:
      UsageError: a range of numbers is malformed.
      DataError: no file matches, a file is missing, or only some have names with a split.
    """
    given = f"--{flag}={pattern}"
    paths: list[Path] = []
    missing: list[str] = []
    for name in [pattern] if os.path.lexists(pattern) else _expanded(pattern, given):
        matches = sorted(glob.glob(name, recursive=True)) if not os.path.lexists(name) else [name]
        found = [file for match in matches for file in _files(Path(match), suffixes) if file.is_file()]
        paths += found
        if not found:
            missing.append(name)
    if missing:
        raise DataError(_missing(given, pattern, missing, paths, suffixes))
    root = _root(pattern)
    names = {path.relative_to(root).as_posix(): path for path in paths}
    if os.path.isdir(pattern) or ("*" in pattern and not os.path.lexists(pattern)):
        _check_numbered(names)
    splits = {name: split_of(os.path.basename(name)) or split_of(os.path.dirname(name)) for name in sorted(names)}
    if any(splits.values()) and not all(splits.values()):
        without = next(name for name, split in splits.items() if not split)
        raise DataError(
            f"{given}: {names[without]} has no split in its name, as others do. Put 'train', 'validation' or 'test' in "
            "its name or that of its folder, or convert it on its own with --split=NAME"
        )
    files = [NamedFile(names[name], name, split) for name, split in splits.items()]
    return sorted(files, key=lambda file: (file.split != "train", file.split))


def _expanded(pattern: str, given: str) -> Iterator[str]:
    """Yields the names that the braces of a pattern stand for."""
    parts = _BRACES.split(pattern)  # every second one was in braces
    choices = [[part] if i % 2 == 0 else _choices(part, given) for i, part in enumerate(parts)]
    total = 1
    for options in choices:
        total *= len(options)
    if total > _MOST_FILES:
        raise UsageError(f"{given} stands for {total:,} files. Pass fewer")
    yield from map("".join, product(*choices))


def _choices(text: str, given: str) -> Sequence[str]:
    if "," in text:
        return text.split(",")
    limits = _RANGE.fullmatch(text)
    if not limits or int(limits[1]) > int(limits[2]) or int(limits[2]) - int(limits[1]) >= _MOST_FILES:
        raise UsageError(f"{given}: {{{text}}} is not a range of numbers or a list. Example: {{000..099}}")
    width = len(limits[1])
    return [f"{number:0{width}d}" for number in range(int(limits[1]), int(limits[2]) + 1)]


def _files(path: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Yields a file, or the visible files with one of the suffixes in a folder and below it."""
    if not path.is_dir():
        yield path
        return
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (
            Path(folder, name) for name in sorted(files) if name.lower().endswith(suffixes) and not name.startswith(".")
        )


def _root(pattern: str) -> Path:
    """Returns the folder that file names are relative to."""
    if os.path.isdir(pattern):
        return Path(pattern)
    fixed = pattern if os.path.lexists(pattern) else _SPECIAL.split(pattern, maxsplit=1)[0]
    return Path(os.path.dirname(fixed))


def _missing(given: str, pattern: str, missing: Sequence[str], found: Sequence[Path], suffixes: tuple[str, ...]) -> str:
    if os.path.isdir(pattern):
        return f"{given} has no files ending in {', '.join(suffixes)}, and no subfolders with any"
    total = len(missing) + len(found)
    if total > len(missing):
        return f"{given}: {len(missing)} of {counted(total, 'file')} missing: {first(missing)}. Copy them there"
    name = missing[0]
    folder = _root(name)
    if not folder.is_dir():
        return f"{given}: folder {folder} does not exist{similar_folder(folder)}"
    known = sorted(entry.name for entry in folder.iterdir())
    what = "matches no file" if glob.has_magic(name) else f"{name} does not exist"
    return f"{given}: {what}{did_you_mean(os.path.basename(name), known)}"


def _check_numbered(names: dict[str, Path]) -> None:
    """Checks that sets of files such as `train-00000-of-00005.parquet` are complete.

    Raises:
      DataError: one is not.
    """
    sets: dict[tuple[Path, str], list[tuple[int, int]]] = {}
    for name, path in names.items():
        base = os.path.basename(name)
        if numbered := _NUMBERED.search(base):
            stem = base[: numbered.start()].rstrip("-_.")
            sets.setdefault((path.parent, stem), []).append((int(numbered[2]), int(numbered[1])))
    for (folder, stem), shards in sets.items():
        check_complete(folder, stem, shards)
