"""Runs Python files of users: recipes and models.

    code = run_file(Path("models.py"))
    model = code.names["small"](num_classes=3, image_size=32)
    code.imported()                             # models.py, and what it has imported from its folder

The folder of a file comes first on its import path, as for `python FILE`, while the file runs. Later imports, such as
those in functions, find the folder last, so that it hides no module of Convoy's or of a library.
"""

import contextlib
import hashlib
import runpy
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class UserCode:
    """A file that has been run.

    Attributes:
      path: the file, absolute.
      names: what it defines.
      known: names of the modules that were imported before.
    """

    path: Path
    names: Mapping[str, Any]
    known: frozenset[str]

    def files(self) -> dict[str, Path]:
        """Returns the file, and the files that it has imported from its folder so far, by relative path, with `/`."""
        folder = self.path.parent
        new = [module for name, module in list(sys.modules.items()) if name not in self.known]
        imported = [file for module in new if (file := _file_of(module))]
        own = [file for file in imported if file.is_relative_to(folder) and not _is_installed(file)]
        return {path.relative_to(folder).as_posix(): path for path in sorted({self.path, *own})}

    def digests(self) -> dict[str, str]:
        """Returns the SHA-256 of each of the files, by relative path."""
        return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in self.files().items()}


def run_file(path: Path) -> UserCode:
    """Runs a file, and imports anew what files that were run earlier have imported from their folders.

    Raises whatever the file raises.
    """
    path = path.resolve()
    for earlier in _run:
        files = set(earlier.files().values()) - {earlier.path}
        for name in [name for name, module in sys.modules.items() if _file_of(module) in files]:
            del sys.modules[name]
    code = UserCode(path, {}, frozenset(sys.modules))
    _run[:] = [*(other for other in _run if other.path != path), code]
    with first_on_path(path.parent):
        names = runpy.run_path(str(path))
    return replace(code, names=names)


@contextlib.contextmanager
def first_on_path(folder: Path) -> Iterator[None]:
    """Puts a folder first on the import path; leaves it there after all others that do not hold users' files."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
        if entry in _added:
            sys.path.remove(entry)
        if entry not in sys.path:
            first = min((sys.path.index(other) for other in _added if other in sys.path), default=len(sys.path))
            sys.path.insert(first, entry)
            _added.add(entry)


_run: list[UserCode] = []
_added: set[str] = set()  # entries of the import path


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file) if file else None


def _is_installed(file: Path) -> bool:
    return "site-packages" in file.parts
