"""What the workers of a run compare before they train: run apart, they would go on diverged and say nothing.

Each function is called by every worker and either returns on all of them or raises the same error on all of them.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from convoy.core.errors import ConvoyError, DataError, UsageError
from convoy.trainer import config as configs
from convoy.trainer.checkpoint.checkpoints import CheckpointStore, newest_whole
from convoy.trainer.cluster.worker_group import WorkerGroup

# On a network file system a file that one host has written may take this long to show on another.
_VISIBLE_SECONDS = 60.0
_POLL_SECONDS = 0.2

Checkpoint = tuple[dict[str, np.ndarray], dict[str, Any]]


def agree_on_run(
    worker_group: WorkerGroup, *, config: Mapping[str, Any], dataset: Mapping[str, Any], versions: Mapping[str, Any]
) -> None:
    """Compares what the workers were started with.

    Args:
      worker_group: the workers.
      config: as JSON data.
      dataset: its identity, as JSON data.
      versions: of Convoy and its libraries.

    Raises:
      UsageError: configs or versions differ. Names the first field, its values, and whose they are.
      DataError: datasets differ.
    """
    own = {"config": config, "dataset": dataset, "versions": versions}
    gathered = worker_group.exchange("run", own)
    compare(worker_group, gathered, "config", UsageError, "Start all workers with the same flags.")
    compare(worker_group, gathered, "dataset", DataError, "Give all workers the same --data.")
    compare(worker_group, gathered, "versions", UsageError, "Install the same version on all of them.")


def agree_on_hardware(worker_group: WorkerGroup, *, precision: str, use_xla: bool, devices: int) -> None:
    """Compares what `auto` came to on the workers.

    Raises:
      UsageError: it differs.
    """
    own = {"config": {"precision": precision, "xla": use_xla}, "devices of a worker": {"number": devices}}
    gathered = worker_group.exchange("hardware", own)
    compare(worker_group, gathered, "config", UsageError, "Set it for all workers instead of leaving it to auto.")
    compare(worker_group, gathered, "devices of a worker", UsageError, "Give each worker the same --devices.")


def agree_on_weights(worker_group: WorkerGroup, sha256: str) -> None:
    """Compares the weights that the workers begin with, where they come from a file.

    Raises:
      DataError: they differ.
    """
    gathered = worker_group.exchange("weights", {"weights": {"sha256": sha256}})
    compare(worker_group, gathered, "weights", DataError, "Give all workers the same file as --config.model.weights.")


def agree_on_checkpoint(
    worker_group: WorkerGroup, store: CheckpointStore, *, before: int | None = None
) -> Checkpoint | None:
    """Returns the newest whole checkpoint, as the chief sees it, read by every worker for itself.

    Args:
      worker_group: the workers.
      store: the run's checkpoints.
      before: only those of earlier steps than this; the chief's word counts.

    Raises:
      DataError: no checkpoint is whole; or a worker does not see the chief's, or sees another under its number.
    """
    chosen, problem = None, None
    if worker_group.is_chief:
        try:
            chosen = newest_whole(store, before=before)
        except DataError as error:
            problem = error
    step = chosen[1]["step"] if chosen else None
    own = {
        "step": step,
        "newest": store.latest(),
        "folder": str(store.folder),
        "before": before,
        "problem": str(problem or ""),
    }
    found = worker_group.exchange("checkpoint", own)
    if found[0]["problem"]:
        raise problem or DataError(found[0]["problem"])
    step = found[0]["step"]
    if step is None:
        for rank, other in enumerate(found[1:], 1):
            if other["newest"] is not None and found[0]["before"] is None:
                raise DataError(
                    f"{worker_group.address(rank)} sees a checkpoint of step {other['newest']} in {other['folder']} and "
                    f"{worker_group.address(0)} sees none: all workers must share one --workdir."
                )
        return None
    own = {"weights_sha256": None, "problem": ""}
    try:
        chosen = chosen or _load_when_visible(store, step)
        own["weights_sha256"] = chosen[1]["weights_sha256"]
    except ConvoyError as error:
        own["problem"] = str(error)
    restored = worker_group.exchange("restored", own, seconds=2 * _VISIBLE_SECONDS)
    for rank, other in enumerate(restored):
        if other["problem"] or other["weights_sha256"] != restored[0]["weights_sha256"]:
            seen = other["problem"] or f"its step {step} has other weights ({other['weights_sha256'][:12]})"
            raise DataError(
                f"{worker_group.address(rank)} cannot go on from step {step} of {worker_group.address(0)}: {seen} "
                "All workers must share one --workdir."
            )
    return chosen


def _load_when_visible(store: CheckpointStore, step: int) -> Checkpoint:
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while step not in store.steps() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return store.load(step)


def compare(worker_group: WorkerGroup, gathered: list[dict], part: str, error: type[ConvoyError], fix: str) -> None:
    """Raises `error` where the workers differ in a part of what each of them told, a mapping of fields.

    Args:
      worker_group: the workers.
      gathered: what each told, by rank: its parts by name.
      part: which one is compared.
      error: what is raised. Names the first field, its values, and whose they are.
      fix: what to do about it.
    """
    first = dict(configs.fields(gathered[0][part]))
    for rank, other in enumerate(gathered):
        fields = dict(configs.fields(other[part]))
        for name in [*first, *(fields.keys() - first.keys())]:
            if first.get(name) != fields.get(name):
                raise error(
                    f"the workers differ in {part}.{name}: {first.get(name)!r} on {worker_group.address(0)}, "
                    f"{fields.get(name)!r} on {worker_group.address(rank)}. {fix}"
                )
