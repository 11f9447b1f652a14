"""`convoy augment`: writes an HTML page with augmented images of a dataset, as a recipe augments them."""

import contextlib
from pathlib import Path

from absl import flags as absl_flags
from ml_collections import config_flags

from convoy.cli.foreign_records import define_record_flags, record_format
from convoy.cli.train import define_config_flag
from convoy.core.errors import DataError
from convoy.core.files import check_output_file, write_whole
from convoy.core.flags import FlagDefiner
from convoy.input_pipeline.tf_startup import start_tensorflow
from convoy.trainer import config as configs

REQUIRED = ("data", "output")

_SHOWN_IMAGES = 3


def define_flags(flags: absl_flags.FlagValues, arguments: list[str]) -> list[str]:
    """Defines the flags; returns the arguments as `define_config_flag`."""
    define = FlagDefiner(flags)
    define.string("data", None, "dataset directory")
    define_record_flags(flags)
    define.string("split", "train", "split of the images to show")
    define.string("output", None, "HTML file to write")
    return define_config_flag(flags, arguments)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Writes the page."""
    from convoy.input_pipeline.dataset.open import open_dataset

    config, output = flags.config, Path(flags.output)
    configs.check(config)
    check_output_file(output)
    dataset = open_dataset(flags.data, record_format(flags, flags.data))
    split = dataset.split(flags.split)
    start_tensorflow()
    import numpy as np

    from convoy.input_pipeline.reading.decode import Crop
    from convoy.input_pipeline.reading.reader import Reader
    from convoy.input_pipeline.report.augmentation_page import augmentation_page

    crop = Crop(config.image_size, resize=config.resize)
    # The first images of different classes: neighbors in the shards may have the same class.
    _, first_of_class = np.unique(split.strata(), return_index=True)
    chosen = np.sort(first_of_class)[:_SHOWN_IMAGES]
    with contextlib.closing(Reader(split, crop)) as reader:
        images = reader.images(chosen)
    page = augmentation_page(
        images,
        [dataset.label_text(split.name, i) for i in chosen],
        text=config.augment.ops,
        recipe=Path(config_flags.get_config_filename(flags["config"])).stem,
        crop=crop,
        seed=config.seed,
    )
    try:
        write_whole(output, page.encode("utf-8"))
    except OSError as error:
        raise DataError(f"--output={output} cannot be written ({error.strerror}). Pass another path.") from None
    print(f"Wrote {output} ({len(page) / 1e6:.1f} MB).")
