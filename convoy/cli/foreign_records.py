"""The flags that say how to read records of other tools."""

from typing import TYPE_CHECKING

from absl import flags as absl_flags

from convoy.core.flags import FlagDefiner

if TYPE_CHECKING:
    from convoy.input_pipeline.dataset.layout import RecordFormat


def define_record_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags."""
    define = FlagDefiner(flags)
    define.string("image_key", "", "feature of the encoded image in TFRecords of other tools; default: the usual names")
    define.string("label_key", "", "feature of the label in TFRecords of other tools; default: the usual names")
    define.string("class_names_file", "", "text file with the class of each label number, one per line")


def record_format(flags: absl_flags.FlagValues, data: str | None) -> "RecordFormat":
    """Returns what the flags say about the records in `data`.

    Raises:
      UsageError: `data` is from `convoy convert`, which states all of it.
      DataError: the file of class names cannot be used.
    """
    from convoy.input_pipeline.dataset.open import stated_format

    return stated_format(data, flags.image_key, flags.label_key, flags.class_names_file)
