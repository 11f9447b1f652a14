"""The images of WebDataset archives: `KEY.jpg` and its label, `KEY.cls`, `KEY.txt` or a field of `KEY.json`.

    convoy convert --tar='shards/train-{000..099}.tar' --output=data --label_field=json:label

Images are read in place from uncompressed archives. Names of members are only names: nothing is unpacked.
"""

import bz2
import contextlib
import functools
import gzip
import lzma
import os
import posixpath
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from convoy.core.errors import DataError, UsageError, did_you_mean
from convoy.core.reading import parsed_json
from convoy.core.text import joined
from convoy.input_pipeline.convert.file_patterns import NamedFile, find_files
from convoy.input_pipeline.convert.folders import first, is_hidden, is_image_name
from convoy.input_pipeline.convert.labels import NO_LABEL, Labels, labelled, number_or_text
from convoy.input_pipeline.convert.options import Options
from convoy.input_pipeline.convert.request import Log, Request
from convoy.input_pipeline.convert.scratch import Spool, scratch_folder
from convoy.input_pipeline.convert.sources import Source, Sources
from convoy.input_pipeline.convert.tar_members import FOLDER, Member, TarError, read_members

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_LABEL_SUFFIXES = ("cls", "txt", "json")  # in the order in which they are looked for
_JSON_KEYS = ("label", "class", "cls", "category", "class_name", "label_name")
_MOST_LABEL_BYTES = 2**20
_BLOCK_BYTES = 2**20
_REMEMBERED = 4096  # labels, folders and suffixes
_LISTED = 8  # keys that an error lists
_REPEATED = "in the archive more than once"


class LabelField(NamedTuple):
    """Where the label of an image is: in the member with this suffix, and with a key, under that in its JSON."""

    suffix: str
    key: str = ""

    @classmethod
    def parsed(cls, text: str) -> "LabelField | None":
        """Returns the field that `--label_field` names; None if it is to be found out.

        Raises:
          UsageError: it is malformed.
        """
        suffix, _, key = text.removeprefix(".").partition(":")
        if text and (not suffix or (":" in text and not key)):
            raise UsageError(f"--label_field={text}: must be a suffix such as cls or txt, or json:KEY")
        return cls(suffix.lower(), key) if text else None

    def __str__(self) -> str:
        """Returns the value of `--label_field`."""
        return f"{self.suffix}:{self.key}" if self.key else self.suffix

    @property
    def lacks_key(self) -> bool:
        """Whether a key is needed, and not given."""
        return self.suffix == "json" and not self.key

    def value(self, content: bytes) -> object:
        """Returns the label in the content of a member.

        Raises:
          ValueError: it has none; the message says why.
        """
        if not self.key:
            try:
                text = content.decode("utf-8-sig")
            except UnicodeDecodeError:
                raise ValueError(f"the .{self.suffix} is not UTF-8") from None
            return number_or_text(text)
        try:
            value = parsed_json(content)
        except (ValueError, RecursionError):
            raise ValueError(f"the .{self.suffix} is not JSON") from None
        for key in [self.key] if isinstance(value, dict) and self.key in value else self.key.split("."):
            if not isinstance(value, dict) or key not in value:
                known = did_you_mean(key, map(str, value)) if isinstance(value, dict) else ""
                raise ValueError(f"the .{self.suffix} has no key {self.key!r}{known}")
            value = value[key]
        return value


@contextlib.contextmanager
def opened_tars(request: Request, log: Log) -> Iterator[Options]:
    """Yields the options for WebDataset archives, with the splits of their names."""
    pattern = request.text("tar")
    field = LabelField.parsed(request.text("label_field"))
    files = find_files(pattern, flag="tar", suffixes=_SUFFIXES)
    own = request.own_splits("tar", {file.split or request.default_split for file in files})
    files = [file._replace(split=file.split or request.default_split) for file in files]
    listing = functools.partial(_listed, files, Labels(request.record_format.class_names), field, request, log)
    yield request.options(Path(pattern), split_folders=own, prepared=True, listing=listing)


@contextlib.contextmanager
def _listed(
    files: Sequence[NamedFile], labels: Labels, field: LabelField | None, request: Request, log: Log
) -> Iterator[Sources]:
    """Yields the images of archives; compressed ones are kept uncompressed meanwhile."""
    given = f"--tar={request.text('tar')}"
    found = _Found(labels, field)
    with contextlib.ExitStack() as copies:
        folder: Path | None = None
        for number, file in enumerate(files):
            try:
                path = file.path
                modified = path.stat().st_mtime_ns
                with open(path, "rb") as archive:
                    if decompress := _decompressor(archive):
                        if folder is None:
                            folder = copies.enter_context(scratch_folder(request.local_output, "images"))
                            log(f"{given}: decompressing to {folder}.")
                        path = folder / f"{number}.tar"
                        _decompress(decompress(archive), path)
                with open(path, "rb") as archive:
                    found.add(archive, path, file, modified)
            except TarError as error:
                raise DataError(f"{file.path} {error}. Copy it again, or leave it out of --tar") from None
            except OSError as error:
                raise DataError(f"{file.path} cannot be read ({error.strerror or error})") from None
        if field is None and found.field:
            log(f"{given}: labels are from --label_field={found.field}.")
        yield labelled(found.images, found.bad, labels, given, log, ignored=found.ignored)


class _Found:
    """The images of archives, and those that cannot be used.

    Attributes:
      images: images with their categories.
      bad: other images, or labels without one, each with the reason.
      ignored: number of members that belong to no image.
      field: where labels are; None as long as no image has one.
    """

    def __init__(self, labels: Labels, field: LabelField | None):
        self.images: list[Source] = []
        self.bad: list[tuple[Source, str]] = []
        self.ignored = 0
        self.field = field if field and not field.lacks_key else None
        self._candidates = (field.suffix,) if field else _LABEL_SUFFIXES
        # Most images have a label that earlier ones had.
        self._category = functools.lru_cache(_REMEMBERED)(lambda field, content: labels.category(field.value(content)))

    def add(self, archive: BinaryIO, path: Path, file: NamedFile, modified: int) -> None:
        """Adds the images of an archive, which is open from `path`: a copy if `file` is compressed."""
        copy = str(path)
        for sample in self._samples(archive):
            if self.field is None:
                self.field = _field_in(archive, sample, self._candidates)
            pairs = _pairs(sample, self.field.suffix if self.field else "")
            if not pairs:
                self.ignored += len(sample)
            for image, label, problem in pairs:
                category = ""
                if not problem and self.field:
                    try:
                        category = self._category(self.field, _content(archive, label))
                    except ValueError as error:
                        problem = str(error)
                name = f"{file.name}/{image.name}"
                source = Source(copy, name, category, image.size, modified, image.offset, file.split)
                if problem:
                    self.bad.append((source, problem))
                else:
                    self.images.append(source)

    def _samples(self, archive: BinaryIO) -> Iterable[dict[str, Member]]:
        """Returns the samples of an archive: members by what follows the first dot of their names, in lower case."""
        samples: dict[str, dict[str, Member]] = {}
        for member in read_members(archive):
            name = member.name
            if name[:1] in (".", "/") or "/." in name or "//" in name:
                name = posixpath.normpath(f"/{name}").lstrip("/")  # neither absolute nor with `..`
            folder, slash, base = name.rpartition("/")
            if member.kind == FOLDER or _is_hidden(base) or _is_hidden_folder(folder):
                continue
            stem, dot, suffix = base.partition(".")
            if not dot:
                self.ignored += 1
                continue
            sample = samples.setdefault(f"{folder}{slash}{stem}", {})
            suffix = suffix.lower()
            kind = _REPEATED if suffix in sample else member.kind
            sample[suffix] = Member(name, kind, member.offset, member.size)
        return samples.values()


def _is_hidden(name: str) -> bool:
    """Returns whether a name is hidden, or that of metadata of WebDataset."""
    return is_hidden(name) or (name.startswith("__") and name.endswith("__"))


@functools.lru_cache(_REMEMBERED)
def _is_hidden_folder(folder: str) -> bool:
    return any(map(_is_hidden, folder.split("/")))


@functools.lru_cache(_REMEMBERED)
def _is_image(suffix: str) -> bool:
    return is_image_name(f"x.{suffix}")


def _pairs(sample: Mapping[str, Member], suffix: str) -> list[tuple[Member, Member, str]]:
    """Returns the images of a sample, each with the label of its name, and why it cannot be used, or "".

    Args:
      sample: its members by suffix; `2.jpg` is an image too, and the label `2.cls` is for it.
      suffix: suffix of labels; "" if no image so far had any.
    """
    images = list(filter(_is_image, sample))
    if not images and suffix in sample:
        return [(sample[suffix], sample[suffix], "a label, and no image has its name")]
    if len(images) == 1 and suffix in sample:
        labels = {images[0]: suffix}
    else:
        labels = {name: f"{name.rpartition('.')[0]}.{suffix}".lstrip(".") for name in images}
    own = [name for name in images if labels[name] in sample]
    if not own:
        what = f".{suffix}{did_you_mean(suffix, sample)}" if suffix else ".cls, .txt or .json"
        shared = f"{len(images)} images with one .{suffix}: {first(images)}"
        problem = shared if suffix in sample else f"{NO_LABEL}: no {what} has its name"
        return [(sample[name], sample[name], problem) for name in images]
    found = []
    number_of = Counter(labels.values()) if len(own) > 1 else {}
    for name in own:
        image, label = sample[name], sample[labels[name]]
        problem = ""
        if number_of.get(labels[name], 1) > 1:
            problem = f"{number_of[labels[name]]} images with one .{labels[name]}"
        elif image.kind:
            problem = image.kind if image.kind == _REPEATED else f"{image.kind}, not an image"
        elif label.kind:
            problem = f"its .{labels[name]} is {label.kind}"
        found.append((image, label, problem))
    return found


def _field_in(archive: BinaryIO, sample: Mapping[str, Member], suffixes: Sequence[str]) -> LabelField | None:
    """Returns the field of the label in a sample, or None if it has no image or no label.

    Raises:
      DataError: there is a JSON with no or several keys that labels are called.
    """
    if not any(map(_is_image, sample)):
        return None
    names = [name for suffix in suffixes for name in sample if name.rpartition(".")[2] == suffix]
    if not names:
        return None
    field = LabelField(names[0].rpartition(".")[2])
    member = sample[names[0]]
    if not field.lacks_key:
        return field
    try:
        content = parsed_json(_content(archive, member))
    except (ValueError, RecursionError):
        return None
    keys = list(content) if isinstance(content, dict) else []
    known = [key for key in _JSON_KEYS if key in keys]
    if len(known) != 1:
        listed = f"has {joined(keys[:_LISTED], 'and')}" if keys else "is not an object with keys"
        raise DataError(f"{member.name} {listed}. Name the key of the label: --label_field=json:KEY")
    return field._replace(key=known[0])


def _content(archive: BinaryIO, member: Member) -> bytes:
    if member.size > _MOST_LABEL_BYTES:
        raise ValueError(f"a label of {member.size:,} bytes")
    return os.pread(archive.fileno(), member.size, member.offset)


def _decompressor(archive: BinaryIO) -> Callable[[BinaryIO], Any] | None:
    """Returns a function that opens a compressed archive, or None if it is not compressed."""
    beginning = archive.read(6)
    archive.seek(0)
    return next((function for magic, function in _DECOMPRESSORS.items() if beginning.startswith(magic)), None)


def _zstd(archive: BinaryIO) -> Any:  # noqa: ANN401
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(archive, "r"), "zstd")


_DECOMPRESSORS: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x28\xb5\x2f\xfd": _zstd,
}


def _decompress(stream: BinaryIO, path: Path) -> None:
    """Copies what a decompressor reads to a file.

    Raises:
      TarError: the archive is damaged.
      DataError: the copy cannot be written.
    """
    with open(path, "xb", buffering=0) as file:
        copy = Spool(file)
        while True:
            try:
                block = stream.read(_BLOCK_BYTES)
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise TarError(f"is damaged or cut off (decompression fails: {error})") from None
            if not block:
                return
            copy.add(block)
