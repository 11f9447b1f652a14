"""The handwritten digits of scikit-learn as folders of images: real handwriting without a download.

    python -m benchmarks.digits digits       # digits/train/{0..9}/*.png and digits/test/{0..9}/*.png

1,797 grayscale images of 8x8 pixels (Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten Digits", of
which scikit-learn ships the test part). A fifth of each digit, drawn with a fixed seed, is held out for testing.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

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
    from PIL import Image

    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError(
            "the digits come with scikit-learn: `pip install scikit-learn`, or install convoy-train[bench]."
        ) from None
    if output.exists():
        raise UsageError(f"{output} exists already. Pass a new folder.")
    digits = load_digits()
    for_test = stratified(digits.target, TEST_SHARE, seed)
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.absolute().parent) as scratch:
        draft = Path(scratch) / output.name  # a subfolder, so that it gets the usual permissions of a new folder
        for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            folder = draft / ("test" if for_test[number] else "train") / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            grey = np.round(pixels * (255 / _BRIGHTEST)).astype(np.uint8)  # [8, 8]
            Image.fromarray(grey).save(folder / f"{number:04d}.png")
        draft.rename(output)


def stratified(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Returns a random selection, [n] bool, with the same share of each label, rounded.

    Args:
      labels: [n] integers.
      share: in [0, 1].
      seed: seed of the selection.
    """
    random, chosen = np.random.default_rng(seed), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        chosen[members[: round(share * len(members))]] = True
    return chosen


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.digits FOLDER")
    try:
        write_digits(Path(sys.argv[1]))
    except ConvoyError as error:
        sys.exit(f"convoy: {error}")
