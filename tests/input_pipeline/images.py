"""Small synthetic images."""

from pathlib import Path

import numpy as np
from PIL import Image


def pixels(number: int, size: int = 24) -> np.ndarray:
    """Returns [size, size, 3] uint8: a noisy gradient with direction and colors from the seed `number`."""
    random = np.random.default_rng(number)
    ramp = np.linspace(0, 1, size)
    low, high = random.integers(0, 200, (2, 3))
    gradient = np.add.outer(ramp * random.random(), ramp)[..., None] * (high - low) / 2 + low
    return np.clip(gradient + random.integers(0, 40, (size, size, 3)), 0, 255).astype(np.uint8)


def draw(path: Path, number: int, size: int = 24, **save_options) -> Path:
    """Writes image `number` in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(number, size)).save(path, **save_options)
    return path


def draw_classes(folder: Path, classes: dict[str, int], size: int = 24, suffix: str = ".jpg", first: int = 0) -> Path:
    """Writes a number of images per class into a folder with its name; returns `folder`."""
    number = first
    for category, images in classes.items():
        for i in range(images):
            draw(folder / category / f"{category}_{i:03d}{suffix}", number, size)
            number += 1
    return folder
