"""Whether a run may go on from a checkpoint, and what is different this time."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from convoy.core.errors import DataError, UsageError
from convoy.input_pipeline.dataset.open import Dataset
from convoy.trainer import config as configs
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.session.description import dataset_identity


def check_same_run(
    metadata: Mapping[str, Any], config: ml_collections.ConfigDict, dataset: Dataset, run: RunDirectory
) -> None:
    """Checks that a checkpoint belongs to this config and dataset.

    Raises:
      UsageError: it belongs to another config.
      DataError: it belongs to another dataset.
    """
    changed = configs.differences(metadata["config"], configs.to_json(config))
    if changed:
        raise UsageError(
            f"--workdir={run.path} holds step {metadata['step']} of a run with another config: {'; '.join(changed)}. "
            "Give the same config to go on with it, or another --workdir."
        )
    before, now = metadata["dataset"], dataset_identity(dataset)
    changed = [f"{name}: {before[name]} -> {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    if changed:
        raise DataError(
            f"--workdir={run.path} holds step {metadata['step']} of a run on another dataset than {dataset.directory}: "
            f"{'; '.join(changed)}. Give the same --data to go on with it, or another --workdir."
        )


def what_changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns `name: before -> now` for what is different in two descriptions of where a run runs."""
    return [f"{name}: {before[name]} -> {now[name]}" for name in now if name in before and before[name] != now[name]]
