"""Faults in a dataset directory, and the input and output of the check of one shard."""

from dataclasses import dataclass

import numpy as np

from convoy.core.finding import Finding
from convoy.input_pipeline.dataset.index import RecordKeys

# A fault's section: the records themselves, the index that locates them, or the files that describe the dataset.
SHARD, INDEX, DESCRIPTION = "shard", "index", "description"


@dataclass(frozen=True)
class Fault(Finding):
    """A fault in a file of a dataset. Its section is `SHARD`, `INDEX` or `DESCRIPTION`.

    Attributes:
      split: the split it belongs to; "" if it affects all.
      file: name of the file in the directory.
      offset: byte offset of the record in its shard; None if the fault is not in a record.
      record: number of the record in its split, from 0; None if the fault is not in a record or the number is unknown.
    """

    split: str = ""
    file: str = ""
    offset: int | None = None
    record: int | None = None

    def line(self) -> str:
        """Returns the fault as one line of text."""
        place = "" if self.offset is None else f" offset {self.offset}"
        place += "" if self.record is None else f" (record {self.record} of {self.split})"
        return f"{self.file}{place}: {self.text}. {self.fix}."


@dataclass(frozen=True)
class ShardTask:
    """A shard to check.

    Attributes:
      split: name of its split.
      path: path of the file.
      name: name of the file in faults.
      first_record: number of its first record in the split; None if unknown.
      keys: feature keys of its records.
      fix: what to do about a damaged record.
      size: expected size, bytes; None if not stated.
      sha256: expected checksum; "" if not stated.
      records: expected number of records; None if not stated.
      num_classes: number of classes; None if not stated.
      class_names: class names that the records must repeat; empty if they need not.
      multi_label: whether a record has any number of labels.
      is_ours: whether Convoy wrote it: it has an .idx file, and its records state format, size and channels.
      index: `offset`, `length`, `label` and `crc` of its records according to the index, each [num_records], and
        `num_labels` of several labels per record; None without an index.
    """

    split: str
    path: str
    name: str
    first_record: int | None
    keys: RecordKeys
    fix: str
    size: int | None = None
    sha256: str = ""
    records: int | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] = ()
    is_ours: bool = False
    multi_label: bool = False
    index: dict[str, np.ndarray] | None = None


@dataclass(frozen=True)
class ShardReport:
    """Result of a check: the shard's size in bytes, an index of its readable records, its faults, and in a shard that
    Convoy did not write the number of turned or transparent images (`image.is_turned_or_transparent`).
    """

    size: int
    records: dict[str, np.ndarray]
    faults: tuple[Fault, ...]
    viewed: int = 0
