"""Data sets that a user's objects provide, instead of shards. Does not import TensorFlow.

sources = open_sources("sources.py:photos")                # a function of a user's file that returns sources by split
sources = open_sources({"train": Photos("photos.zip")})    # live objects
sources.splits["train"].read([3, 7])                       # encoded images, checked

A source is opened by reading all of its labels and a few of its images.
"""

import hashlib
import operator
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import google_crc32c
import numpy as np

from convoy.core.errors import DataError, UsageError, failure
from convoy.core.registry import Found, Registry, is_code
from convoy.core.text import counted
from convoy.core.user_code import check_owner
from convoy.input_pipeline.dataset.index import LARGEST_LABEL, RecordKeys
from convoy.input_pipeline.dataset.records import RecordError, example
from convoy.input_pipeline.images.kinds import is_image, kind_of

T = TypeVar("T")

_SAMPLED = 64  # images of a split whose bytes are part of its identity
_FIRST = 3  # images; if none of them is an image file, the source returns something else
_SHOWN = 3  # indices in a message


@runtime_checkable
class Source(Protocol):
    """Images and labels by index, in place of a dataset directory.

    The order of training depends on `num_images` and the seed of the run only, so that a run on a source is the same as
    on shards of the same images in the same order.

    An optional attribute `class_names` has the name of each label; without it, the classes are named 0, 1, ... All
    workers of a run open the source themselves.

    Example:
      class Photos:
          def __init__(self, paths, labels):
              self.paths, self.labels = paths, labels
              self.num_images = len(paths)

          def label(self, index):
              return self.labels[index]

          def read(self, indices):
              return [Path(self.paths[index]).read_bytes() for index in indices]

      convoy.train(config, data={"train": Photos(paths, labels)}, workdir="run")
    """

    num_images: int

    def label(self, index: int) -> int:
        """Returns the label of an image, from 0. Called once per image when the source is opened."""

    def read(self, indices: Sequence[int]) -> Sequence[bytes]:
        """Returns the encoded images (JPEG, PNG, WebP, GIF or BMP), in the order of `indices`.

        The bytes of an image must not change. Called from several threads, one call at a time, also for the other
        splits of the dataset; to read in parallel, start threads in it.
        """


SOURCES: Registry[object] = Registry("source", field="--data")


@dataclass(frozen=True)
class SourceName:
    """A source as it was given, in the place of a dataset's path."""

    text: str
    is_named: bool = True  # otherwise it was a live object

    def __str__(self) -> str:
        """Returns the text."""
        return self.text

    def resolve(self) -> "SourceName":
        """Returns the name with an absolute path of its file, if there is one."""
        file, colon, attribute = self.text.rpartition(":")
        return SourceName(f"{Path(file).resolve()}{colon}{attribute}") if file.endswith(".py") else self

    @property
    def file(self) -> Path | None:
        """The user's file that has it, if any."""
        file = self.text.rpartition(":")[0]
        return Path(file) if self.is_named and file.endswith(".py") else None


def source_name(data: object) -> SourceName | None:
    """Returns the name of a source in a user's file, in a module, or registered; None for a dataset's directory."""
    is_source = isinstance(data, str) and (is_code(data) or data in SOURCES.names) and not os.path.exists(data)
    return SourceName(str(data)) if is_source else None


def check_source_owner(data: str, record: Path) -> None:
    """Raises a UsageError if opening `data`, as named in the file `record`, would run the code of another user."""
    if source := source_name(data):
        for path in (record, *([source.file] if source.file and source.file.is_file() else [])):
            check_owner(path, "opening its data")


class OpenedSource:
    """One split of a source, checked; safe to use from several threads.

    Attributes:
      name: name of the source, for messages.
      label: [num_images] int32.
      mean_bytes: mean size of the sampled images.
      digest: SHA-256 of the number of images, all labels, and the bytes of up to 64 images, evenly spaced.
    """

    def __init__(self, name: str, source: Source, lock: threading.Lock):
        """Reads the labels and samples the images.

        Args:
          name: name of the source.
          source: the source.
          lock: held while it is read.

        Raises:
          DataError: it fails, or does not keep the contract of `Source`.
        """
        self.name = name
        self._source = source
        self._lock = lock
        number = self._called("num_images", lambda: operator.index(source.num_images))
        if number < 1:
            raise DataError(f"{name}: num_images is {number}. A split needs at least one image")
        self.label = self._labels(number)
        self._is_known = np.zeros(number, bool)
        self._crc = np.zeros(number, np.uint32)  # of images that were read before
        sampled = np.unique(np.linspace(0, number - 1, _SAMPLED).astype(np.int64))
        images = self.read(sampled)
        with ThreadPoolExecutor(1) as other_thread:  # as in training, and in another order
            other_thread.submit(self.read, sampled[::-1]).result()
        self._check_images(images[:_FIRST])
        self.mean_bytes = sum(map(len, images)) / len(images)
        content = hashlib.sha256(b"%d " % number + self.label.astype("<i4").tobytes())
        for image in images:
            content.update(hashlib.sha256(image).digest())
        self.digest = content.hexdigest()

    def read(self, indices: Sequence[int] | np.ndarray) -> list[bytes]:
        """Returns encoded images.

        Args:
          indices: [n] integers in [0, num_images).

        Raises:
          DataError: the source fails, or returns something else, or other bytes than before.
        """
        wanted = np.asarray(indices).tolist()
        shown = f"read([{', '.join(map(str, wanted[:_SHOWN]))}{', ...' if len(wanted) > _SHOWN else ''}])"
        with self._lock:
            images = self._called(shown, lambda: list(self._source.read(wanted))) if wanted else []
        if len(images) != len(wanted):
            raise DataError(
                f"{self.name}: {shown} returns {len(images)} for {counted(len(wanted), 'index', 'indices')}. Return "
                "the bytes of each image"
            )
        for index, image in zip(wanted, images, strict=True):
            if not isinstance(image, bytes):
                raise DataError(
                    f"{self.name}: {shown} returns {type(image).__name__} for image {index}, not bytes. Return the "
                    "bytes of the image file"
                )
            crc = google_crc32c.value(image)
            if self._is_known[index] and self._crc[index] != crc:
                raise DataError(
                    f"{self.name}: image {index} has other bytes than when it was read before. Return the same bytes "
                    "for the same index"
                )
            self._crc[index] = crc
            self._is_known[index] = True
        return images

    def records(self, indices: Sequence[int] | np.ndarray) -> list[bytes]:
        """Returns images as payloads of records. Raises as `read`."""
        return [example({RecordKeys().image: image}) for image in self.read(indices)]

    def problem(self, index: int, reason: str) -> RecordError:
        """Returns the error for an image that cannot be used."""
        return _ImageError(self.name, index, reason)

    def _labels(self, number: int) -> np.ndarray:
        label = np.empty(number, np.int32)
        for index in range(number):
            value = self._called(f"label({index})", partial(self._label, index))
            if not 0 <= value < LARGEST_LABEL:
                raise DataError(
                    f"{self.name}: label({index}) is {value}. Labels must be from 0 to {LARGEST_LABEL - 1:,}"
                )
            label[index] = value
        return label

    def _label(self, index: int) -> int:
        return operator.index(self._source.label(index))

    def _called(self, what: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except Exception as error:
            reason = failure(error)
            threads = " Convoy reads from threads of its own." if "thread" in reason else ""
            raise DataError(f"{self.name}: {what} fails: {reason}.{threads}") from error

    def _check_images(self, first: Sequence[bytes]) -> None:
        if not any(map(is_image, first)):
            kind = kind_of(first[0]) or f"{counted(len(first[0]), 'byte')} of no known image format"
            raise DataError(f"{self.name}: read([0]) returns {kind}. Return the bytes of JPEG, PNG, WebP, GIF or BMP")


class _ImageError(RecordError):
    def __init__(self, name: str, index: int, reason: str):
        self.path, self.offset, self.index, self.reason = name, 0, index, reason
        DataError.__init__(
            self, f"{name}: image {index} {reason}; leave it out, or pass --config.on_corrupt=substitute"
        )


class ChosenImages:
    """Images of opened sources, as a source: those of all, one after another, or some of these.

    Attributes:
      num_images: number of images.
    """

    def __init__(self, sources: "Sequence[OpenedSource]", images: np.ndarray | None = None):
        """Reads nothing. Args: images: [n] int64, which images; None for all."""
        self._sources = sources
        self._ends = np.cumsum([len(source.label) for source in sources])
        self._images = np.arange(self._ends[-1]) if images is None else images
        self._labels = np.concatenate([source.label for source in sources])[self._images]
        self.num_images = len(self._images)

    def label(self, index: int) -> int:
        """Implements `Source.label`."""
        return int(self._labels[index])

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Implements `Source.read`."""
        images = self._images[np.asarray(indices, np.int64)]
        numbers = np.searchsorted(self._ends, images, side="right")
        found: dict[int, bytes] = {}
        for number, source in enumerate(self._sources):
            own = images[numbers == number]
            begin = self._ends[number] - len(source.label)
            found |= zip(own.tolist(), source.read(own - begin), strict=True)
        return [found[image] for image in images.tolist()]


@dataclass(frozen=True)
class Sources:
    """Opened sources.

    Attributes:
      name: as they were given.
      splits: by name, sorted.
      class_names: the same for all splits.
    """

    name: SourceName
    splits: Mapping[str, OpenedSource]
    class_names: tuple[str, ...]


def open_sources(data: SourceName | Source | Mapping[str, Source]) -> Sources:
    """Opens the sources of a dataset.

    Args:
      data: a name, whose piece is a source, a mapping of sources by split, or a function without arguments that returns
        one; or a live source, or a mapping of them. A source alone is the split `train`.

    Raises:
      UsageError: there is no such name, or it has no sources.
      DataError: a source fails or does not keep the contract of `Source`.
    """
    made: object = data
    if isinstance(data, SourceName):
        name, made = data, _made(SOURCES.find(data.text))
    else:
        some = next(iter(data.values()), data) if isinstance(data, Mapping) else data
        name = SourceName(f"source {type(some).__name__}", is_named=False)
    by_split: dict[str, Any] = dict(made) if isinstance(made, Mapping) else {"train": made}
    for split, source in by_split.items():
        if not isinstance(source, Source) or not isinstance(split, str):
            raise UsageError(
                f"--data={name}: {type(source).__name__} of split {split!r} is not a source. Give it num_images, "
                "label(index) and read(indices)."
            )
    if not by_split:
        raise UsageError(f"--data={name}: has no sources. Return one for the split 'train'.")
    lock = threading.Lock()
    splits = {split: OpenedSource(f"{name} ({split})", by_split[split], lock) for split in sorted(by_split)}
    return Sources(name, splits, _class_names(name, by_split, splits))


def _made(found: Found[object]) -> object:
    """Returns what a piece is or makes: a source, or a mapping of sources by split."""
    if not callable(found.value) or (isinstance(found.value, Source) and not isinstance(found.value, type)):
        return found.value
    try:
        return found.value()
    except Exception as error:
        raise DataError(f"--data={found.name}: fails: {failure(error)}") from error


def _class_names(
    name: SourceName, sources: Mapping[str, Source], splits: Mapping[str, OpenedSource]
) -> tuple[str, ...]:
    most = 1 + max(int(split.label.max()) for split in splits.values())
    given = {
        split: tuple(map(str, source.class_names))
        for split, source in sources.items()
        if hasattr(source, "class_names")
    }
    names = next(iter(given.values()), tuple(map(str, range(most))))
    if any(other != names for other in given.values()):
        raise DataError(f"{name}: class_names differ between the splits {', '.join(given)}. Give all splits the same")
    if repeated := [each for i, each in enumerate(names) if each in names[:i]]:
        raise DataError(f"{name}: class_names has {repeated[0]!r} twice. Give each class its own name")
    if most > len(names):
        split, index = next((split, int(s.label.argmax())) for split, s in splits.items() if s.label.max() == most - 1)
        raise DataError(
            f"{name} ({split}): label({index}) is {most - 1}, but class_names has "
            f"{counted(len(names), 'class', 'classes')}"
        )
    return names
