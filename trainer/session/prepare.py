"""Prepares a training run. Everything that can be rejected up front is rejected here.

session = prepare(config, data="data", workdir="run", devices=devices, ...)
session.runtime.state.step            # 0, or the step of the checkpoint that the run resumes from
"""

import contextlib
import faulthandler
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import ml_collections

from convoy.core.devices import Devices, check_strategy
from convoy.core.errors import UsageError
from convoy.core.user_code import UserCode
from convoy.input_pipeline.augment.pipeline import parse_pipeline
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import Data, Dataset, open_dataset
from convoy.input_pipeline.dataset.storage import is_remote
from convoy.input_pipeline.dataset.views import View
from convoy.trainer import config as configs
from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from convoy.trainer.cluster.interface import over_interface
from convoy.trainer.cluster.stop_request import StopRequest
from convoy.trainer.cluster.strategy import make_strategy, set_cpu_threads
from convoy.trainer.cluster.watchdog import Deadlines
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.config import Plan
from convoy.trainer.models import MODELS, build_model, is_from_user
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.session.agreement import (
    agree_on_checkpoint,
    agree_on_code,
    agree_on_hardware,
    agree_on_model,
    agree_on_run,
    agree_on_weights,
)
from convoy.trainer.session.description import as_read_by_run, dataset_identity, versions
from convoy.trainer.session.kept_code import (
    MODEL,
    check_same_code,
    code_identity,
    keep_code,
    kept_preset,
    model_identity,
    piece_digests,
)
from convoy.trainer.session.objective import Objective, class_weights, config_for, training_objective
from convoy.trainer.session.restore import restore_state
from convoy.trainer.session.resume import resumed_config
from convoy.trainer.session.runtime import (
    Runtime,
    check_augmentation,
    make_runtime,
    resolve_precision_and_xla,
)
from convoy.trainer.session.weights import fetch_weights, initial_digest
from convoy.trainer.step.losses import LOSSES
from convoy.trainer.step.optimizers import OPTIMIZERS
from convoy.trainer.tf_compat.internals import MOST_EXCHANGING_DEVICES

_MAX_LOCK_WAIT_SECONDS = 120.0


@dataclass(frozen=True)
class TrainingSession:
    """A run that is ready to train.

    Attributes:
      config: complete, with every automatic field resolved.
      plan: the resolved plan of the config.
      dataset: the dataset to train on.
      run: the run directory, locked by this process if it is the chief.
      store: the run's checkpoints.
      runtime: the model, with the weights of the latest checkpoint if there is one.
      worker_group: the workers of the run.
      objective: its loss and metrics.
      model: what the model and the pieces were made from (`kept_code.code_identity`).
      metadata: metadata of that checkpoint; empty if there is none.
    """

    config: ml_collections.ConfigDict
    plan: Plan
    dataset: Dataset
    run: RunDirectory
    store: CheckpointStore
    runtime: Runtime
    worker_group: WorkerGroup
    objective: Objective
    model: dict[str, Any]
    metadata: dict[str, Any]

    def close(self) -> None:
        """Lets other processes train in the run directory."""
        self.run.release()


def prepare(
    config: ml_collections.ConfigDict,
    *,
    data: Data,
    workdir: str,
    devices: Devices,
    strategy_name: str,
    worker_group: WorkerGroup,
    deadlines: Deadlines,
    stop: StopRequest,
    interface: str,
    recipe: UserCode | None = None,
    record_format: RecordFormat | None = None,
    extend: bool = False,
    virtual_replicas: int | None = None,
) -> TrainingSession:
    """Opens dataset and run, waits for the other workers, agrees with them, builds the model and restores it.

    Takes the arguments of `convoy.trainer.loop.train`, and:

    Args:
      worker_group: the workers, not connected yet.
      stop: records stop signals; starts to listen here.

    Raises:
      UsageError: config, devices and dataset do not match, or the workers' do not.
      DataError: data, checkpoint or run directory cannot be used, or the run was started with another dataset.
      PeerLostError: a worker is missing.
    """
    check_strategy(strategy_name, worker_group.cluster)
    run = RunDirectory(workdir)
    dataset = open_training_data(config, data, run.record_format(record_format or RecordFormat()))
    config = config_for(config, dataset)
    if worker_group.is_chief:
        run.check()
    store = CheckpointStore(run.checkpoints, config.keep_checkpoints)
    worker_group.rendezvous()
    cluster = over_interface(worker_group, interface)
    agree_on_run(
        worker_group,
        config=configs.to_json(config),
        dataset=dataset_identity(dataset),
        versions=versions(),
        flags={"extend": extend, "virtual_replicas": virtual_replicas},
    )
    with run.removed_on_refusal():
        # Lock the run before reading it: after a restart, the chief of the previous attempt may still be writing, and
        # another process may start in the same new RUN.
        if worker_group.is_chief:
            may_be_a_restart = cluster is not None or "CONVOY_ATTEMPT" in os.environ
            run.create(wait_seconds=_lock_wait_seconds(deadlines) if may_be_a_restart else 0.0)
        checkpoint = agree_on_checkpoint(worker_group, store)
        if checkpoint:
            dataset = as_read_by_run(dataset, checkpoint[1]["dataset"], run)
        metadata = checkpoint[1] if checkpoint else None
        config = resumed_config(metadata, config, dataset, run, extend=extend, virtual_replicas=virtual_replicas)
        with _deadline(deadlines.startup) if cluster else contextlib.nullcontext():
            if config.deterministic:
                set_cpu_threads(config.deterministic_threads)
            strategy = make_strategy(devices, strategy_name, cluster=cluster, heartbeat_seconds=deadlines.heartbeat)
            stop.listen()
            precision, use_xla = resolve_precision_and_xla(config, strategy)
            local_devices = len(strategy.extended.worker_devices)
            agree_on_hardware(worker_group, precision=precision, use_xla=use_xla, devices=local_devices)
            if cluster and config.deterministic and local_devices > MOST_EXCHANGING_DEVICES:
                raise UsageError(
                    f"config.deterministic=True: supports at most {MOST_EXCHANGING_DEVICES} devices per worker, not "
                    f"{local_devices}. Start more workers with fewer devices."
                )
            check_augmentation(config)
            num_images = dataset.split("train").num_images
            resumes = bool(checkpoint) and not isinstance(dataset, View)  # parts of a dataset: folds, fractions
            replicas = strategy.num_replicas_in_sync
            plan = configs.resolve(config, num_images=num_images, replicas=replicas, resumes=resumes)
            objective = training_objective(config, dataset)
            operations = parse_pipeline(config.augment.ops, image_size=config.image_size).pieces
            named = {"schedule": plan.schedule, **objective.found}
            named |= {f"operation-{number}": found for number, found in enumerate(operations)}
            to_build = config.copy_and_resolve_references()
            to_build.optimizer.weight_decay = plan.weight_decay
            if checkpoint:  # it replaces them
                to_build.model.update({"weights": "", "name": kept_preset(run, config.model.name)})
            else:
                with _suspended_deadline(deadlines.startup if cluster else 0.0):
                    to_build.model.weights = fetch_weights(worker_group, config)
            if cluster and is_from_user(config.model.name):
                keras.utils.clear_session()  # the chief has built more since, if the process has trained another run
                # Not in the strategy's scope: variables of different shapes end in an error of a collective operation.
                alone = build_model(config.model.name, num_classes=dataset.num_classes, image_size=config.image_size)
                agree_on_model(worker_group, model_identity(alone))
            classes = dataset.class_names
            runtime = make_runtime(to_build, strategy, num_classes=dataset.num_classes, class_names=classes)
            config = configs.with_recorded_choices(
                config, {"virtual_replicas": plan.virtual_replicas, "precision": runtime.precision}
            )
            if runtime.optimizer:
                named["optimizer"] = runtime.optimizer
                if cluster and (digests := piece_digests(named)):
                    agree_on_code(worker_group, digests)
            identity = code_identity(runtime.built, named)
            begun_with = checkpoint[1].get("model", {}).get("weights", "") if checkpoint else None
            identity["weights"] = initial_digest(to_build) if begun_with is None else begun_with
            if checkpoint:
                check_same_code(checkpoint[1], identity, named, config.model.name, run)
                restore_state(runtime.state, *checkpoint, run)
            elif config.model.weights:
                agree_on_weights(worker_group, runtime.state.weights_sha256())
            if worker_group.is_chief:
                built = {MODEL: runtime.built.found} if runtime.built.found else {}
                keep_code(run, {**built, **named}, recipe, runtime.built.preset)
            worker_group.exchange("ready")
    return TrainingSession(
        config, plan, dataset, run, store, runtime, worker_group, objective, identity, metadata or {}
    )


def open_training_data(
    config: ml_collections.ConfigDict, data: Data, record_format: RecordFormat | None = None
) -> Dataset:
    """Checks a config and opens its training dataset.

    Args:
      config: complete.
      data: the dataset directory or the source, as in `open_dataset`.
      record_format: what is known about the records of other tools.

    Raises:
      UsageError: the config is invalid, on any dataset or on this one.
      DataError: the dataset cannot be used.
    """
    configs.check(config)
    LOSSES.check(config.loss.name)
    OPTIMIZERS.check(config.optimizer.name)
    if is_from_user(config.model.name):
        MODELS.check(config.model.name)
    dataset = open_dataset(data, record_format)
    split = dataset.split("train")
    if dataset.num_classes < 2:
        fix = "pass `convoy convert --images` a folder with one subfolder per class."
        if not dataset.manifest:
            fix = f"{dataset.record_format.label_key!r} may not be the label; name it with --label_key."
        if split.source:
            fix = "return the labels of two."
        raise UsageError(
            f"--data={dataset.directory}: has only the class {dataset.class_names[0]!r}. Classification needs at least "
            f"two classes: {fix}"
        )
    if split.source and config.shuffle == "striped":
        raise UsageError(
            f"--data={dataset.directory}: a source is read by index, and config.shuffle=striped reads windows of "
            "shards. Pass --config.shuffle=global."
        )
    if split.source and config.cache == "disk":
        raise UsageError(
            f"--data={dataset.directory}: config.cache=disk keeps images for later runs, and a source does not state "
            "whether its images have changed. Pass --config.cache=memory."
        )
    if is_remote(dataset.directory) and config.shuffle == "global":
        raise UsageError(
            f"--data={dataset.directory}: is not on a local file system, and config.shuffle=global reads every record "
            "separately. Pass --config.shuffle=striped, or copy the dataset to this machine."
        )
    class_weights(config.loss.class_weights, dataset)
    return dataset


def _lock_wait_seconds(deadlines: Deadlines) -> float:
    """Returns how long to wait for the previous attempt to release the run directory's lock.

    A chief that lost its network exits only after its heartbeat deadline. A file server keeps the locks of a client
    that lost power until their lease expires, 90 s for NFS.
    """
    return min(_MAX_LOCK_WAIT_SECONDS, deadlines.startup / 2)


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Ends the process with a traceback of every thread if the block takes longer.

    A strategy that waits for a worker holds the GIL, so no Python thread could end it. The exit code is 1; a launcher
    distinguishes it from an error of the program by the missing error file.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def _suspended_deadline(seconds: float) -> Iterator[None]:
    """Suspends the `_deadline` of this many seconds in the block, which then starts again; 0: there is none."""
    if seconds:
        faulthandler.cancel_dump_traceback_later()
    try:
        yield
    finally:
        if seconds:
            faulthandler.dump_traceback_later(seconds, exit=True)
