"""What tells classes apart in a sample of images: orientation, color or shape. NumPy only, and deterministic.

    mirror_test(small, labels)       # Mirror(accuracy=0.97, mirrored=0.45, chance=0.1): digits
    color_test(small, labels)        # Color(colors=0.2, grays=0.35, chance=0.1): photographs

A kernel ridge classifier, which has a closed form, is trained on three quarters of the sample and tried on the rest,
four times. On images of 16 x 16 pixels it is far from a trained network, but what it learns of a class is lost when
mirroring or another hue changes the class.
"""

from typing import NamedTuple

import numpy as np

SIDE = 16  # pixels of the small images
_PARTS = 4
_RIDGE = 0.1  # regularization, as a share of the kernel's diagonal
_HUES, _SATURATIONS = 12, 3
_GRAY_SPREAD = 8.0  # largest mean difference between the channels of a gray image, of 255


class Mirror(NamedTuple):
    """Accuracies of a classifier of gray images, trained on images as they are.

    Attributes:
      accuracy: on other images as they are, in [0, 1].
      mirrored: on the same, mirrored.
      chance: that of guessing the most common class.
      number: images.
    """

    accuracy: float
    mirrored: float
    chance: float
    number: int


class Color(NamedTuple):
    """Accuracies of classifiers of other images than those that they were trained on.

    Attributes:
      colors: of one that sees only how often each hue and saturation occurs, in [0, 1].
      grays: of one that sees only the gray image.
      chance: that of guessing the most common class.
      number: images.
    """

    colors: float
    grays: float
    chance: float
    number: int


def mirror_test(small: np.ndarray, labels: np.ndarray) -> Mirror:
    """Returns how well a classifier of images recognizes them mirrored.

    Args:
      small: [n, SIDE, SIDE, 3] uint8.
      labels: [n] integers.
    """
    gray = _gray(small)
    as_is, mirrored = _shapes(gray), _shapes(gray[:, :, ::-1])
    accuracy, of_mirrored = _accuracies(as_is, (as_is, mirrored), labels)
    return Mirror(accuracy, of_mirrored, _chance(labels), len(labels))


def color_test(small: np.ndarray, labels: np.ndarray) -> Color:
    """Returns how well a classifier of colors recognizes images, and one of shapes. Arguments as `mirror_test`."""
    colors, shapes = _histograms(small), _shapes(_gray(small))
    (of_colors,) = _accuracies(colors, (colors,), labels)
    (of_shapes,) = _accuracies(shapes, (shapes,), labels)
    return Color(of_colors, of_shapes, _chance(labels), len(labels))


def are_gray(small: np.ndarray) -> bool:
    """Returns whether nearly all images, [n, height, width, 3] uint8, are gray."""
    channels = small.astype(np.float32)
    spread = (channels.max(-1) - channels.min(-1)).mean((1, 2))
    return bool(np.mean(spread < _GRAY_SPREAD) > 0.95)


def _gray(small: np.ndarray) -> np.ndarray:
    return small.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) / 255


def _shapes(gray: np.ndarray) -> np.ndarray:
    """Returns pixels and strengths of edges, normalized per image, [n, features]."""
    across, down = np.diff(gray, axis=2), np.diff(gray, axis=1)
    parts = [_normalized(gray), _normalized(np.abs(across)), _normalized(np.abs(down))]
    return np.concatenate(parts, 1)


def _normalized(images: np.ndarray) -> np.ndarray:
    """Returns images as rows of mean 0 and length 1; a constant one as zeros."""
    rows = images.reshape(len(images), -1)
    rows = rows - rows.mean(1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def _histograms(small: np.ndarray) -> np.ndarray:
    """Returns the square roots of the shares of hues by saturation, and of gray, [n, features]."""
    rgb = small.reshape(len(small), -1, 3).astype(np.float64) / 255
    most, least = rgb.max(-1), rgb.min(-1)
    chroma = most - least
    red, green, blue = np.moveaxis(rgb, -1, 0)
    safe = np.maximum(chroma, 1e-9)
    hue = np.where(
        most == red,
        (green - blue) / safe % 6,
        np.where(most == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    hue_bin = np.minimum((hue * _HUES / 6).astype(int), _HUES - 1)
    saturation = chroma / np.maximum(most, 1e-9)
    saturation_bin = np.minimum((saturation * _SATURATIONS).astype(int), _SATURATIONS - 1)
    is_gray = chroma < 0.1
    cell = np.where(is_gray, _HUES * _SATURATIONS, hue_bin * _SATURATIONS + saturation_bin)
    cells = _HUES * _SATURATIONS + 1
    counts = np.stack([np.bincount(row, minlength=cells) for row in cell])
    return np.sqrt(counts / cell.shape[1])


def _accuracies(features: np.ndarray, tried: tuple[np.ndarray, ...], labels: np.ndarray) -> list[float]:
    """Returns the share of right predictions for each array of features, by models trained on other images.

    Args:
      features: of the images that models are trained on, [n, features].
      tried: features of the same images to predict, each [n, features].
      labels: [n] integers.
    """
    classes, targets = np.unique(labels, return_inverse=True)
    part = _parts(targets)
    scale = np.mean(_distances(features, features)) or 1.0
    right = np.zeros(len(tried))
    for number in range(_PARTS):
        known, held_out = part != number, part == number
        if not known.any() or not held_out.any():
            continue
        kernel = np.exp(-_distances(features[known], features[known]) / scale)
        one_hot = np.eye(len(classes))[targets[known]]
        mean = one_hot.mean(0)
        weights = np.linalg.solve(kernel + _RIDGE * np.eye(len(kernel)), one_hot - mean)
        for place, each in enumerate(tried):
            scores = mean + np.exp(-_distances(each[held_out], features[known]) / scale) @ weights
            # Rounded, so that the last bits, which differ between machines, do not decide between equal scores.
            right[place] += np.sum(np.argmax(np.round(scores, 9), 1) == targets[held_out])
    return [float(count / len(labels)) for count in right]


def _distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns squared distances between rows, [n, m]."""
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1)[None] - 2 * first @ second.T
    return np.maximum(squares, 0)


def _parts(targets: np.ndarray) -> np.ndarray:
    """Returns the part of each image, [n] in [0, _PARTS): the images of a class take turns."""
    part = np.empty(len(targets), int)
    for label in np.unique(targets):
        members = np.flatnonzero(targets == label)
        part[members] = (np.arange(len(members)) + label) % _PARTS
    return part


def _chance(labels: np.ndarray) -> float:
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))
