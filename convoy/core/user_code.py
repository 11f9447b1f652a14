"""Runs Python files of users: recipes and models.

    code = run_file(Path("models.py"))
    model = code.names["small"](num_classes=3, image_size=32)
    code.files()                                # models.py, and what it has imported from its folder

The folder of a file comes first on its import path, as for `python FILE`, while the file runs. Later imports, such as
those in functions, find the folder last, so that it hides no module of Convoy's or of a library.

A launcher sends these files to workers on other hosts as a folder (`launch/user_files.py`), named in CONVOY_CODE:

CODE/files.json                             # {"recipes/mine.py": "0/mine.py"}: the path as typed, and that of the copy
CODE/0/mine.py  CODE/0/beside.py            # what mine.py imports from its folder
"""

import contextlib
import hashlib
import json
import os
import pwd
import runpy
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from convoy.core.errors import UsageError

SENT_CODE_VARIABLE = "CONVOY_CODE"
SENT_CODE_INDEX = "files.json"


class UserCode:
    """A file that has been run.

    Attributes:
      path: the file, absolute.
      names: what it defines.
    """

    def __init__(self, path: Path):
        """Takes note of what is imported before the file runs."""
        self.path = path
        self.names: Mapping[str, Any] = {}
        self._known: set[str] | None = set(sys.modules)
        self._files = {path}
        self._as_run: dict[str, str] = {}  # digests

    def files(self) -> dict[str, Path]:
        """Returns the file and what it has imported from its folder, by relative path, with `/`.

        Imports count until another file is run.
        """
        folder, known = self.path.parent, self._known
        for name, module in list(sys.modules.items()) if known is not None else []:
            file = _file_of(module) if name not in (known or ()) else None
            if file and file.is_relative_to(folder) and not _is_installed(name, file):
                self._files.add(file)
        return {path.relative_to(folder).as_posix(): path for path in sorted(self._files)}

    def digests(self) -> dict[str, str]:
        """Returns the SHA-256 of each of the files, by relative path."""
        return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in self.files().items()}

    def note_end(self) -> None:
        """Takes note of the files' content when the file has run."""
        self._as_run = self.digests()

    def is_unchanged(self) -> bool:
        """Returns whether the file has run to its end, and neither it nor what it imported has changed since."""
        try:
            now = self.digests()
        except OSError:
            return False
        return bool(self._as_run) and all(now.get(name) == digest for name, digest in self._as_run.items())

    def close(self) -> set[Path]:
        """Ends the counting of imports; returns the files that were imported."""
        self.files()
        self._known = None
        return self._files - {self.path}


def run_file(path: Path) -> UserCode:
    """Runs a file, and imports again what files that were run earlier have imported from their folders.

    Raises whatever the file raises.
    """
    path = path.resolve()
    imported = {file for earlier in _run.values() for file in earlier.close()}
    for name in [name for name, module in sys.modules.items() if imported and _file_of(module) in imported]:
        del sys.modules[name]
    code = _run[path] = UserCode(path)
    with first_on_path(path.parent):
        code.names = runpy.run_path(str(path))
    code.note_end()
    return code


def run_if_changed(path: Path) -> UserCode:
    """As `run_file`, but a file that is unchanged since it ran does not run again, so that its pieces stay the same."""
    earlier = code_of(path)
    return earlier if earlier and earlier.is_unchanged() else run_file(path)


def located(name: str) -> Path:
    """Returns the path of a user's file: `name`, or the copy that a launcher sent if the code at `name` differs.

    Code that is the same stays where files next to it can be read too.
    """
    with contextlib.suppress(KeyError, OSError, ValueError):
        sent = Path(os.environ[SENT_CODE_VARIABLE])
        copy = sent / json.loads((sent / SENT_CODE_INDEX).read_bytes())[name]
        own = Path(name).resolve()
        if own.name != copy.name or not all(
            _has_content(own.parent / path.relative_to(copy.parent), path.read_bytes())
            for path in copy.parent.rglob("*.py")
        ):
            return copy
    return Path(name)


def check_owner(path: Path, runs: str) -> None:
    """Raises a UsageError if a file with code belongs to another user than this one or root.

    Args:
      path: the file, or one that names it.
      runs: what would run its code, for the message.
    """
    owner = path.stat().st_uid
    if owner not in (os.getuid(), 0):
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = f"user {owner}"
        raise UsageError(
            f"{path} belongs to {name}, and {runs} runs its code. Read it, and pass --trust_code if you trust it."
        )


def code_of(path: Path) -> UserCode | None:
    """Returns a file that this process has run; None for others."""
    return _run.get(path.resolve())


def files_run() -> list[Path]:
    """Returns the files that this process has run, as another process needs them to have the same names registered."""
    return list(_run)


def code_with(path: Path) -> UserCode | None:
    """Returns the file that this process has run and that is, or has imported from its folder, this one; or None."""
    return next((code for code in _run.values() if path.resolve() in code.files().values()), None)


@contextlib.contextmanager
def first_on_path(folder: Path) -> Iterator[None]:
    """Puts a folder first on the import path; leaves it there after all others that do not hold users' files."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
        if entry in _added and entry in sys.path:
            sys.path.remove(entry)
        if entry not in sys.path:
            others = [place for place, other in enumerate(sys.path, 1) if other not in _added]
            sys.path.insert(max(others, default=0), entry)
            _added.add(entry)


_run: dict[Path, UserCode] = {}
_added: set[str] = set()  # entries of the import path


def _has_content(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file) if file else None


def _is_installed(module: str, file: Path) -> bool:
    return module.partition(".")[0] == "convoy" or "site-packages" in file.parts
