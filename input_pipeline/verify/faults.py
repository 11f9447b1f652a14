"""What can be wrong with a dataset directory, and what a check of one shard is given and gives."""

from dataclasses import dataclass

import numpy as np

from convoy.input_pipeline.dataset.index import RecordKeys

# What a fault lies in: the records themselves, what only repeats where they are, or what describes the whole.
SHARD, INDEX, DESCRIPTION = "shard", "index", "description"


@dataclass(frozen=True)
class Fault:
    """Something wrong.

    Attributes:
      kind: `SHARD`, `INDEX` or `DESCRIPTION`.
      split: the split it belongs to; "" where it belongs to all.
      file: its name in the directory.
      problem: what is wrong.
      fix: what to do about it.
      offset: of the record in its shard, bytes; None where it is no record's.
      record: number of the record in its split; None where it is no record's, or not known.
    """

    kind: str
    split: str
    file: str
    problem: str
    fix: str
    offset: int | None = None
    record: int | None = None

    def line(self) -> str:
        """Returns the fault in one line."""
        place = "" if self.offset is None else f" offset {self.offset}"
        place += "" if self.record is None else f" (record {self.record} of {self.split})"
        return f"{self.file}{place}: {self.problem}. {self.fix}"


@dataclass(frozen=True)
class ShardTask:
    """A shard to check.

    Attributes:
      split: it is of.
      path: of the file.
      name: as faults are to call it.
      first_record: number of its first record in the split; None where nobody knows.
      keys: of its records.
      fix: what to do where a record is damaged.
      size: it should have, bytes; None where nobody says.
      sha256: it should have; "" where nobody says.
      records: it should hold; None where nobody says.
      num_classes: how many there are; None where the records alone tell.
      class_names: that should stand beside the labels; empty where they need not.
      is_ours: whether Convoy wrote it: with an .idx beside it, and records that say format, size and channels.
      index: `offset`, `length`, `label` and `crc` of its records as the index has them; None without an index.
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
    index: dict[str, np.ndarray] | None = None


@dataclass(frozen=True)
class ShardReport:
    """What was found in a shard: its size in bytes, its readable records as an index has them, and its faults."""

    size: int
    records: dict[str, np.ndarray]
    faults: tuple[Fault, ...]
