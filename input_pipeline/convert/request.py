"""What to convert, as the flags of `convoy convert` and the arguments of `convoy.convert` say it.

Request(output="data", origin={"tar": "shards/*.tar", "label_field": "cls"})

`source_kinds` opens the kind of source that is given.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convoy.core.errors import UsageError
from convoy.input_pipeline.convert.options import VALIDATION, Options
from convoy.input_pipeline.convert.sources import Table
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.storage import dataset_path, local_place

Log = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What to convert. Empty texts and None stand for what is not given.

    Attributes:
      output: dataset directory, local or in an object store.
      origin: where the images are from: values of the flags of `source_kinds`, by name.
      table: as in `Options`.
      split: as in `Options`.
      splits: as in `Options`.
      validation_fraction: as in `Options`.
      record_format: as in `Options`.
      skip_missing: whether files that a list of labels names may be missing.
      show_bars: whether TFDS may draw progress bars to standard error.
      others: other fields of `Options` by name.
    """

    output: str
    origin: Mapping[str, Any] = field(default_factory=dict)
    table: Table | None = None
    split: str = ""
    splits: Mapping[str, float] | None = None
    validation_fraction: float | None = None
    record_format: RecordFormat = RecordFormat()
    skip_missing: bool = False
    show_bars: bool = False
    others: Mapping[str, Any] = field(default_factory=dict)

    @property
    def default_split(self) -> str:
        """The split of images that have none of their own."""
        return next(iter(self.splits or [self.split or "train"]))

    @property
    def local_output(self) -> Path:
        """The local path of the dataset, or of what is built of it before it is uploaded."""
        return local_place(dataset_path(self.output))

    @property
    def is_dry_run(self) -> bool:
        """Whether nothing may be written."""
        return bool(self.others.get("dry_run"))

    def has(self, flag: str) -> bool:
        """Returns whether a flag of `origin`, or a field of this class, is given."""
        value = self.origin[flag] if flag in self.origin else getattr(self, flag, None)
        return not (value is None or value is False or (isinstance(value, str) and not value))

    def text(self, flag: str) -> str:
        """Returns the value of a flag of `origin` as text, for messages too; of an iterable of images its type."""
        value = self.origin.get(flag)
        if value is None or isinstance(value, bool):
            return "true" if value else ""
        return os.fspath(value) if isinstance(value, str | os.PathLike) else type(value).__name__

    def refuse(self, source: str, others: Sequence[str], what: str) -> None:
        """Raises a UsageError if one of `others` is given beside the flag `source`; `what` completes the reason."""
        for name in filter(self.has, others):
            flag = f"manifest={self.table.path}" if name == "table" and self.table else name
            raise UsageError(f"--{flag} cannot be combined with --{source}={self.text(source)}, which has {what}")

    def own_splits(self, source: str, splits: Collection[str]) -> dict[str, str]:
        """Returns `Options.split_folders` of a source whose images have these splits, train first.

        Raises:
          UsageError: they contradict the splits of the request.
        """
        own = sorted(splits, key=lambda split: (split != "train", split))
        named = f"its own splits: {', '.join(own)}"
        if own != [self.default_split]:
            self.refuse(source, ("split", "splits"), named)
        if VALIDATION in own and self.validation_fraction:
            self.refuse(source, ("validation_fraction",), named)
        return {split: split for split in own}

    def options(self, images: Path, **found: Any) -> Options:  # noqa: ANN401
        """Returns the options for images; `found` are fields that the source determines."""
        fields = {
            "output": dataset_path(self.output),
            "table": self.table,
            "split": self.split or "train",
            "splits": self.splits,
            "validation_fraction": self.validation_fraction,
            "record_format": self.record_format,
        }
        return Options(images, **{**fields, **self.others, **found})
