"""What a run is said to be before it starts: the console's header, its environment, its dataset's identity."""

import os
import platform
import shlex
from typing import Any

import keras
import ml_collections
import numpy as np
import tensorflow as tf

from convoy import __version__
from convoy.input_pipeline.dataset.open import Dataset
from convoy.trainer.cluster.strategy import runs_on_gpu
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.config import Plan
from convoy.trainer.config import resolution
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.session.runtime import Runtime


def dataset_identity(dataset: Dataset) -> dict[str, Any]:
    """Returns what must be the same for a run to go on with a dataset, as JSON data."""
    split = dataset.split("train")
    # One that Convoy did not write may be named after its folder, which may be moved.
    name = {"name": dataset.name} if dataset.manifest else {}
    return {
        **name,
        "train_images": split.num_images,
        "train_digest": dataset.digest("train")[:16],
        "classes": dataset.num_classes,
    }


def versions() -> dict[str, str]:
    """Returns the versions that workers of one run must share."""
    return {"convoy": __version__, "tensorflow": tf.__version__, "keras": keras.__version__}


def environment() -> dict[str, Any]:
    """Returns versions and hardware, as JSON data."""
    return {
        **versions(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "host": platform.node(),
        "cpus": os.cpu_count(),
        "gpus": [gpu.name for gpu in tf.config.list_physical_devices("GPU")],
    }


def place(plan: Plan, runtime: Runtime, worker_group: WorkerGroup) -> dict[str, Any]:
    """Returns where a run runs, as JSON data: what may change when it goes on."""
    return {
        "devices": f"{plan.replicas} {'GPU' if runs_on_gpu(runtime.strategy) else 'CPU'}",
        "workers": worker_group.num_workers,
        "host": platform.node(),
        **versions(),
    }


def header_rows(
    config: ml_collections.ConfigDict,
    plan: Plan,
    runtime: Runtime,
    dataset: Dataset,
    run: RunDirectory,
    worker_group: WorkerGroup,
) -> dict[str, str]:
    """Returns the rows of the console's header: what is about to run, on what, and how long."""
    strategy = runtime.strategy
    devices = [device.split("device:")[-1] for device in strategy.extended.worker_devices]
    validation = dataset.split("validation").num_images if "validation" in dataset.splits else 0
    length = (
        f"{plan.total_steps} steps, {plan.total_steps / plan.steps_per_epoch:.2f} epochs of {plan.num_images} images"
    )
    scaling = config.schedule.scaling
    scaled = (
        f", scaled ({scaling}) from {config.optimizer.learning_rate:g} at batch {config.schedule.reference_batch_size}"
    )
    return {
        "model": f"{config.model.name}, {runtime.built.model.count_params():,} parameters"
        + (f", all but the head frozen until step {plan.freeze_steps}" if plan.freeze_steps else ""),
        **({"weights": runtime.built.loaded} if runtime.built.loaded else {}),
        "data": f"{dataset.directory}: {dataset.num_classes} classes"
        + (", windowed order" if config.shuffle == "block" else "")
        + (
            f", {validation} validation images"
            if validation
            else ", no validation split: nothing is evaluated while training"
        ),
        "length": length,
        **({"images": described} if (described := resolution.summary(config, plan.total_steps)) else {}),
        "devices": f"{', '.join(devices)} ({_strategy_name(strategy)})"
        + (f" on each of {worker_group.num_workers} workers" if worker_group.num_workers > 1 else ""),
        "replicas": f"{plan.replicas}, virtual replicas {plan.virtual_replicas}",
        "batch": f"{plan.global_batch_size} global, {plan.replica_batch_size} a device, "
        f"{plan.virtual_batch_size} a virtual replica",
        "optimizer": f"{config.optimizer.name}, peak learning rate {plan.peak_learning_rate:g}"
        + (scaled if scaling != "none" else "")
        + f", {config.schedule.name}",
        "precision": f"{runtime.precision}, XLA {'on' if runtime.use_xla else 'off'}"
        + (", deterministic" if config.deterministic else "")
        + (", gradients reduced in bfloat16" if config.reduce_in_bfloat16 else ""),
        "run directory": str(run.path),
        "TensorBoard": f"tensorboard --logdir {shlex.quote(str(run.tensorboard))}",
    }


def _strategy_name(strategy: tf.distribute.Strategy) -> str:
    name = type(strategy).__name__
    return {"CollectiveAllReduceStrategy": "MultiWorkerMirroredStrategy"}.get(name, name)  # its old name, still inside
