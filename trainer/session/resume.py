"""Checks that a run may resume from a checkpoint, and lists what has changed since."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from convoy.core.errors import DataError, UsageError
from convoy.input_pipeline.dataset.open import Dataset
from convoy.trainer import config as configs
from convoy.trainer.models import is_from_file
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.session.description import dataset_identity


def check_same_run(
    metadata: Mapping[str, Any], config: ml_collections.ConfigDict, dataset: Dataset, run: RunDirectory
) -> None:
    """Checks that a checkpoint was written with this config and dataset.

    Args:
      metadata: the checkpoint's metadata.
      config: the config, complete.
      dataset: the dataset to train on.
      run: the run directory.

    Raises:
      UsageError: the checkpoint was written with a different config.
      DataError: the checkpoint was written with a different dataset.
    """
    changed = configs.differences(_with_moved_model(metadata, config.model.name), configs.to_json(config))
    if changed:
        raise UsageError(
            f"--workdir={run.path}: step {metadata['step']} was trained with a different config: {'; '.join(changed)}. "
            "Pass the same config to resume, or another --workdir."
        )
    changed = changes(metadata["dataset"], dataset_identity(dataset))
    if changed:
        raise DataError(
            f"--workdir={run.path}: step {metadata['step']} was trained on a different dataset than "
            f"{dataset.directory}: {'; '.join(changed)}. Pass the same --data to resume, or another --workdir."
        )


def _with_moved_model(metadata: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns the checkpoint's config, with the current path of a user's model: `check_same_model` compares that."""
    before: Mapping[str, Any] = metadata["config"]
    model = before.get("model", {})
    is_moved = "model" in metadata and is_from_file(name) and Path(model.get("name", "")).name == Path(name).name
    return {**before, "model": {**model, "name": name}} if is_moved else before


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns `name: before -> now` for each field that differs. Fields missing in `before` count as unchanged."""
    return [f"{name}: {before[name]} -> {now[name]}" for name in now if name in before and before[name] != now[name]]
