"""The Python files of users that a trainer's command needs, to be sent to workers on other hosts.

    files = user_files(["train", "--config=mine/recipe.py", "--config.model.name=models.py:small", ...])
    files.content      # {"files.json": b"...", "0/recipe.py": b"...", "0/beside.py": b"...", "1/models.py": b"..."}
    files.names        # ("mine/recipe.py", "models.py"), as typed

These are the recipe, files that a config field, `--data` or `--callbacks` names (models, losses, sources, ...) or a
text in one of them does (`config.model.name = "models.py:small"`), and what they import from their folders. The files
are read, not run: what is imported under a name that is computed is not found. `convoy.core.user_code` describes the
folder that workers get.
"""

import ast
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from convoy.core.errors import UsageError
from convoy.core.user_code import SENT_CODE_INDEX
from convoy.launch.trainer_command import flag_value

_NAMED_FILE = re.compile(r"([^\0\n]{1,200}\.py)(:\w*)?")
_IN_LIST = re.compile(r"[^\0\n\s,|()\"']{1,200}\.py(?=:\w)")  # of names, or of operations with arguments
_NAMING_FLAG = re.compile(r"--?(config\.[\w.]+|data|callbacks)(=|$)")


@dataclass(frozen=True)
class UserFiles:
    """Files for workers.

    Attributes:
      names: paths of recipes and of pieces as typed.
      missing: those that do not exist here.
      content: of each file, by relative path.
    """

    names: Sequence[str] = ()
    missing: Sequence[str] = ()
    content: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of names and content."""
        text = json.dumps([(name, hashlib.sha256(content).hexdigest()) for name, content in self.content.items()])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def user_files(command: Sequence[str]) -> UserFiles:
    """Returns the files that a trainer's command needs, empty if it needs none.

    Raises:
      UsageError: a file cannot be read, or is not Python.
    """
    recipe = flag_value(command, "config") or ""
    named = [recipe] if recipe.endswith(".py") else []
    flags = {word.partition("=")[0].lstrip("-"): None for word in command if _NAMING_FLAG.match(word)}
    named += [name for flag in flags for name in _named_files(flag_value(command, flag) or "", pieces=True)]
    wanted = list(named)
    index: dict[str, str] = {}
    missing: list[str] = []
    content: dict[str, bytes] = {}
    folders: dict[Path, int] = {}
    for name in wanted:  # grows
        path = Path(os.path.realpath(name))
        if name in index:
            continue
        if not os.path.isfile(path):
            missing += [name] if name in named else []
            continue
        number = folders.setdefault(path.parent, len(folders))
        index[name] = f"{number}/{path.name}"
        for file, source in _with_imports(path).items():
            content[f"{number}/{file}"] = source.content
            wanted += source.named_files
    if index:
        content[SENT_CODE_INDEX] = (json.dumps(index) + "\n").encode()
    return UserFiles(tuple(index), tuple(missing), dict(sorted(content.items())))


class _Source:
    """A Python file.

    Attributes:
      content: its bytes.
      imports: modules that it imports, dotted, as parts; a relative import begins with as many empty parts as dots.
      named_files: what looks like `FILE.py` or `FILE.py:NAME` in its texts, without the name.
    """

    def __init__(self, path: Path):
        """Reads a file. Raises UsageError if it cannot be read or is not Python."""
        try:
            self.content = path.read_bytes()
            nodes = list(ast.walk(ast.parse(self.content)))
        except OSError as error:
            raise UsageError(f"{path}: cannot be read ({error.strerror}). Make it readable.") from None
        except (SyntaxError, ValueError) as error:
            line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
            raise UsageError(f"{path}{line}: not Python ({getattr(error, 'msg', error)}). Correct it.") from None
        self.imports = sorted({imported for node in nodes for imported in _imported(node)})
        texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        self.named_files = [name for text in texts for name in _named_files(text)]


def _named_files(text: str, *, pieces: bool = False) -> list[str]:
    """Returns the files that a text names: it is `FILE.py` or `FILE.py:NAME`, or has several of the latter.

    Args:
      text: the text.
      pieces: whether a file without a name does not count.
    """
    whole = _NAMED_FILE.fullmatch(text)
    several = _IN_LIST.findall(text)
    if whole and (not several or os.path.isfile(whole[1])):
        return [whole[1]] if whole[2] or not pieces else []
    return several


def _imported(node: ast.AST) -> Iterator[tuple[str, ...]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield tuple(alias.name.split("."))
    elif isinstance(node, ast.ImportFrom):
        module = ("",) * node.level + tuple(node.module.split(".") if node.module else ())
        for alias in node.names:  # a module or a name in one
            yield (*module, alias.name)


def _with_imports(path: Path) -> dict[str, _Source]:
    """Returns a file, what it imports from its folder, and files beside it that it names, by relative path."""
    folder = path.parent
    found: dict[Path, _Source] = {}
    wanted = [(path, folder)]  # each with the folder in which its imports are searched
    for file, searched in wanted:  # grows
        if file in found or not os.path.isfile(file):
            continue
        source = found[file] = _Source(file)
        for parts in source.imports:
            wanted += [(module, searched) for module in _modules(parts, file, searched)]
        beside = [Path(os.path.normpath(file.parent / name)) for name in source.named_files]
        wanted += [(other, other.parent) for other in beside if other.is_relative_to(folder)]
    return {file.relative_to(folder).as_posix(): source for file, source in found.items()}


def _modules(parts: Sequence[str], file: Path, searched: Path) -> Iterator[Path]:
    """Yields where in the folder `searched` the files of an imported module and of its packages may be."""
    dots = parts.count("")
    place = Path(os.path.normpath(file.parent / ("../" * (dots - 1)))) if dots else searched
    if parts[0] == "convoy" or not place.is_relative_to(searched):
        return
    if dots:
        yield place / "__init__.py"
    for part in parts[dots:]:
        place = place / part
        yield place / "__init__.py"
        yield place.with_name(f"{part}.py")
