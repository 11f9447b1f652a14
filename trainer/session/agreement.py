"""Checks, before training, that all workers were started with the same config, data, versions, hardware and weights.

Without them, workers that differ would silently train diverging models.

Every worker calls each function. It returns on all workers or raises the same error on all workers.
"""

import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from convoy.core.downloads import alone, cache_folder
from convoy.core.errors import ConvoyError, DataError, UsageError
from convoy.trainer import config as configs
from convoy.trainer.checkpoint.checkpoints import Checkpoint, CheckpointStore, load_latest_valid
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.run.backup import Backup

# On a network file system, a file written by one host may take this long to appear on another.
_VISIBLE_SECONDS = 60.0
_LOCAL_SECONDS = 10.0  # after which RUN counts as local to its host, if it has a backup
_TRANSFER_SECONDS = 3600.0  # for the files of a run, to or from an object store
_POLL_SECONDS = 0.2


def agree_on_run(
    worker_group: WorkerGroup,
    *,
    config: Mapping[str, Any],
    dataset: Mapping[str, Any],
    versions: Mapping[str, Any],
    flags: Mapping[str, Any],
) -> None:
    """Compares configs, datasets, library versions and flags.

    Args:
      worker_group: the workers.
      config: the run's config, as JSON data.
      dataset: identity of the dataset, as JSON data.
      versions: versions of Convoy and its libraries, by name.
      flags: other flags that must be the same on all workers, by name.

    Raises:
      UsageError: configs, versions or flags differ. Names the first field that differs, its values and the workers.
      DataError: datasets differ.
    """
    own = {"config": config, "dataset": dataset, "versions": versions, "flags": flags}
    gathered = worker_group.exchange("run", own)
    for part in ("config", "flags"):
        require_equal(worker_group, gathered, part, UsageError, "Start all workers with the same flags.")
    require_equal(worker_group, gathered, "dataset", DataError, "Pass the same --data on all workers.")
    require_equal(worker_group, gathered, "versions", UsageError, "Install the same version on all of them.")


def agree_on_hardware(worker_group: WorkerGroup, *, precision: str, use_xla: bool, devices: int) -> None:
    """Compares the resolved precision and XLA settings, and the number of devices of each worker.

    Raises:
      UsageError: they differ.
    """
    own = {"config": {"precision": precision, "xla": use_xla}, "devices per worker": {"number": devices}}
    gathered = worker_group.exchange("hardware", own)
    require_equal(worker_group, gathered, "config", UsageError, "Set it explicitly instead of leaving it at auto.")
    require_equal(worker_group, gathered, "devices per worker", UsageError, "Pass the same --devices on each worker.")


def agree_on_model(worker_group: WorkerGroup, identity: Mapping[str, Any]) -> None:
    """Compares models of users' files, as `kept_code.model_identity` describes them.

    Raises:
      UsageError: they differ. Names the first file that differs, or the digest of the layers.
    """
    gathered = worker_group.exchange("model", {"model": {**identity["files"], "layers": identity["digest"]}})
    require_equal(worker_group, gathered, "model", UsageError, "Copy the same files to all workers.")


def agree_on_code(worker_group: WorkerGroup, digests: Mapping[str, Mapping[str, str]]) -> None:
    """Compares the code of users' pieces other than the model (`kept_code.piece_digests`).

    Raises:
      UsageError: they differ. Names the first file that differs.
    """
    gathered = worker_group.exchange("code", {"code": digests})
    require_equal(worker_group, gathered, "code", UsageError, "Copy the same files to all workers.")


def agree_on_weights(worker_group: WorkerGroup, sha256: str) -> None:
    """Compares the initial weights if they were loaded from a file.

    Raises:
      DataError: they differ.
    """
    gathered = worker_group.exchange("weights", {"weights": {"sha256": sha256}})
    require_equal(worker_group, gathered, "weights", DataError, "Pass the same --config.model.weights on all workers.")


def agree_on_checkpoint(
    worker_group: WorkerGroup, store: CheckpointStore, *, before: int | None = None
) -> Checkpoint | None:
    """Returns the latest valid checkpoint, chosen by the chief and read by every worker from its own file system.

    Args:
      worker_group: the workers.
      store: the run's checkpoints.
      before: consider only checkpoints of earlier steps than this one. The chief's value applies to all workers.

    Raises:
      DataError: all checkpoints are damaged, or a worker does not see the chief's checkpoint or sees a different one.
    """
    chosen, problem = None, None
    if worker_group.is_chief:
        try:
            chosen = load_latest_valid(store, before=before)
        except DataError as error:
            problem = error
    own = {
        "step": chosen[1]["step"] if chosen else None,
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
                    f"{worker_group.address(rank)} finds a checkpoint of step {other['newest']} in {other['folder']}, "
                    f"but {worker_group.address(0)} finds none. All workers must share one --workdir."
                )
        return None
    own = {"weights_sha256": None, "virtual_replicas": None, "problem": ""}
    try:
        chosen = chosen or _load_when_visible(store, step)
        own["weights_sha256"] = chosen[1]["weights_sha256"]
        own["virtual_replicas"] = chosen[1].get("config", {}).get("virtual_replicas")
    except ConvoyError as error:
        own["problem"] = str(error)
    restored = worker_group.exchange("restored", own, seconds=2 * _VISIBLE_SECONDS)
    for rank, other in enumerate(restored):
        reason = other["problem"]
        if not reason and other["weights_sha256"] != restored[0]["weights_sha256"]:
            reason = f"its step {step} has different weights ({other['weights_sha256'][:12]})."
        elif not reason and other["virtual_replicas"] != restored[0]["virtual_replicas"]:
            reason = f"its step {step} has {other['virtual_replicas']} virtual replicas."
        if reason:
            raise DataError(
                f"{worker_group.address(rank)} cannot resume from step {step} of {worker_group.address(0)}: {reason} "
                "All workers must share one --workdir."
            )
    return chosen


def agree_on_backup(worker_group: WorkerGroup, backup: Backup, store: CheckpointStore) -> None:
    """Restores an empty RUN from its backup: that of the chief, then those of workers that do not share it.

    Args:
      worker_group: the workers.
      backup: the backup of this worker's run directory.
      store: the checkpoints there.

    Raises:
      UsageError: the backup is not one.
      DataError: the backup is of another run than RUN, further ahead or damaged.
      ConvoyError: the store fails.
    """
    problem: Exception | None = None
    if worker_group.is_chief:
        try:
            backup.restore()
        except ConvoyError as error:
            problem = error
    own = {"step": store.latest(), "problem": str(problem or "")}
    found = worker_group.exchange("backup", own, seconds=_TRANSFER_SECONDS)
    if found[0]["problem"]:
        raise problem or DataError(found[0]["problem"])
    step = found[0]["step"]
    if step is None:
        return
    wait_until_visible(store, step, seconds=_LOCAL_SECONDS)
    has_step = worker_group.exchange("has step", step in store.steps())
    if all(has_step):
        return
    if worker_group.is_chief:  # its RUN may be ahead of the backup
        backup.upload()
    worker_group.exchange("backed up", seconds=_TRANSFER_SECONDS)
    if not has_step[worker_group.rank]:
        with alone(cache_folder(), f"restore-{zlib.crc32(str(store.folder.absolute()).encode()):08x}"):
            if step not in store.steps():
                backup.download()
    worker_group.exchange("restored backup", seconds=_TRANSFER_SECONDS)


def _load_when_visible(store: CheckpointStore, step: int) -> Checkpoint:
    wait_until_visible(store, step)
    return store.load(step)


def wait_until_visible(store: CheckpointStore, step: int, seconds: float | None = None) -> None:
    """Waits, for a limited time, until this host sees a checkpoint that another one has written."""
    deadline = time.monotonic() + (_VISIBLE_SECONDS if seconds is None else seconds)
    while step not in store.steps() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def require_equal(
    worker_group: WorkerGroup,
    gathered: Sequence[Mapping[str, Mapping[str, Any]]],
    part: str,
    error: type[ConvoyError],
    fix: str,
) -> None:
    """Raises `error` if the workers differ in one part of their exchanged values.

    Args:
      worker_group: the workers.
      gathered: by rank, each worker's parts by name; a part maps field names to values.
      part: name of the part to compare.
      error: type of the error, which names the first field that differs, its values and the workers.
      fix: sentence with the fix, appended to the message.
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
