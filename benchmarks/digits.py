"""The handwritten digits of scikit-learn as folders of images: real handwriting without a download.

    python -m benchmarks.digits digits       # digits/train/{0..9}/*.png and digits/test/{0..9}/*.png

1,797 grayscale images of 8x8 pixels (Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten Digits", of
which scikit-learn ships the test part). A fifth of each digit, drawn with a fixed seed, is held out for testing.
"""

import sys
from pathlib import Path

import numpy as np

from benchmarks.image_folders import stratified, write_images
from convoy.core.errors import ConvoyError, UsageError

TEST_SHARE = 0.2
_BRIGHTEST = 16  # value of a white pixel


def write_digits(output: Path, *, seed: int = 0) -> None:
    """Writes the images; the folder appears when it is complete.

    Args:
      output: a folder that does not exist yet.
      seed: selects the test images.

    Raises:
      UsageError: `output` exists, or scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError(
            "the digits come with scikit-learn: `pip install scikit-learn`, or install convoy-train[bench]."
        ) from None
    digits = load_digits()
    for_test = stratified(digits.target, TEST_SHARE, seed)
    grey = np.round(digits.images * (255 / _BRIGHTEST)).astype(np.uint8)  # [n, 8, 8]
    names = (
        f"{'test' if test else 'train'}/{label}/{number:04d}.png"
        for number, (test, label) in enumerate(zip(for_test, digits.target, strict=True))
    )
    write_images(output, zip(names, grey, strict=True))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.digits FOLDER")
    try:
        write_digits(Path(sys.argv[1]))
    except ConvoyError as error:
        sys.exit(f"convoy: {error}")
