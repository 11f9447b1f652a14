"""Datasets with splits of their own, made of the images of another one: nothing is copied.

    view = make_view(dataset, ("train",), {"train": np.array([0, 2])}, fraction=0.5)
    view.split("train")       # two images of `train`; other splits stay as they are

`folds` and `subsets` choose the images.
"""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from convoy.input_pipeline.dataset.open import Dataset, Split, StoredImages
from convoy.input_pipeline.dataset.source import ChosenImages, OpenedSource


@dataclass(frozen=True)
class View(Dataset):
    """A dataset with splits of its own.

    Attributes:
      whole: the dataset.
      chosen: the numbers of the images in each of these splits, [n] int64.
      numbered: the splits of `whole` whose images are numbered, those of one after those of the other.
      fold: number of the fold that is not trained on, from 1; 0 for all images together, and without folds.
      folds: number of folds; 0 without.
      fraction: share of the training images that it has, in (0, 1); 0 with folds.
    """

    whole: Dataset | None = None
    chosen: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    numbered: Sequence[str] = ()
    fold: int = 0
    folds: int = 0
    fraction: float = 0.0

    @property
    def description(self) -> dict[str, Any]:
        """What dataset.json says about the view, from which `view_of` makes it again."""
        return {"fraction": self.fraction} if self.fraction else {"fold": self.fold, "folds": self.folds}

    @property
    def text(self) -> str:
        """Which part of the dataset it is."""
        if self.fraction:
            return f"{self.fraction:g} of the training images"
        return f"fold {self.fold} of {self.folds} left out"

    def digest(self, split_name: str) -> str:
        """As `Dataset.digest`; that of a split of this view covers all numbered images, and which ones it has."""
        assert self.whole
        if split_name not in self.chosen:
            return self.whole.digest(split_name)
        content = hashlib.sha256(self.chosen[split_name].astype("<i8").tobytes())
        for name in self.numbered:
            content.update(self.whole.digest(name).encode())
        return content.hexdigest()

    def stored_images(self, split_name: str) -> StoredImages:
        """As `Dataset.stored_images`; of a split of this view, all are the numbered images."""
        assert self.whole
        if split_name not in self.chosen:
            return self.whole.stored_images(split_name)
        parts = [self.whole.stored_images(name) for name in self.numbered]
        digests = [part.digest for part in parts]
        content = digests[0] if len(parts) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        return StoredImages(content, self.chosen[split_name], sum(part.total for part in parts))


def make_view(
    whole: Dataset,
    numbered: Sequence[str],
    chosen: Mapping[str, np.ndarray],
    *,
    fold: int = 0,
    folds: int = 0,
    fraction: float = 0.0,
) -> View:
    """Returns a view of a dataset.

    Args:
      whole: the dataset.
      numbered: as in `View`.
      chosen: as in `View`, each ascending.
      fold: as in `View`.
      folds: as in `View`.
      fraction: as in `View`.
    """
    images = _joined([whole.split(name) for name in numbered])
    opened: dict[str, Any] = {name: split for name, split in whole._opened.items()}
    opened |= {name: _part(images, name, numbers) for name, numbers in chosen.items()}
    shared = {one.name: getattr(whole, one.name) for one in fields(Dataset)}
    shared |= {"splits": tuple(sorted(opened)), "_opened": opened}
    return View(**shared, whole=whole, chosen=chosen, numbered=numbered, fold=fold, folds=folds, fraction=fraction)


def _joined(splits: Sequence[Split]) -> Split:
    """Returns the images of several splits of a dataset, one after another."""
    first = splits[0]
    arrays: dict[str, Any] = {
        one.name: np.concatenate([getattr(split, one.name) for split in splits])
        for one in fields(Split)
        if isinstance(getattr(first, one.name), np.ndarray)
    }
    shards = np.cumsum([0, *(len(split.shard_paths) for split in splits[:-1])])
    arrays["shard"] = np.concatenate(
        [split.shard + before for split, before in zip(splits, shards, strict=True)]
    ).astype(first.shard.dtype)
    paths = tuple(path for split in splits for path in split.shard_paths)
    sources = [split.source for split in splits if split.source]
    return replace(first, shard_paths=paths, source=_source(sources, None, "labelled"), **arrays)


def _part(split: Split, name: str, images: np.ndarray) -> Split:
    """Returns some of the images of a split, which are in ascending order."""
    arrays = {
        one.name: value[images] for one in fields(Split) if isinstance(value := getattr(split, one.name), np.ndarray)
    }
    return replace(split, name=name, source=_source([split.source] if split.source else [], images, name), **arrays)


def _source(sources: Sequence[OpenedSource], images: np.ndarray | None, name: str) -> OpenedSource | None:
    if not sources:
        return None
    origin = sources[0].name.rpartition(" (")[0]
    return OpenedSource(f"{origin} ({name})", ChosenImages(sources, images), threading.Lock())
