"""Draws a small set of product-like images, for a first run and for tests, where no photographs are at hand.

Each image is a pure function of the seed, the split, the category and its number there, so that the set is the same
byte for byte however many processes draw it. Training and test images show the same products in different styles
(`photograph`), and about three in a hundred training images show another category's product, as in real
catalogues. The set appears at its place in one rename, when it is complete.

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
from convoy.core.processes import follow_parent, usable_cores
from convoy.input_pipeline.sample.photograph import MARKETS, photograph
from convoy.input_pipeline.sample.silhouettes import PRODUCTS

MISLABELLED_SHARE = 0.03
JPEG_QUALITY = 90
ELSEWHERE = "Give --output a folder that does not exist yet."
PIXELS_PER_TASK = 48 * 64 * 64
# Below this many pixels drawing is over before other processes have started.
PIXELS_WORTH_PROCESSES = 400 * 64 * 64


@dataclasses.dataclass(frozen=True)
class Listing:
    """One image of the set: where it goes, and what it shows."""

    split: str
    category: int
    index: int
    product: int
    filename: str

    @property
    def folder(self) -> str:
        """The category as it stands in folder names and CSV files: `03`."""
        return f"{self.category:02d}"


@dataclasses.dataclass(frozen=True)
class SampleSet:
    """A set of images, as far as they are determined without drawing one.

    Attributes:
      categories: number of categories, 1 to 42; the first so many of `PRODUCTS`.
      per_category: training images a category, 1 to 10,000.
      test_per_category: test images a category, 0 to 10,000; 0 stands for half of `per_category`, at least 1.
      size: width and height in pixels, 16 to 1024.
      seed: 0 to 2**63 - 1.
    """

    categories: int = len(PRODUCTS)
    per_category: int = 60
    test_per_category: int = 0
    size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UsageError for a field outside its range."""
        _check("categories", self.categories, 1, len(PRODUCTS), f"there are {len(PRODUCTS)} products to draw")
        _check("per_category", self.per_category, 1, 10_000)
        _check("test_per_category", self.test_per_category, 0, 10_000, "0 draws half as many as for training")
        _check("size", self.size, 16, 1024, "pixels")
        _check("seed", self.seed, 0, 2**63 - 1)

    def count(self, split: str) -> int:
        """Returns the number of images a category has in `split`, "train" or "test"."""
        return self.per_category if split == "train" else self.test_per_category or max(self.per_category // 2, 1)

    def listings(self, split: str) -> Iterator[Listing]:
        """Yields every image of `split`, "train" or "test", category by category."""
        for category in range(self.categories):
            for index in range(self.count(split)):
                name = hashlib.blake2b(f"{self.seed}/{split}/{category}/{index}".encode(), digest_size=10).hexdigest()
                yield Listing(split, category, index, self._product(split, category, index), f"{name}.jpg")

    def write(self, output: Path, workers: int = 0) -> None:
        """Draws the set into a folder beside `output` and renames it when it is complete.

        Args:
          output: a folder that does not exist yet, or is empty.
          workers: number of processes that draw, 0 for one a usable core; the images are the same for any number.

        Raises:
          UsageError: `output` cannot be taken.
        """
        _check("workers", workers, 0, 1024, "0 takes one a usable core")
        place = output.resolve()
        with _folder_beside(place, output) as folder:
            draft = Path(folder) / place.name  # inside, so that it gets the usual permissions of a new folder
            self._draw(draft, workers)
            for split in MARKETS:
                # By name, as a catalogue would be: neighbouring rows are of different categories.
                rows = sorted((listing.filename, listing.folder) for listing in self.listings(split))
                _write_csv(draft / f"{split}.csv", ("filename", "category"), rows)
            names = [(f"{number:02d}", name) for number, name in enumerate(PRODUCTS)]
            _write_csv(draft / "categories.csv", ("category", "name"), names[: self.categories])
            try:
                draft.rename(place)
            except OSError as error:
                raise UsageError(f"--output={output} was taken meanwhile ({error.strerror}). {ELSEWHERE}") from None

    def _product(self, split: str, category: int, index: int) -> int:
        if split != "train" or self.categories == 1:
            return category
        random = np.random.default_rng([self.seed, 4, category, index])
        if random.random() >= MISLABELLED_SHARE:
            return category
        return (category + int(random.integers(1, self.categories))) % self.categories

    def _draw(self, folder: Path, workers: int) -> None:
        listings = [listing for split in MARKETS for listing in self.listings(split)]
        for split in MARKETS:
            for category in range(self.categories):
                (folder / split / f"{category:02d}").mkdir(parents=True)
        draw = functools.partial(_draw_listings, folder, self.seed, self.size)
        together = max(PIXELS_PER_TASK // self.size**2, 1)
        tasks = [listings[start : start + together] for start in range(0, len(listings), together)]
        if not workers:
            small = len(listings) * self.size**2 < PIXELS_WORTH_PROCESSES
            workers = 1 if small else usable_cores()
        workers = min(workers, len(tasks))
        if workers == 1:
            for task in tasks:
                draw(task)
            return
        executor = concurrent.futures.ProcessPoolExecutor(
            workers, multiprocessing.get_context("forkserver"), initializer=follow_parent
        )
        try:
            for _ in executor.map(draw, tasks):
                pass
        finally:
            executor.shutdown(cancel_futures=True)


def _draw_listings(folder: Path, seed: int, size: int, listings: list[Listing]) -> None:
    for listing in listings:
        picture = photograph(seed, listing.split, listing.category, listing.product, listing.index, size)
        picture.save(folder / listing.split / listing.folder / listing.filename, quality=JPEG_QUALITY)


def _folder_beside(place: Path, output: Path) -> tempfile.TemporaryDirectory:
    """Returns a new folder beside `place`; raises UsageError, naming `output` as typed, where that can't be taken."""
    try:
        if place.exists():
            if not place.is_dir():
                raise UsageError(f"--output={output} is a file. {ELSEWHERE}")
            if any(place.iterdir()):
                raise UsageError(f"--output={output} is not empty, and is left as it is. {ELSEWHERE}")
            if place.is_mount():
                raise UsageError(
                    f"--output={output} is a mount point, which cannot be replaced. Name a folder inside it."
                )
        place.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent)
    except OSError as error:
        raise UsageError(f"--output={output} cannot be made: {error.filename}: {error.strerror}. {ELSEWHERE}") from None


def _write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _check(flag: str, value: int, least: int, most: int, note: str = "") -> None:
    if not least <= value <= most:
        raise UsageError(f"--{flag}={value} must be from {least} to {most}{note and f' ({note})'}.")
