"""Descriptions of a run: dataset identity, versions and hardware, and the rows of the console's header."""

import logging
import os
import platform
import shlex
from collections.abc import Mapping
from typing import Any

import keras
import ml_collections
import numpy as np
import tensorflow as tf

from convoy import __version__
from convoy.core.text import counted
from convoy.input_pipeline.dataset.open import Dataset
from convoy.input_pipeline.dataset.views import View
from convoy.trainer.cluster.strategy import runs_on_gpu
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.config import Plan, earlier_virtual_replicas_text, loss_text, resolution
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.session.runtime import Runtime
from convoy.trainer.step.freezing import training_phases

AS_VIEWED = "upright and on white"

_logger = logging.getLogger("convoy")


def as_read_by_run(dataset: Dataset, identity: Mapping[str, Any], run: RunDirectory) -> Dataset:
    """Returns a dataset with its images decoded as a run did when it began.

    Logs a warning where that is not how a viewer shows them.

    Args:
      dataset: the dataset.
      identity: `dataset_identity` in the run's checkpoint or in its dataset.json.
      run: the run directory.
    """
    if dataset.manifest or identity.get("reading") == AS_VIEWED:
        return dataset
    _logger.warning(
        "%s began with an earlier version: it ignores orientation and transparency of images in %s. A new run "
        "directory reads them as a viewer shows them.",
        run.path,
        dataset.directory,
    )
    return dataset.as_stored()


def dataset_identity(dataset: Dataset) -> dict[str, Any]:
    """Returns the properties of a dataset that must not change when a run resumes, as JSON data: not its name."""
    split = dataset.split("train")
    reading = {"reading": AS_VIEWED} if split.as_viewed else {}
    if not dataset.manifest:
        record_format = dataset.record_format.as_dict()
        reading |= {name: record_format[name] for name in ("image_key", "label_key", "first_label")}
    return {
        **reading,
        **({"multi_label": True} if dataset.multi_label else {}),
        "train_images": split.num_images,
        "train_digest": dataset.digest("train")[:16],
        "classes": dataset.num_classes,
    }


def versions() -> dict[str, str]:
    """Returns the versions that must be the same on all workers of a run."""
    return {"convoy": __version__, "tensorflow": tf.__version__, "keras": keras.__version__}


def environment() -> dict[str, Any]:
    """Returns versions and hardware of this host, as JSON data."""
    return {
        **versions(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "host": platform.node(),
        "cpus": os.cpu_count(),
        "gpus": [gpu.name for gpu in tf.config.list_physical_devices("GPU")],
    }


def hardware_info(plan: Plan, runtime: Runtime, worker_group: WorkerGroup, files: Mapping[str, str]) -> dict[str, Any]:
    """Returns what may change when a run resumes, as JSON data: devices, workers, host, versions, and users' files.

    Args:
      plan: the plan of the run.
      runtime: its model and devices.
      worker_group: its workers.
      files: SHA-256 by name of the files of the model.
    """
    return {
        "devices": f"{plan.replicas} {'GPU' if runs_on_gpu(runtime.strategy) else 'CPU'}",
        "workers": worker_group.num_workers,
        "host": platform.node(),
        **versions(),
        **{name: f"file {digest[:12]}" for name, digest in files.items()},
    }


def header_rows(
    config: ml_collections.ConfigDict,
    plan: Plan,
    runtime: Runtime,
    dataset: Dataset,
    run: RunDirectory,
    worker_group: WorkerGroup,
) -> dict[str, str]:
    """Returns the rows of the console's header, by heading."""
    rows = {"model": f"{config.model.name}, {counted(runtime.built.model.count_params(), 'parameter')}"}
    if plan.freeze_steps:
        rows["model"] += f", all but the head frozen until step {plan.freeze_steps}"
    if config.model.layer_decay < 1:
        rates = training_phases(
            runtime.built, backbone_rate=config.model.backbone_rate, layer_decay=config.model.layer_decay
        )[0].rates
        rows["layer decay"] = (
            f"{config.model.layer_decay:g}: {counted(len(set(rates)), 'learning rate')}, from that of the head to "
            f"{min(rates):.2g} of it"
        )
    if runtime.built.loaded:
        rows["weights"] = runtime.built.loaded
    rows["data"] = _data_text(config, dataset)
    rows["length"] = (
        f"{counted(plan.total_steps, 'step')}, {plan.total_steps / plan.steps_per_epoch:.2f} epochs of "
        f"{counted(plan.num_images, 'image')}" + "".join(f", extended at step {step}" for step in config.extended.steps)
    )
    if resolutions := resolution.summary(config, plan.total_steps):
        rows["images"] = resolutions
    devices = [device.split("device:")[-1] for device in runtime.strategy.extended.worker_devices]
    rows["devices"] = f"{', '.join(devices)} ({_strategy_name(runtime.strategy)})"
    if worker_group.num_workers > 1:
        rows["devices"] += f" on each of {worker_group.num_workers} workers"
    rows["replicas"] = f"{plan.replicas}, virtual replicas {plan.virtual_replicas}"
    rows["replicas"] += earlier_virtual_replicas_text(config)
    rows["batch"] = (
        f"{plan.global_batch_size} global, {plan.replica_batch_size} per device, "
        f"{plan.virtual_batch_size} per virtual replica"
    )
    if (loss := loss_text(config)) != "cross_entropy":
        rows["loss"] = loss
    rows["optimizer"] = _optimizer_text(config, plan)
    rows["precision"] = (
        f"{runtime.precision}, XLA {'on' if runtime.use_xla else 'off'}"
        + (", deterministic" if config.deterministic else "")
        + (", gradients reduced in bfloat16" if config.reduce_in_bfloat16 else "")
    )
    rows["run directory"] = str(run.path)
    rows["TensorBoard"] = f"tensorboard --logdir {shlex.quote(str(run.tensorboard))}"
    return rows


def _data_text(config: ml_collections.ConfigDict, dataset: Dataset) -> str:
    validation = dataset.split("validation").num_images if "validation" in dataset.splits else 0
    return (
        f"{dataset.directory}: {counted(dataset.num_classes, 'class', 'classes')}"
        + (", any number of labels per image" if dataset.multi_label else "")
        + (f", labels from {dataset.record_format.first_label}" if dataset.record_format.first_label else "")
        + (f", {dataset.text}" if isinstance(dataset, View) else "")
        + (", fast decoding" if config.decode == "fast" else "")
        + (", striped shuffle" if config.shuffle == "striped" else "")
        + (f", {config.sampling} sampling" if config.sampling != "natural" else "")
        + (
            f", {counted(validation, 'validation image')}"
            if validation
            else ", no validation split: no evaluation while training"
        )
    )


def _optimizer_text(config: ml_collections.ConfigDict, plan: Plan) -> str:
    schedule, peak = config.schedule, f"peak learning rate {plan.peak_learning_rate:g}"
    if schedule.scaling != "none":
        peak += (
            f", scaled ({schedule.scaling}) from {config.optimizer.learning_rate:g} "
            f"at batch {schedule.reference_batch_size}"
        )
    decay = f", weight decay {plan.weight_decay:.3g}" if plan.weight_decay else ""
    return f"{config.optimizer.name}, {peak}, {schedule.name}{decay}"


def _strategy_name(strategy: tf.distribute.Strategy) -> str:
    # TensorFlow still uses the old name of this class internally.
    name = type(strategy).__name__
    return {"CollectiveAllReduceStrategy": "MultiWorkerMirroredStrategy"}.get(name, name)
