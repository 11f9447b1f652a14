"""Images to convert from any iterable of `(image, category)`, such as a generator, or from arrays of images and labels.

with spooled(images, name="photos", output=Path("data")) as found:
    found.images[0]        # Source(name="00000000", category="cup", ...)

The images are copied to one temporary file next to the output as they come, so that memory holds their names only, and
worker processes can read them. An image is named after its position, and has the record of a file of that name.
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from convoy.core.errors import ConvoyError, DataError, UsageError, failure
from convoy.core.registry import Registry, is_code
from convoy.core.text import counted
from convoy.input_pipeline.convert.arrays import file_of, is_array, labels_of
from convoy.input_pipeline.convert.labels import Labels, labelled
from convoy.input_pipeline.convert.options import Options, with_split_folders
from convoy.input_pipeline.convert.plan import content_hash
from convoy.input_pipeline.convert.request import Log, Request
from convoy.input_pipeline.convert.scratch import spool
from convoy.input_pipeline.convert.sources import Source, Sources

Images = Iterable[tuple[Any, Any]]  # (bytes of an image file or its pixels, category)

_STREAMS: Registry[object] = Registry("iterable of images", field="--images")
_ENDED = object()


@contextmanager
def opened_images(request: Request, log: Log) -> Iterator[Options]:
    """Yields the options for a folder of images, or for an iterable, which is read when it is listed."""
    images = request.origin["images"]
    labels: Labels | None = None
    if isinstance(images, str) and is_code(images) and not os.path.exists(images):
        images = find_images(images)
    elif isinstance(images, str | os.PathLike):
        if request.has("labels"):
            raise UsageError(f"--labels is for arrays of images, and --images={images} is a folder. Omit it")
        yield with_split_folders(request.options(Path(images)))
        return
    name = request.text("images")
    request.refuse("images", ("table",), "its own categories")
    if request.has("labels"):
        labels = Labels(request.record_format.class_names)
        images = _paired(images, request.origin["labels"])
    elif is_array(images):
        raise UsageError(f"--images is {name}: pass the label of each image as --labels")

    def listing() -> AbstractContextManager[Sources]:
        log(f"{name}: copying the images to a temporary file next to {request.output}.")
        return spooled(images, name=name, output=request.local_output, labels=labels)

    yield request.options(Path(name), listing=listing)


def _paired(images: Iterable[Any], labels: Iterable[object]) -> Images:
    """Returns images with their labels.

    Raises:
      UsageError: they are not as many, now or when the iterable ends.
    """
    labels = labels_of(labels)
    numbers = [len(values) for values in (images, labels) if isinstance(values, Sized)]
    if len(set(numbers)) > 1:
        raise UsageError(f"--labels has {numbers[1]:,} labels for {counted(numbers[0], 'image')}. Pass one per image")

    def pairs() -> Iterator[tuple[Any, Any]]:
        for number, (image, label) in enumerate(itertools.zip_longest(images, labels, fillvalue=_ENDED)):
            if image is _ENDED or label is _ENDED:
                more = "images" if label is _ENDED else "labels"
                raise UsageError(f"--labels: there are {number:,} pairs, and more {more}. Pass one label per image")
            yield image, label

    return pairs()


def find_images(name: str) -> Images:
    """Returns the images that a function without arguments returns, or yields.

    Args:
      name: `FILE.py:NAME`, or `package.module:NAME`.

    Raises:
      UsageError: there is no such name, it fails, or it is not iterable.
    """
    images = _STREAMS.find(name).value
    try:
        images = images() if callable(images) else images
    except Exception as error:
        raise _STREAMS.error(name, f"fails: {failure(error)}") from error
    if not isinstance(images, Iterable):
        raise _STREAMS.error(name, f"{type(images).__name__} is not iterable. Yield (image, category)")
    return images


@contextmanager
def spooled(images: Images, *, name: str, output: Path, labels: Labels | None = None) -> Iterator[Sources]:
    """Copies images to a temporary file, which exists in the context.

    Args:
      images: read once, to the end.
      name: what to call them in messages.
      output: directory of the dataset; the file is next to it.
      labels: gives the categories of labels of any kind; None if the labels are categories, that is text.

    Raises:
      DataError: `images` fails, is empty, or yields something else; or the file cannot be written.
    """
    found: list[Source] = []
    bad: list[tuple[Source, str]] = []
    categories = labels or Labels()
    with spool(output) as copies:
        for position, (image, label) in enumerate(_checked(images, name, only_text=labels is None)):
            data, category, problem = b"", "", ""
            try:
                data = image if isinstance(image, bytes) else file_of(image)
                category = categories.category(label)
            except ValueError as error:
                problem = str(error)
            # The hash in place of a modification time: an interrupted conversion resumes with the same images only.
            modified = content_hash(data)
            source = Source(copies.path, f"{position:08d}", category, len(data), modified, copies.add(data))
            if problem:
                bad.append((source, problem))
            else:
                found.append(source)
        yield labelled(found, bad, categories, name)


def _checked(images: Images, name: str, *, only_text: bool) -> Iterator[tuple[Any, Any]]:
    """Yields the images; errors of the iterable and wrong items become a DataError."""
    position, iterator = 0, iter(images)
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except ConvoyError:
            raise
        except Exception as error:
            raise DataError(f"{name} fails at image {position}: {failure(error)}") from error
        pair = item if isinstance(item, (tuple, list)) else (item,)
        image, label = pair if len(pair) == 2 else (None, None)
        if not (isinstance(image, bytes) or is_array(image)) or (only_text and not isinstance(label, str)):
            kinds = ", ".join(type(part).__name__ for part in pair)
            raise DataError(
                f"{name}: image {position} is {kinds}. Yield (image, category): bytes of a file or a uint8 array, and "
                "text"
            )
        yield image, label
        position += 1
