"""Resuming a run from a checkpoint: what may differ, what has changed since, and extending the run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from convoy.core.errors import DataError, UsageError
from convoy.core.registry import is_from_file
from convoy.input_pipeline.dataset.open import Dataset
from convoy.trainer import config as configs
from convoy.trainer.config import Plan, renamed, resolution
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.session.description import dataset_identity
from convoy.trainer.session.weights import available_weights, weights_digest

_LENGTH = ("epochs:", "steps:")
_OF_USERS = ("model", "loss", "schedule", "optimizer")  # sections whose `name` may be that of a user's piece


def resumed_config(
    metadata: Mapping[str, Any] | None,
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    run: RunDirectory,
    *,
    extend: bool = False,
    virtual_replicas: int | None = None,
) -> ml_collections.ConfigDict:
    """Returns the config to train with: what earlier starts of the run chose is kept, and changes are recorded.

    Args:
      metadata: the checkpoint's metadata; None if the run has no checkpoint.
      config: the config, complete.
      dataset: the dataset to train on.
      run: the run directory.
      extend: whether the run may become longer.
      virtual_replicas: the number of virtual replicas from this step on; None for that of the checkpoint.

    Raises:
      UsageError: the checkpoint was written with a different config, there is nothing to extend or to change, or the
        run cannot have this number of virtual replicas.
      DataError: the checkpoint was written with a different dataset.
    """
    if metadata is None:
        if extend:
            raise UsageError(f"--extend: {run.path} has no checkpoint. Pass the --workdir of a run, or no --extend.")
        if virtual_replicas is not None:
            raise UsageError(
                f"--virtual_replicas={virtual_replicas}: {run.path} has no checkpoint. Pass the --workdir of a run, or "
                f"--config.virtual_replicas={virtual_replicas} for a new one."
            )
        if config.earlier_virtual_replicas.steps:
            raise UsageError(
                f"config.earlier_virtual_replicas={config.earlier_virtual_replicas.to_dict()}: a new run has the same "
                "number from its first step on. Leave the field empty."
            )
        return config
    recorded = renamed.modernized(_with_moved_weights(_with_moved_files(metadata, config), metadata, config))
    step = metadata["step"]
    config = configs.with_recorded_choices(config, recorded)
    if config.virtual_replicas == virtual_replicas:
        config.virtual_replicas = recorded["virtual_replicas"]
    changed = configs.differences(recorded, configs.to_json(config))
    others = [text for text in changed if not text.startswith(_LENGTH)]
    images = dataset.split("train").num_images
    before, after = configs.total_steps(recorded, images), configs.total_steps(config, images)
    if others or after < before or (after > before and not extend):
        raise UsageError(
            f"--workdir={run.path}: step {step} was trained with a different config: {'; '.join(changed)}. "
            f"{_ways_on(run, before, after, others, config)}"
        )
    shuffle = metadata["config"].get("shuffle") or metadata["config"].get("order")
    if shuffle in renamed.VALUES["shuffle"] and step < after:
        raise UsageError(
            f"--workdir={run.path}: step {step} was trained with config.shuffle={shuffle}, a sample order that only "
            f"earlier versions of Convoy have. Finish the run with such a version, or {_new_run(run)}."
        )
    changed = changes(metadata["dataset"], dataset_identity(dataset))
    if changed:
        raise DataError(
            f"--workdir={run.path}: step {step} was trained on a different dataset than "
            f"{dataset.directory}: {'; '.join(changed)}. Pass the same --data to resume, or another --workdir."
        )
    if virtual_replicas not in (None, config.virtual_replicas):
        configs.check_change_of_virtual_replicas(config, virtual_replicas)
        config = configs.with_virtual_replicas(config, virtual_replicas, step=step)
    return config if after == before else configs.with_extension(config, before=before, step=step)


def _ways_on(run: RunDirectory, before: int, after: int, others: list[str], config: ml_collections.ConfigDict) -> str:
    """Returns how to go on when a config differs, as sentences."""
    number = config.virtual_replicas
    only_number = len(others) == 1 and others[0].startswith("virtual_replicas:")
    if only_number and number in configs.possible_virtual_replicas(config):
        return f"Pass --virtual_replicas={number} to change it from this step on, the same config, or {_new_run(run)}."
    if others:
        return f"Pass the same config to resume (only longer, with --extend), or {_new_run(run)}."
    if after < before:
        return f"A run of {before} steps can be extended, not shortened: pass its length to resume, or {_new_run(run)}."
    return f"Add --extend to train on to step {after}, or {_new_run(run)}."


def _new_run(run: RunDirectory) -> str:
    return f"start a new run in another --workdir, from these weights with --config.model.weights={run.path}"


def effects_of_extension(config: ml_collections.ConfigDict, plan: Plan, *, rollbacks: int = 0) -> list[str]:
    """Returns what the last extension of a run changes, as lines of text.

    Args:
      config: the run's config.
      plan: its plan.
      rollbacks: number of rollbacks so far, each of which has lowered the learning rate.
    """
    step, before, total = config.extended.steps[-1], config.extended.lengths[-1], plan.total_steps
    around = (step - 1, step)
    factor = config.divergence.learning_rate_factor**rollbacks
    rates = [f"{factor * configs.learning_rate_of(config, plan, near):.2e}" for near in around]
    sizes = [resolution.stage_at(config, total, near).size for near in around]
    mixing_ends = bool(config.mix.mixup or config.mix.cutmix) and config.mix.off_fraction > 0
    mixes = [any(first <= near < end for first, end in configs.mixing_steps(config, total)) for near in around]
    lines = [
        f"Extended at step {step}, from {before} to {total} steps. The learning rate "
        + (f"stays at {rates[1]}" if rates[0] == rates[1] else f"goes from {rates[0]} to {rates[1]}")
        + f": steps already done keep theirs, the others follow the {config.schedule.name} schedule of {total} steps."
    ]
    if sizes[0] != sizes[1]:
        lines.append(f"Training images are {sizes[1]} px again, after {sizes[0]} px.")
    if mixing_ends and mixes[1] and not mixes[0]:
        lines.append("Images are mixed again.")
    if config.schedule.name != "constant" or config.progressive.sizes or mixing_ends:
        lines.append(f"A run of {total} steps from the start gives another result.")
    return lines


def _with_moved_files(metadata: Mapping[str, Any], config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the checkpoint's config, with the current paths of users' files: `check_same_code` compares these."""
    before = dict(metadata["config"])
    for section in _OF_USERS if "model" in metadata else ():
        old, new = before.get(section, {}).get("name", ""), config[section].name
        if is_from_file(new) and Path(old).name == Path(new).name:
            before[section] = {**before[section], "name": new}
    return before


def _with_moved_weights(
    recorded: Mapping[str, Any], metadata: Mapping[str, Any], config: ml_collections.ConfigDict
) -> Mapping[str, Any]:
    """Returns the checkpoint's config, with the current path of the weights that it began with if they are the same."""
    model, path, known = recorded.get("model", {}), config.model.weights, metadata.get("model", {}).get("weights")
    if not known or path in ("", model.get("weights")) or weights_digest(available_weights(config)) != known:
        return recorded
    return {**recorded, "model": {**model, "weights": path}}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns `name: before -> now` for each field that differs. Fields missing in `before` count as unchanged."""
    return [f"{name}: {before[name]} -> {now[name]}" for name in now if name in before and before[name] != now[name]]
