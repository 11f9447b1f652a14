"""Patterns of cloth, walls and floors: fields in [0, 1] that mix two colors.

A pattern is a function of a random generator and the picture's size, and returns a [size, size] float32 array. Lengths
are relative to the picture, so that a pattern looks the same at 32 and at 512 pixels.
"""

import functools
from collections.abc import Callable

import numpy as np
from PIL import Image

Pattern = Callable[[np.random.Generator, int], np.ndarray]


@functools.lru_cache(maxsize=4)
def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y of the pixel centers, each [size, size] float32 in [0, 1]."""
    centers = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(centers, centers)
    return x, y


def cloud(random: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Returns smooth noise in [0, 1] with about `cells` light and dark spots along each side."""
    coarse = Image.fromarray(random.random((cells + 2, cells + 2), dtype=np.float32))
    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC, box=(0.5, 0.5, cells + 1.5, cells + 1.5)))
    return smooth.clip(0, 1)


def plain(random: np.random.Generator, size: int) -> np.ndarray:
    """One color."""
    return np.zeros((size, size), np.float32)


def gradient(random: np.random.Generator, size: int) -> np.ndarray:
    """A linear gradient in any direction."""
    along, _ = _turned(random, size)
    return (along + 0.5).clip(0, 1)


def glow(random: np.random.Generator, size: int) -> np.ndarray:
    """A radial gradient."""
    x, y = grid(size)
    return (np.hypot(x - random.uniform(0.3, 0.7), y - random.uniform(0.2, 0.7)) * 1.4).clip(0, 1)


def stripes(random: np.random.Generator, size: int) -> np.ndarray:
    """Parallel stripes in any direction."""
    along, _ = _turned(random, size)
    return _edge(np.abs(_repeat(along * random.uniform(4, 9) + random.random())) - random.uniform(0.15, 0.35), size)


def pinstripes(random: np.random.Generator, size: int) -> np.ndarray:
    """Thin vertical or horizontal lines."""
    along = grid(size)[random.integers(2)]
    return _edge(np.abs(_repeat(along * random.uniform(7, 11) + random.random())) - 0.32, size)


def dots(random: np.random.Generator, size: int) -> np.ndarray:
    """Discs on a rotated grid."""
    along, across = _turned(random, size)
    count = random.uniform(4, 8)
    return _edge(random.uniform(0.22, 0.36) - np.hypot(_repeat(along * count), _repeat(across * count)), size)


def checks(random: np.random.Generator, size: int) -> np.ndarray:
    """A rotated chessboard."""
    along, across = _turned(random, size)
    count = random.uniform(2.5, 5)
    return _edge(_repeat(along * count) * _repeat(across * count) * 4, size)


def tartan(random: np.random.Generator, size: int) -> np.ndarray:
    """Crossing translucent bands."""
    along, across = _turned(random, size)
    count, width = random.uniform(3, 5), random.uniform(0.1, 0.25)
    bands = [_edge(width - np.abs(_repeat(axis * count)), size) for axis in (along, across)]
    return 0.5 * (bands[0] + bands[1])


def zigzag(random: np.random.Generator, size: int) -> np.ndarray:
    """Chevrons."""
    along, across = _turned(random, size)
    count = random.uniform(3, 6)
    return _edge(np.abs(_repeat(along * count + np.abs(_repeat(across * count * 0.8)))) - 0.25, size)


def mottle(random: np.random.Generator, size: int) -> np.ndarray:
    """Blotches of two sizes, like stone, felt or leather."""
    return 0.6 * cloud(random, size, int(random.integers(3, 6))) + 0.4 * cloud(
        random, size, int(random.integers(9, 15))
    )


def speckle(random: np.random.Generator, size: int) -> np.ndarray:
    """Fine grain, like paper or concrete."""
    return cloud(random, size, 24) ** 2


def planks(random: np.random.Generator, size: int) -> np.ndarray:
    """Boards of different shades with dark joints."""
    x, y = grid(size)
    along, across = (x, y) if random.random() < 0.5 else (y, x)
    count = random.uniform(3, 6)
    board = np.floor(along * count).astype(np.int64)
    shade = random.random(8, dtype=np.float32)[board] * 0.6
    joint = _edge(0.06 - np.abs(_repeat(along * count + 0.5)), size)
    grain = 0.15 * np.sin(across * 9 + shade * 40 + along * 40)
    return (shade + grain + joint).clip(0, 1)


def bricks(random: np.random.Generator, size: int) -> np.ndarray:
    """Rows of bricks, every second one shifted by half a brick."""
    x, y = grid(size)
    rows = random.uniform(6, 9)
    row = y * rows
    column = x * rows * 0.5 + 0.5 * (np.floor(row) % 2)
    joint = np.minimum(0.5 - np.abs(_repeat(row)), (0.5 - np.abs(_repeat(column))) * 2)
    return _edge(0.12 - joint, size) + 0.0


def tiles(random: np.random.Generator, size: int) -> np.ndarray:
    """Square tiles with joints."""
    along, across = grid(size)
    count, shift = random.uniform(3, 6), random.random()
    joint = np.minimum(0.5 - np.abs(_repeat(along * count + shift)), 0.5 - np.abs(_repeat(across * count + shift)))
    return _edge(0.07 - joint, size)


def room(random: np.random.Generator, size: int) -> np.ndarray:
    """A wall above, a floor below."""
    _, y = grid(size)
    level = random.uniform(0.55, 0.8)
    return _edge((y - level) * 3, size) * (0.7 + 0.3 * y)


def corner(random: np.random.Generator, size: int) -> np.ndarray:
    """The corner of a room: two walls in different light, and a floor."""
    x, y = grid(size)
    middle, level, slope = random.uniform(0.2, 0.8), random.uniform(0.6, 0.8), random.uniform(0.2, 0.5)
    floor = _edge((y - level - slope * np.abs(x - middle)) * 3, size)
    return np.maximum(floor, 0.4 * _edge((x - middle) * 3, size))


def bokeh(random: np.random.Generator, size: int) -> np.ndarray:
    """Lights out of focus."""
    x, y = grid(size)
    field = np.zeros((size, size), np.float32)
    for center_x, center_y, radius, strength in random.random((7, 4), dtype=np.float32):
        disc = ((0.08 + 0.14 * radius - np.hypot(x - center_x, y - center_y)) * 20 + 0.5).clip(0, 1)
        field += disc * (0.3 + 0.5 * strength)
    return field.clip(0, 1)


def drapery(random: np.random.Generator, size: int) -> np.ndarray:
    """Folds of a cloth."""
    along, across = _turned(random, size)
    bend = 0.25 * np.sin(across * random.uniform(3, 8) + random.uniform(0, 6))
    return 0.5 + 0.5 * np.sin((along + bend) * random.uniform(14, 26))


def _turned(random: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = grid(size)
    angle = random.uniform(0, np.pi)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return (x - 0.5) * cosine + (y - 0.5) * sine, (y - 0.5) * cosine - (x - 0.5) * sine


def _repeat(distance: np.ndarray) -> np.ndarray:
    """Returns the signed distance to the nearest integer, in [-0.5, 0.5]."""
    return distance - np.round(distance)


def _edge(distance: np.ndarray, size: int) -> np.ndarray:
    """Returns 1 where `distance` is positive and 0 where it is negative, with a transition of about one pixel."""
    return (distance * (size / 8) + 0.5).clip(0, 1)
