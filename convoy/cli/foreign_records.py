"""The flags that say how to read records of other tools."""

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags as absl_flags

from convoy.core.errors import UsageError
from convoy.core.flags import FlagDefiner

if TYPE_CHECKING:
    from convoy.input_pipeline.dataset.layout import RecordFormat

_FLAGS = ("image_key", "label_key", "class_names_file")


def define_record_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags."""
    define = FlagDefiner(flags)
    define.string("image_key", "", "Feature of the encoded image in TFRecords of other tools. Default: the usual ones.")
    define.string("label_key", "", "Feature of the label in TFRecords of other tools. Default: the usual ones.")
    define.string("class_names_file", "", "Text file with the class of each label, one per line, for such records.")


def record_format(flags: absl_flags.FlagValues, data: str | None) -> "RecordFormat":
    """Returns what the flags say about the records in `data`.

    Raises:
      UsageError: `data` is from `convoy convert`, which states all of it.
      DataError: the file of class names cannot be used.
    """
    from convoy.input_pipeline.dataset.layout import RecordFormat, read_class_names
    from convoy.input_pipeline.dataset.open import MANIFEST
    from convoy.input_pipeline.dataset.source import source_name
    from convoy.input_pipeline.dataset.storage import is_remote

    given = [name for name in _FLAGS if flags[name].value]
    if given and data and (is_remote(data) or (Path(data) / MANIFEST).is_file()):
        raise UsageError(
            f"--{given[0]}={flags[given[0]].value}: is for TFRecords of other tools, and {data} has a {MANIFEST} of "
            f"`convoy convert`. Omit it"
        )
    if given and source_name(data):
        raise UsageError(f"--{given[0]}={flags[given[0]].value}: is for TFRecords, and {data} is a source. Omit it")
    names = read_class_names(Path(flags.class_names_file)) if flags.class_names_file else ()
    return RecordFormat(flags.image_key, flags.label_key, names)
