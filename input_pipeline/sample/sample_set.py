"""A small set of product-like images, for first runs and tests without photographs.

Each image is a pure function of the seed, the split, the category and its number, so that the set is byte-identical for
any number of processes. Training and test images show the same products in different styles (`photograph`), and about
3 % of the training images show another category's product, as in real catalogs. The complete set is renamed into
place.

Synopsis:
  images = SampleSet(categories=10, per_category=40, test_per_category=20, size=64, seed=0)
  images.write(Path("photos"))  # photos/train/00/5ac1….jpg … photos/train.csv photos/test.csv photos/categories.csv
"""

import concurrent.futures
import csv
import dataclasses
import functools
import hashlib
import multiprocessing
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from convoy.core.errors import UsageError
from convoy.core.files import replace
from convoy.core.processes import follow_parent, helper_starting, main_module_hidden, usable_cores
from convoy.input_pipeline.sample.photograph import MARKETS, photograph
from convoy.input_pipeline.sample.silhouettes import PRODUCTS

_MISLABELED_SHARE = 0.03
_JPEG_QUALITY = 90
_ELSEWHERE = "Pass a new folder as --output."
_PIXELS_PER_TASK = 48 * 64 * 64
# Below this many pixels one process is faster than starting several.
_PIXELS_WORTH_PROCESSES = 400 * 64 * 64


@dataclasses.dataclass(frozen=True)
class Listing:
    """One image of the set: its file, and the product it shows."""

    split: str
    category: int
    index: int
    product: int
    filename: str

    @property
    def folder(self) -> str:
        """The category in folder names and CSV files, such as `03`."""
        return f"{self.category:02d}"


@dataclasses.dataclass(frozen=True)
class SampleSet:
    """Parameters of a set of images.

    Attributes:
      categories: number of categories, 1 to 42; the first ones of `PRODUCTS`.
      per_category: training images per category, 1 to 10,000.
      test_per_category: test images per category, 0 to 10,000; 0 is half of `per_category`, at least 1.
      size: width and height in pixels, 16 to 1024.
      seed: 0 to 2**63 - 1.
    """

    categories: int = len(PRODUCTS)
    per_category: int = 60
    test_per_category: int = 0
    size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UsageError if a field is out of range."""
        _check("categories", self.categories, 1, len(PRODUCTS), f"there are {len(PRODUCTS)} products to draw")
        _check("per_category", self.per_category, 1, 10_000)
        _check("test_per_category", self.test_per_category, 0, 10_000, "0 draws half as many as for training")
        _check("size", self.size, 16, 1024, "pixels")
        _check("seed", self.seed, 0, 2**63 - 1)

    def count(self, split: str) -> int:
        """Returns the number of images per category of `split`, "train" or "test"."""
        return self.per_category if split == "train" else self.test_per_category or max(self.per_category // 2, 1)

    def listings(self, split: str) -> Iterator[Listing]:
        """Yields the images of `split`, "train" or "test", category by category."""
        for category in range(self.categories):
            for index in range(self.count(split)):
                name = hashlib.blake2b(f"{self.seed}/{split}/{category}/{index}".encode(), digest_size=10).hexdigest()
                yield Listing(split, category, index, self._product(split, category, index), f"{name}.jpg")

    def write(self, output: Path, workers: int = 0) -> None:
        """Draws the set into a temporary folder next to `output` and renames it when it is complete.

        Args:
          output: a folder that does not exist, or is empty.
          workers: number of processes; 0 is one per usable core. The images do not depend on it.

        Raises:
          UsageError: `output` cannot be used.
        """
        _check("workers", workers, 0, 1024, "0 is one per usable core")
        place = output.resolve()
        with _temporary_folder(place, output) as folder:
            draft = Path(folder) / place.name  # a subfolder, so that it has the usual permissions of a new folder
            self._draw(draft, workers)
            for split in MARKETS:
                # Sorted by name, so that neighboring rows have different categories, as in a catalog.
                rows = sorted((listing.filename, listing.folder) for listing in self.listings(split))
                _write_csv(draft / f"{split}.csv", ("filename", "category"), rows)
            names = [(f"{number:02d}", name) for number, name in enumerate(PRODUCTS)]
            _write_csv(draft / "categories.csv", ("category", "name"), names[: self.categories])
            try:
                replace(draft, place)
            except OSError as error:
                raise UsageError(
                    f"--output={output} was created by another program ({error.strerror}). {_ELSEWHERE}"
                ) from None

    def _product(self, split: str, category: int, index: int) -> int:
        if split != "train" or self.categories == 1:
            return category
        random = np.random.default_rng([self.seed, 4, category, index])
        if random.random() >= _MISLABELED_SHARE:
            return category
        return (category + int(random.integers(1, self.categories))) % self.categories

    def _draw(self, folder: Path, workers: int) -> None:
        listings = [listing for split in MARKETS for listing in self.listings(split)]
        for split in MARKETS:
            for category in range(self.categories):
                (folder / split / f"{category:02d}").mkdir(parents=True)
        draw = functools.partial(_draw_listings, folder, self.seed, self.size)
        together = max(_PIXELS_PER_TASK // self.size**2, 1)
        tasks = [listings[start : start + together] for start in range(0, len(listings), together)]
        if not workers:
            small = len(listings) * self.size**2 < _PIXELS_WORTH_PROCESSES
            workers = 1 if small else usable_cores()
        workers = min(workers, len(tasks))
        if workers == 1:
            for task in tasks:
                draw(task)
            return
        with helper_starting(workers):
            executor = concurrent.futures.ProcessPoolExecutor(
                workers, multiprocessing.get_context("forkserver"), initializer=follow_parent
            )
        try:
            with helper_starting(), main_module_hidden():
                drawn = executor.map(draw, tasks)
            for _ in drawn:
                pass
        finally:
            executor.shutdown(cancel_futures=True)


def _draw_listings(folder: Path, seed: int, size: int, listings: list[Listing]) -> None:
    for listing in listings:
        picture = photograph(seed, listing.split, listing.category, listing.product, listing.index, size)
        picture.save(folder / listing.split / listing.folder / listing.filename, quality=_JPEG_QUALITY)


def _temporary_folder(place: Path, output: Path) -> tempfile.TemporaryDirectory:
    """Returns a new folder next to `place`; raises UsageError, naming `output`, if that cannot be used."""
    try:
        if place.exists():
            if not place.is_dir():
                raise UsageError(f"--output={output} is a file. {_ELSEWHERE}")
            if any(place.iterdir()):
                raise UsageError(f"--output={output} is not empty. {_ELSEWHERE}")
            if place.is_mount():
                raise UsageError(f"--output={output} is a mount point. Pass a folder inside it.")
        place.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent)
    except OSError as error:
        raise UsageError(
            f"--output={output} cannot be created: {error.filename}: {error.strerror}. {_ELSEWHERE}"
        ) from None


def _write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _check(flag: str, value: int, least: int, most: int, note: str = "") -> None:
    if not least <= value <= most:
        raise UsageError(f"--{flag}={value} must be from {least} to {most}{note and f' ({note})'}.")
