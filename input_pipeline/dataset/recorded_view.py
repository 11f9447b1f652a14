"""The part of a dataset that a run was trained on, made again from its dataset.json."""

from collections.abc import Mapping
from typing import Any

from convoy.input_pipeline.dataset.folds import TooFewImagesError, make_folds
from convoy.input_pipeline.dataset.open import Dataset
from convoy.input_pipeline.dataset.subsets import training_subset


def view_of(dataset: Dataset, description: Mapping[str, Any]) -> Dataset:
    """Returns a dataset as the run sees it whose dataset.json has this content; one that cannot be its own as it is."""
    fold, folds, fraction = (description.get(name, 0) for name in ("fold", "folds", "fraction"))
    if "train" not in dataset.splits or not (folds or fraction):
        return dataset
    if fraction:
        return dataset if dataset.multi_label else training_subset(dataset, fraction)
    try:
        found = make_folds(dataset, folds)
    except TooFewImagesError:
        return dataset
    return found.without(fold) if fold else found.together()
