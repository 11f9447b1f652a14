"""The datasets of `convoy bench generalization` (`DATASETS`).

Recipes and rules are chosen on `KEPT_FOR_CHOOSING`; `HELD_OUT` shows once, at the end, what the choices are worth.
"""

import csv
from pathlib import Path

import numpy as np

from benchmarks.clothes import clothes
from benchmarks.digits import write_digits
from benchmarks.image_folders import stratified, write_images
from benchmarks.photos import photos
from benchmarks.stamps import write_stamps
from benchmarks.trained_runs import Runs

DATASETS = {
    "sample": "Drawn products of `convoy sample`: wrong labels in training, other backgrounds and shapes in testing.",
    "tenth": "A tenth of the training images of `sample`, and the same test images.",
    "digits": "Handwritten digits of scikit-learn, 8x8 pixels.",
    "stamps": "Drawings and photographs of Tux Paint, unbalanced and few.",
    "photos": "Photographs of CIFAR-10, 32x32 pixels, balanced.",
    "clothes": "Pictures of Fashion-MNIST, 28x28 pixels, balanced.",
}
HELD_OUT = ("clothes",)
KEPT_FOR_CHOOSING = tuple(name for name in DATASETS if name not in HELD_OUT)
TENTH = 0.1
_STAMP_SIZE = 128  # pixels; no recipe uses more


def make_dataset(name: str, runs: Runs, *, seed: int, archives: Path) -> None:
    """Creates the images and the dataset unless they exist.

    Args:
      name: one of `DATASETS`.
      runs: creates them in its folder.
      seed: selects the images, or the test images.
      archives: the folder with the archives of `photos` and `clothes`.

    Raises:
      UsageError: the images come with a package that is missing.
      ConvoyError: a package is damaged, or a command failed.
    """
    if runs.has_data("test"):
        return
    images = runs.folder / "photos"
    runs.folder.mkdir(parents=True, exist_ok=True)
    if not images.exists():
        _write_images(name, images, runs, seed, archives)
    if name == "stamps":
        words = (f"--images={images}", f"--output={runs.data}", f"--seed={seed}", f"--image_size={_STAMP_SIZE}")
        runs.convoy("convert", *words, "--splits=train:0.6,validation:0.1,test:0.3", "--group_similar")
        return
    if not runs.has_data("train"):
        words = [f"--images={images / 'train'}", f"--output={runs.data}", "--split=train"]
        if name == "tenth":
            table = runs.folder / "tenth.csv"
            _write_tenth(images / "train.csv", table, seed)
            words.append(f"--manifest={table}")
        runs.convoy("convert", *words)
    runs.convoy("convert", f"--images={images / 'test'}", f"--output={runs.data}", "--split=test")


def _write_images(name: str, output: Path, runs: Runs, seed: int, archives: Path) -> None:
    match name:
        case "sample" | "tenth":
            runs.convoy("sample", f"--output={output}", f"--seed={seed}")
        case "digits":
            write_digits(output, seed=seed)
        case "stamps":
            write_stamps(output)
        case "photos":
            write_images(output, photos(archives, seed))
        case "clothes":
            write_images(output, clothes(archives, seed))


def _write_tenth(table: Path, output: Path, seed: int) -> None:
    """Writes the header and a tenth of the rows of each category of a table with columns filename and category."""
    with open(table, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    categories = np.array([row[header.index("category")] for row in rows])
    chosen = np.flatnonzero(stratified(categories, TENTH, seed))
    with open(output, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *(rows[number] for number in chosen)])
