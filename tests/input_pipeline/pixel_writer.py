"""A process that adds images to a pixel store: `python -m tests.input_pipeline.pixel_writer FOLDER ORDER [FLAGS]`.

ORDER seeds the order in which it adds all images. It checks each that is there before. At the end it prints
`{"takes_more": ..., "have": [...]}`.
"""

import argparse
import json
import os
import resource
import signal
import sys
from pathlib import Path

import numpy as np

from convoy.input_pipeline.reading import pixel_store
from convoy.input_pipeline.reading.pixel_store import DiskSpace, PixelStore

IMAGES, KEY, LARGE = 40, "key", 2**30


def image(number: int) -> np.ndarray:
    """Returns an image that only this number has, [height, width, 3] uint8."""
    random = np.random.default_rng(number)
    return random.integers(0, 256, (20 + number % 7, 31, 3), np.uint8)


def store_in(folder: Path, key: str = KEY, limit_bytes: int = LARGE) -> PixelStore:
    """Opens a store for all images."""
    return PixelStore(DiskSpace(folder, limit_bytes), key, IMAGES)


def add_all(store: PixelStore, numbers=range(IMAGES)) -> None:
    """Adds images one by one."""
    for number in numbers:
        store.add(np.array([number]), image(number)[None])


def right(store: PixelStore, numbers=range(IMAGES)) -> list[int]:
    """Returns the numbers of the images that are there; fails if one is not the image that was added."""
    found = {number: read for number in numbers if (read := store.read(number)) is not None}
    for number, read in found.items():
        np.testing.assert_array_equal(read, image(number))
    return list(found)


def _killed_in_write(position: int) -> None:
    """Kills this process in the middle of one of its writes."""
    pwrite, remaining = os.pwrite, iter(range(position, -1, -1))

    def write(descriptor, content, offset):
        if next(remaining) == 0:
            pwrite(descriptor, content[: len(content) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return pwrite(descriptor, content, offset)

    os.pwrite = write


def main() -> None:
    """Adds the images."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("order", type=int)
    parser.add_argument("--killed_in_write", type=int)
    parser.add_argument("--largest_file", type=int)
    parser.add_argument("--spare_nothing", action="store_true")
    flags = parser.parse_args()
    if flags.killed_in_write is not None:
        _killed_in_write(flags.killed_in_write)
    if flags.largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (flags.largest_file, flags.largest_file))
    if flags.spare_nothing:
        pixel_store._SPARED_SHARE = -1e6  # not even what is known to be missing
    store = store_in(flags.folder)
    print("open", flush=True)
    sys.stdin.readline()
    for number in np.random.default_rng(flags.order).permutation(IMAGES).tolist():
        right(store, [number])
        add_all(store, [number])
    print(json.dumps({"takes_more": store.takes_more, "have": right(store)}))


if __name__ == "__main__":
    main()
