"""From what was asked for to a run that is ready to train: everything that can be refused is refused here.

start = prepare(config, data="data", workdir="run", devices=devices, peers=peers)
start.runtime.state.step            # 0, or where the newest checkpoint stands
"""

import contextlib
import faulthandler
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_collections

from convoy.core.cluster import Cluster
from convoy.core.devices import Devices, check_strategy
from convoy.core.errors import UsageError
from convoy.input_pipeline.dataset.open import Dataset, open_dataset
from convoy.input_pipeline.dataset.storage import is_remote
from convoy.trainer import config as configs
from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from convoy.trainer.cluster.interface import over_interface
from convoy.trainer.cluster.stop_request import StopRequest
from convoy.trainer.cluster.strategy import make_strategy, set_cpu_threads
from convoy.trainer.cluster.watchdog import Deadlines
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.config import Plan
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.session.agreement import agree_on_checkpoint, agree_on_hardware, agree_on_run, agree_on_weights
from convoy.trainer.session.description import dataset_identity, versions
from convoy.trainer.session.restore import load_into
from convoy.trainer.session.resume import check_same_run
from convoy.trainer.session.runtime import Runtime, hardware_choices, make_runtime
from convoy.trainer.tf_compat.internals import MOST_EXCHANGING_DEVICES

_LONGEST_LEASE_SECONDS = 120.0


@dataclass(frozen=True)
class Start:
    """A run that is ready to train.

    Attributes:
      config: complete, with what was left to Convoy chosen.
      plan: what follows from it.
      dataset: to train on.
      run: its directory, which this process keeps for itself where it is the chief.
      store: its checkpoints.
      runtime: the model, with the weights of the newest checkpoint where there is one.
      metadata: of that checkpoint; empty where there is none.
    """

    config: ml_collections.ConfigDict
    plan: Plan
    dataset: Dataset
    run: RunDirectory
    store: CheckpointStore
    runtime: Runtime
    metadata: dict[str, Any]


def prepare(
    config: ml_collections.ConfigDict,
    *,
    data: str,
    workdir: str,
    devices: Devices,
    strategy_name: str,
    cluster: Cluster | None,
    worker_group: WorkerGroup,
    deadlines: Deadlines,
    stop: StopRequest,
    interface: str = "",
) -> Start:
    """Opens dataset and run, waits for the other workers, agrees with them, builds the model, restores it.

    Its arguments are those of `convoy.trainer.loop.train`, and the workers, not met yet, and a flag that signals raise.

    Raises:
      UsageError: config, devices and dataset do not fit together, or the workers' do not.
      DataError: data, checkpoint or run directory cannot be used, or the run was started with another dataset.
      PeerLostError: a worker did not come.
    """
    check_strategy(strategy_name, cluster)
    dataset = open_training_data(config, data)
    run = RunDirectory(workdir)
    if worker_group.is_chief:
        run.check()
    store = CheckpointStore(run.checkpoints, config.keep_checkpoints)
    worker_group.rendezvous()
    cluster = over_interface(cluster, worker_group, interface)
    agree_on_run(worker_group, config=configs.to_json(config), dataset=dataset_identity(dataset), versions=versions())
    if (
        worker_group.is_chief and run.checkpoints.is_dir()
    ):  # before it is read: the gang before this one may still write
        run.create(wait_seconds=_lock_wait_seconds(deadlines) if _may_be_a_restart(cluster) else 0.0)
    checkpoint = agree_on_checkpoint(worker_group, store)
    if checkpoint:
        config = configs.with_recorded_choices(config, checkpoint[1]["config"])
        check_same_run(checkpoint[1], config, dataset, run)
    with _deadline(deadlines.startup if cluster else 0.0):
        if config.deterministic:
            set_cpu_threads(config.deterministic_threads)
        strategy = make_strategy(devices, strategy_name, cluster=cluster, heartbeat_seconds=deadlines.heartbeat)
        stop.listen()
        precision, use_xla = hardware_choices(config, strategy)
        local_devices = len(strategy.extended.worker_devices)
        agree_on_hardware(worker_group, precision=precision, use_xla=use_xla, devices=local_devices)
        if cluster and config.deterministic and local_devices > MOST_EXCHANGING_DEVICES:
            raise UsageError(
                f"{local_devices} devices a worker: workers of a deterministic run exchange sums among at most "
                f"{MOST_EXCHANGING_DEVICES} devices each. Start more workers with fewer devices."
            )
        num_images = dataset.split("train").num_images
        plan = configs.resolve(config, num_images=num_images, replicas=strategy.num_replicas_in_sync)
        to_build = config.copy_and_resolve_references()
        to_build.model.weights = "" if checkpoint else config.model.weights  # the checkpoint replaces them
        runtime = make_runtime(to_build, strategy, num_classes=dataset.num_classes)
        config = configs.with_recorded_choices(
            config, {"virtual_replicas": plan.virtual_replicas, "precision": runtime.precision}
        )
        if worker_group.is_chief:
            run.create()
        if checkpoint:
            load_into(runtime.state, *checkpoint, run)
        elif config.model.weights:
            agree_on_weights(worker_group, runtime.state.weights_sha256())
        worker_group.exchange("ready")
    return Start(config, plan, dataset, run, store, runtime, checkpoint[1] if checkpoint else {})


def open_training_data(config: ml_collections.ConfigDict, data: str) -> Dataset:
    """Checks a config and opens the dataset that it is to be trained on.

    Raises:
      UsageError: the config cannot work, on any dataset or on this one.
      DataError: the dataset cannot be used.
    """
    configs.check(config)
    dataset = open_dataset(data)
    dataset.split("train")  # tells where there is none
    if dataset.num_classes < 2:
        raise UsageError(
            f"--data={data} has the one class {dataset.class_names[0]!r}: there is nothing to tell apart. "
            "`convoy convert --images` wants the folder that holds a folder a class."
        )
    if is_remote(data) and config.shuffle == "global":
        raise UsageError(
            f"--data={data} is no folder of this machine, and in global order each record would be asked for by "
            "itself: give --config.shuffle=block, or copy the dataset."
        )
    return dataset


def _may_be_a_restart(cluster: Cluster | None) -> bool:
    return cluster is not None or "CONVOY_ATTEMPT" in os.environ


def _lock_wait_seconds(deadlines: Deadlines) -> float:
    """Returns for how many seconds to wait for the gang before this one to let go of RUN.

    The chief of a host that was cut off notices it only after its heartbeat, and a file server keeps the locks of one
    that lost its power for a lease, 90 s on NFS.
    """
    return min(_LONGEST_LEASE_SECONDS, deadlines.startup / 2)


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Ends the process, with every stack, where what is done inside takes longer; 0 for no limit.

    A strategy that waits for a worker holds Python's lock, so no thread of ours could end it. Exit code 1, which a
    launcher tells from a program's own error by the missing error file.
    """
    if not seconds:
        yield
        return
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
