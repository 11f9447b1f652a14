"""`convoy sample`: draws a small set of product-like images to try the other commands with."""

import time
from pathlib import Path

from absl import flags as absl_flags

from convoy.core.flags import FlagDefiner
from convoy.core.processes import terminable
from convoy.core.text import counted

REQUIRED = ("output",)


def define_flags(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Defines the command's flags."""
    define = FlagDefiner(flags)
    define.string("output", None, "folder to create; it must not exist, or be empty")
    define.integer("categories", 42, "number of product categories, 1 to 42")
    define.integer("per_category", 60, "training images per category, 1 to 10000")
    define.integer("test_per_category", 0, "test images per category; 0: half as many as for training")
    define.integer("size", 64, "width and height of an image in pixels, 16 to 1024")
    define.integer("seed", 0, "random seed; equal seeds give byte-identical sets")
    define.integer("workers", 0, "number of processes; 0: one per usable core; the images do not depend on it")


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Draws the set and prints the next commands.

    Raises:
      UsageError: a flag is out of range, or the output folder cannot be used.
    """
    from convoy.input_pipeline.sample.sample_set import SampleSet

    output = Path(flags.output)
    images = SampleSet(
        categories=flags.categories,
        per_category=flags.per_category,
        test_per_category=flags.test_per_category,
        size=flags.size,
        seed=flags.seed,
    )
    started = time.monotonic()
    with terminable():  # so that the unfinished folder is removed
        images.write(output, workers=flags.workers)
    seconds = time.monotonic() - started
    train, test = (images.categories * images.count(split) for split in ("train", "test"))
    categories = counted(images.categories, "category", "categories")
    print(
        f"{output}: {train:,} training and {test:,} test images of {categories}, "
        f"{images.size}x{images.size} pixels, drawn in {seconds:.1f} s ({(train + test) / seconds:,.0f} images/s)."
    )
    print("Next:")
    print(f"  convoy convert --images={output / 'train'} --output=data")
    print(f"  convoy convert --images={output / 'test'} --output=data --split=test")
