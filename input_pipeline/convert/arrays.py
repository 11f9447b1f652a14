"""Pixels as images to convert: uint8 arrays, tensors and PIL images, and their labels.

file_of(np.zeros([48, 64, 3], np.uint8))      # b"P6 64 48 255 ...": a PPM file, which costs nothing to write
list(labels_of(np.array([[1], [0]])))         # [1, 0]
"""

from collections.abc import Iterable, Sized
from typing import Any

import numpy as np

from convoy.core.errors import UsageError, failure


def is_array(value: object) -> bool:
    """Returns whether a value has pixels or numbers in NumPy's sense, such as a tensor or a PIL image."""
    kind = type(value)  # the attribute itself would load a PIL image
    return hasattr(kind, "__array__") or hasattr(kind, "__array_interface__")


def file_of(pixels: Any) -> bytes:  # noqa: ANN401 (anything with `__array__`)
    """Returns an image file with these pixels: PPM, or PGM without color.

    Raises:
      ValueError: they are not those of one image, or a PIL image cannot be read; the message says why.
    """
    if type(pixels).__module__.startswith("PIL."):
        from convoy.input_pipeline.images.rgb import as_rgb

        try:
            pixels = as_rgb(pixels)
        except Exception as error:  # of a file that Pillow opened, and that is damaged
            raise ValueError(failure(error)) from None
    array = np.asarray(pixels)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] != 3):
        raise ValueError(f"{_described(array)}, not uint8 [height, width, 3] or [height, width]{_fix(array)}")
    kind = b"P5" if array.ndim == 2 else b"P6"
    return b"%b %d %d 255\n" % (kind, array.shape[1], array.shape[0]) + array.tobytes()


def labels_of(labels: Iterable[object]) -> Iterable[object]:
    """Returns the label of each image, from an array of [n] or [n, 1], or anything iterable.

    Raises:
      UsageError: an array has another shape.
    """
    if not is_array(labels):
        plain = map(_plain, labels)
        return list(plain) if isinstance(labels, Sized) else plain
    array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] > 1:
        raise UsageError(f"--labels: {_described(array)} is more than a label per image. Pass labels.argmax(axis=1)")
    return array.reshape(-1).tolist()


def _plain(label: object) -> object:
    """Returns a label without NumPy's types."""
    if not is_array(label):
        return label
    array = np.asarray(label)
    return array.reshape(-1).tolist()[0] if array.size == 1 else array.tolist()


def _described(array: np.ndarray) -> str:
    return f"{array.dtype} [{', '.join(map(str, array.shape))}]"


def _fix(array: np.ndarray) -> str:
    """Returns how to turn pixels into what is expected, or ""."""
    if array.ndim == 3 and array.shape[-1] != 3 and array.shape[0] in (1, 3):
        return ". Put the channels last: images.transpose(0, 2, 3, 1)"
    if array.dtype != np.uint8:
        return ". Scale pixels to 0-255, then images.astype('uint8')"
    return ""
