"""quarantine.jsonl: the images that a conversion leaves out, one JSON object per line, with the reason."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convoy.core.errors import DataError
from convoy.core.files import write_whole
from convoy.core.reading import parsed_json
from convoy.core.remote import RemotePath
from convoy.input_pipeline.convert.marks import Shard
from convoy.input_pipeline.convert.plan import Duplicates
from convoy.input_pipeline.convert.sources import Sources, Table
from convoy.input_pipeline.dataset.open import DUPLICATE, NO_IMAGE, NOT_NAMED, QUARANTINE
from convoy.input_pipeline.dataset.storage import content_of


@dataclass(frozen=True)
class LeftOut:
    """An image that is not in the dataset: one line of quarantine.jsonl."""

    split: str
    path: str
    category: str
    reason: str


def read(output: Path | RemotePath, manifest: Mapping[str, Any] | None) -> list[LeftOut]:
    """Returns the lines of the existing splits of a dataset.

    Args:
      output: the dataset directory.
      manifest: its manifest; None for a new dataset.

    Raises:
      DataError: the file cannot be read.
    """
    path = output / QUARANTINE
    if manifest is None:
        return []
    try:
        left_out = [LeftOut(**parsed_json(line)) for line in content_of(path).splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}). Fix it, or delete it and lose its list") from None
    # A conversion that was killed while publishing may have left lines of its own split.
    return [entry for entry in left_out if entry.split in manifest["splits"]]


def collect(
    found: Sources,
    table: Table | None,
    duplicates: Duplicates,
    leaked: Mapping[str, tuple[str, int]],
    shards: Mapping[str, Sequence[Shard]],
) -> Iterator[LeftOut]:
    """Yields the images that a conversion left out.

    Args:
      found: all sources.
      table: the CSV that names them, if any.
      duplicates: result of `plan.find_duplicates`.
      leaked: (split, number of the image) by name of an image whose bytes an earlier split has.
      shards: shards that were written, by split.
    """
    first = next(iter(shards))
    for name in found.stray:
        yield LeftOut(first, name, "", f"{NOT_NAMED}{table.path.name}" if table else NO_IMAGE)
    for name, category in found.missing:
        yield LeftOut(first, name, category, f"named by {table.path.name}, and missing" if table else "missing")
    for image, reason in (*found.excluded, *found.bad):
        yield LeftOut(image.split or first, image.name, image.category, reason)
    for image, kept in duplicates.dropped:
        yield LeftOut(image.split or first, image.name, image.category, f"{DUPLICATE}{kept.name}")
    for image in duplicates.kept:
        if image.name in leaked:
            split, number = leaked[image.name]
            reason = f"{DUPLICATE}image {number} of split {split}"
            yield LeftOut(image.split or first, image.name, image.category, reason)
    for split, split_shards in shards.items():
        for shard in split_shards:
            for image, reason in shard.bad:
                yield LeftOut(split, image.name, image.category, reason)


def write(directory: Path, left_out: Sequence[LeftOut]) -> None:
    """Writes quarantine.jsonl.

    Raises:
      OSError: it cannot be written.
    """
    lines = "".join(json.dumps(vars(entry)) + "\n" for entry in left_out)
    write_whole(directory / QUARANTINE, lines.encode("ascii"))
