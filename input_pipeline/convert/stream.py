"""Images to convert from any iterable of `(bytes, category)`, such as a generator.

with spooled(images, name="photos", output=Path("data")) as found:
    found.images[0]        # Source(name="00000000", category="cup", ...)

The images are copied to one temporary file next to the output as they come, so that memory holds their names only, and
worker processes can read them. An image is named after its position, and has the record of a file of that name.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from convoy.core.errors import DataError, failure
from convoy.core.registry import Registry, is_code
from convoy.input_pipeline.convert.options import Options, with_split_folders
from convoy.input_pipeline.convert.plan import content_hash
from convoy.input_pipeline.convert.request import Log, Request
from convoy.input_pipeline.convert.sources import Source, Sources, check_class_names, one_spelling

Images = Iterable[tuple[bytes, str]]

_STREAMS: Registry[object] = Registry("iterable of images", field="--images")


@contextmanager
def opened_images(request: Request, log: Log) -> Iterator[Options]:
    """Yields the options for a folder of images, or for an iterable, which is read when it is listed."""
    images = request.origin["images"]
    if isinstance(images, str) and is_code(images) and not os.path.exists(images):
        images = find_images(images)
    elif isinstance(images, str | os.PathLike):
        yield with_split_folders(request.options(Path(images)))
        return
    name = request.text("images")
    request.refuse("images", ("table",), "its own categories")

    def listing() -> AbstractContextManager[Sources]:
        log(f"{name}: copying the images to a temporary file next to {request.output}.")
        return spooled(images, name=name, output=Path(request.output))

    yield request.options(Path(name), listing=listing)


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
        raise _STREAMS.error(name, f"{type(images).__name__} is not iterable. Yield (bytes, category)")
    return images


@contextmanager
def spooled(images: Images, *, name: str, output: Path) -> Iterator[Sources]:
    """Copies images to a temporary file, which exists in the context.

    Args:
      images: read once, to the end.
      name: what to call them in messages.
      output: directory of the dataset; the file is next to it.

    Raises:
      DataError: `images` fails, is empty, or yields something else; or the file cannot be written.
    """
    parent = output.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=f"{output.name}.images-", dir=parent)
    except OSError as error:
        raise DataError(f"images cannot be copied to {parent} ({error.strerror})") from None
    with folder:
        path = Path(folder.name) / "images"
        found = tuple(_copied(_checked(images, name), path))
        if not found:
            raise DataError(f"{name} has no images")
        class_names = tuple(sorted({image.category for image in found}))
        check_class_names(class_names, where=name)
        yield one_spelling(Sources(found, class_names))


def _checked(images: Images, name: str) -> Iterator[tuple[bytes, str]]:
    """Yields the images; errors of the iterable and wrong items become a DataError."""
    position, iterator = 0, iter(images)
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise DataError(f"{name} fails at image {position}: {failure(error)}") from error
        kinds = [type(part).__name__ for part in item] if isinstance(item, (tuple, list)) else [type(item).__name__]
        if kinds != ["bytes", "str"]:
            raise DataError(f"{name}: image {position} is {', '.join(kinds)}. Yield (bytes, category), bytes and text")
        yield item[0], item[1].strip()
        position += 1


def _copied(images: Iterator[tuple[bytes, str]], path: Path) -> Iterator[Source]:
    try:
        with open(path, "xb") as file:
            offset = 0
            for position, (data, category) in enumerate(images):
                file.write(data)
                # The hash in place of a modification time: an interrupted conversion resumes with the same images only.
                yield Source(
                    str(path), f"{position:08d}", category, len(data), modified=content_hash(data), offset=offset
                )
                offset += len(data)
    except OSError as error:
        raise DataError(f"images cannot be copied to {path.parent} ({error.strerror or error})") from None
