"""The description of a TFRecord directory that another tool wrote."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from convoy.input_pipeline.dataset.index import RecordKeys

DATASET_INFO = "dataset_info.json"
FEATURES = "features.json"


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
    """

    name: str
    splits: Mapping[str, tuple[Path, ...]]
    keys: RecordKeys
    class_names: tuple[str, ...] | None
    records_of_shard: Mapping[str, tuple[int, ...]]
    text_key: str = ""
