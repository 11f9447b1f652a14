"""The description of a TFRecord directory that another tool wrote, and what the user says about its records."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convoy.core.errors import DataError
from convoy.input_pipeline.dataset.index import RecordKeys

DATASET_INFO = "dataset_info.json"
FEATURES = "features.json"
COPY = "copy the file again from where it came from"
PREPARE = "copy the file again, or prepare the dataset again"


@dataclass(frozen=True)
class RecordFormat:
    """How to read records of other tools. What is empty is found out.

    Attributes:
      image_key: feature name of the encoded image.
      label_key: feature name of the label.
      class_names: class names in the order of the labels; empty if records or metadata name the classes.
      first_label: the label of the first class, 0 or 1.
    """

    image_key: str = ""
    label_key: str = ""
    class_names: tuple[str, ...] = ()
    first_label: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Returns the format as JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RecordFormat":
        """Returns the format from the result of `as_dict`, or that of earlier versions from nothing."""
        if not values:
            return cls(first_label=0)
        return cls(**{**values, "class_names": tuple(values["class_names"])})

    def over(self, other: "RecordFormat") -> "RecordFormat":
        """Returns the format with what is empty taken from another one."""
        if self.class_names:  # they determine the first label
            return RecordFormat(self.image_key or other.image_key, self.label_key or other.label_key, self.class_names)
        return RecordFormat(
            self.image_key or other.image_key,
            self.label_key or other.label_key,
            other.class_names,
            other.first_label if self.first_label is None else self.first_label,
        )


def read_class_names(path: Path) -> tuple[str, ...]:
    """Returns the class names in a text file, one per line.

    Raises:
      DataError: the file cannot be read, or a name is empty or repeated.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(f"--class_names_file={path} cannot be read ({reason})") from None
    for line, name in enumerate(names, 1):
        if not name:
            raise DataError(f"--class_names_file={path}: line {line} is empty. Write one class name per line")
        if name in names[: line - 1]:
            raise DataError(f"--class_names_file={path}: line {line} repeats {name!r}. Give each class its own name")
    return tuple(names)


@dataclass(frozen=True)
class Layout:
    """The description of an external dataset directory.

    Attributes:
      name: dataset name.
      splits: shards of each split, in order.
      keys: feature names of the records.
      class_names: None if they come from the records.
      records_of_shard: expected number of records of each shard by split; empty if unknown.
      text_key: feature name of the class text; "" if there is none.
      fix: what to do about a damaged file.
    """

    name: str
    splits: Mapping[str, tuple[Path, ...]]
    keys: RecordKeys
    class_names: tuple[str, ...] | None
    records_of_shard: Mapping[str, tuple[int, ...]]
    text_key: str = ""
    fix: str = COPY
