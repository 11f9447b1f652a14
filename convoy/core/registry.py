"""Pieces of a training that users can add by name: losses, metrics, optimizers, schedules, operations, models, sources.

LOSSES: Registry[Loss] = Registry("loss", field="config.loss.name")

@LOSSES.register("focal")                 # built in
def focal(logits, labels): ...

found = LOSSES.find("focal")              # or "losses.py:mine", from a user's file,
found.value(logits, labels)               # or "package.module:mine", from an importable module
found.digests                             # SHA-256 of the files that it comes from, to compare runs
"""

import hashlib
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Generic, TypeVar, cast

from convoy.core.errors import UsageError, did_you_mean, failure
from convoy.core.user_code import UserCode, code_with, located, run_if_changed

T = TypeVar("T")

_IN_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Found(Generic[T]):
    """A piece that was found by its name.

    Attributes:
      name: as in the config.
      value: the piece.
      code: the user's file that defines it; None for built-in pieces and for those of modules and of Python's prompt.
      digests: SHA-256 of the files or the source text that define it, by name; empty for built-in pieces.
    """

    name: str
    value: T
    code: UserCode | None = None
    digests: Mapping[str, str] = field(default_factory=dict)


class Registry(Generic[T]):
    """Pieces of one kind, by name."""

    def __init__(self, kind: str, *, field: str, contract: str = "", also: Sequence[str] = ()):
        """Starts empty.

        Args:
          kind: what the pieces are, as a noun for messages.
          field: the config field or the flag that names a piece, for messages.
          contract: what a piece must be, for messages.
          also: forms of names that others look up, for messages.
        """
        self._kind = kind
        self._field = field
        self._contract = contract
        self._also = also
        self._built_in: dict[str, T] = {}
        self._added: dict[str, T] = {}

    @property
    def names(self) -> list[str]:
        """Names of the built-in pieces, then of those that users have registered."""
        return [*self._built_in, *self._added]

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that adds a piece under `name`.

        A name can be registered again, as when the cell of a notebook is run twice; the last piece counts.

        Raises:
          UsageError: a built-in piece has this name, it is no text, or could be mistaken for `FILE.py:NAME`.
        """
        if not isinstance(name, str):
            kind = self._kind
            raise UsageError(f'{kind} {name!r:.60}: pass a name as text, as in @register_{kind}("NAME").')
        if not name or ":" in name or "," in name:
            raise UsageError(f"{self._kind} {name!r}: a name has no ':' and no ','. Register it under another name.")

        def add(piece: T) -> T:
            is_built_in = (getattr(piece, "__module__", None) or "").partition(".")[0] == "convoy"
            if name in self._built_in and not is_built_in:
                raise UsageError(f"{self._kind} {name!r} is built in. Register yours under another name.")
            (self._built_in if is_built_in else self._added)[name] = piece
            return piece

        return add

    def is_built_in(self, name: str) -> bool:
        """Returns whether a name is that of a built-in piece."""
        return name in self._built_in

    def check(self, name: str) -> None:
        """Raises the UsageError of `find` if the name is unknown; looks into no file and no module."""
        if name not in self.names and not is_code(name):
            raise self._unknown(name)

    def find(self, name: str) -> Found[T]:
        """Returns the piece that a config names.

        Args:
          name: a registered name, `FILE.py:NAME`, or `package.module:NAME`.

        Raises:
          UsageError: there is no such piece, or the file that defines it fails.
        """
        if name in self._built_in:
            return Found(name, self._built_in[name])
        if name in self._added:
            functions = _functions(self._added[name])
            file = next((Path(function.__code__.co_filename) for function in functions), None)
            digests = {name: _source_digest(self._added[name])}
            return Found(name, self._added[name], code_with(file) if file else None, digests)
        place, _, attribute = name.rpartition(":")
        if is_from_file(name):
            code = self._run(name, located(place))
            return Found(name, self._attribute(name, code.names, attribute, place), code, code.digests())
        if _IN_MODULE.fullmatch(name):
            module = self._import(name, place)
            source = getattr(module, "__file__", None)
            digests = {place: hashlib.sha256(Path(source).read_bytes()).hexdigest()} if source else {}
            return Found(name, self._attribute(name, vars(module), attribute, place), None, digests)
        raise self._unknown(name)

    def error(self, name: str, problem: str) -> UsageError:
        """Returns the error for a piece that cannot be used."""
        return UsageError(f"{self._field}={name!r}: {problem.removesuffix('.')}.")

    def breach(self, name: str, complaint: str) -> UsageError:
        """Returns the error for a piece that breaks its contract, with the contract."""
        return UsageError(f"{self.error(name, complaint)} The contract: {self._contract}.")

    def _unknown(self, name: str) -> UsageError:
        known = ", ".join([*self.names, *self._also, "FILE.py:NAME"])
        return self.error(
            name, f"unknown {self._kind}{did_you_mean(name, self.names)}. Set one of {known} or package.module:NAME"
        )

    def _run(self, name: str, path: Path) -> UserCode:
        if not path.is_file():
            raise self.error(name, f"file {path} does not exist")
        try:
            return run_if_changed(path)
        except Exception as error:
            raise self.error(name, f"{path} fails: {failure(error)}") from error

    def _import(self, name: str, module: str) -> ModuleType:
        try:
            return importlib.import_module(module)
        except Exception as error:
            raise self.error(name, f"module {module} cannot be imported: {failure(error)}") from error

    def _attribute(self, name: str, names: Mapping[str, object], attribute: str, place: str) -> T:
        if attribute not in names:
            public = [known for known in names if not known.startswith("_")]
            raise self.error(name, f"{place} has no {attribute}{did_you_mean(attribute, public)}")
        return cast(T, names[attribute])  # whoever uses the piece checks it


def is_from_file(name: str) -> bool:
    """Returns whether a piece's name is `FILE.py:NAME`."""
    file, _, attribute = name.rpartition(":")
    return file.endswith(".py") and bool(attribute)


def is_code(name: str) -> bool:
    """Returns whether a piece's name is `FILE.py:NAME` or `package.module:NAME`, whose code runs when it is found."""
    return is_from_file(name) or bool(_IN_MODULE.fullmatch(name))


def accepted(function: Callable[..., object], options: Mapping[str, object]) -> dict[str, object]:
    """Returns those of the options that a function takes by name; all if it takes `**options`."""
    parameters = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in options.items() if takes_all or name in parameters}


def short_name(name: str) -> str:
    """Returns what stands for a piece in tables: the NAME of `FILE.py:NAME` and `package.module:NAME`."""
    return name.rpartition(":")[2]


def _functions(piece: object) -> list[FunctionType]:
    """Returns a function, or the methods of a class or of an object's class."""
    if isinstance(piece, FunctionType):
        return [piece]
    kind = piece if isinstance(piece, type) else type(piece)
    return [value for value in vars(kind).values() if isinstance(value, FunctionType)]


def _source_digest(piece: object) -> str:
    """Returns the digest of the source text of a piece's functions; of their instructions if the text is not known."""
    digest = hashlib.sha256(getattr(piece, "__qualname__", type(piece).__qualname__).encode())
    for function in _functions(piece):
        try:
            digest.update(inspect.getsource(function).encode())
        except OSError:
            digest.update(function.__code__.co_code)
    return digest.hexdigest()
