"""Checks that need TensorFlow, in a subprocess that is killed if it hangs.

    with TfProbe(setup) as probe:
        probe.start_up(seconds=180)                 # versions, devices, check of RUN's newest checkpoint
        probe.reduce(cluster, seconds=30)           # sum over all devices of all workers
        probe.checkpoint_bytes(seconds=60)

A collective that waits for a worker can block forever while it holds the interpreter lock; the parent keeps its
connection to the other workers meanwhile. Imports no TensorFlow in the parent.
"""

import contextlib
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import ml_collections

from convoy.core.cluster import Cluster
from convoy.core.devices import Devices
from convoy.core.downloads import unreachable
from convoy.core.errors import ConvoyError
from convoy.core.processes import follow_parent, helper_starting
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.trainer.cluster.strategy import make_strategy

_REDUCED_FLOATS = 2**18  # 1 MiB
_TIMED = 5


class NoAnswerError(Exception):
    """TensorFlow's process did not answer: it hung, crashed, or raised the error in the message."""


@dataclass(frozen=True)
class Setup:
    """Input of the TensorFlow process.

    Attributes:
      config: validated config; None if it is invalid.
      data: dataset directory; empty if it cannot be opened.
      workdir: run directory, on the worker that checks the checkpoints; empty on the others.
      devices: devices of this worker.
      strategy_name: value of `--strategy`.
      heartbeat_seconds: silence after which a worker counts as lost.
      record_format: of `data`.
      extend: value of `--extend`.
      virtual_replicas: value of `--virtual_replicas`.
    """

    config: ml_collections.ConfigDict | None
    data: str
    workdir: str
    devices: Devices
    strategy_name: str
    heartbeat_seconds: float
    record_format: RecordFormat = RecordFormat()
    extend: bool = False
    virtual_replicas: int | None = None


class TfProbe:
    """Parent side of the probe. A context manager that kills the process on exit.

    All questions raise a NoAnswerError if the process does not answer in time.
    """

    def __init__(self, setup: Setup):
        """Starts the process."""
        context = multiprocessing.get_context("spawn")
        with helper_starting():
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, setup), daemon=True)
            self._process.start()
        theirs.close()

    def __enter__(self) -> "TfProbe":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def start_up(self, seconds: float) -> dict[str, Any]:
        """Returns `versions`, `seen` (for `hardware.check_devices`), `auto` (see `_auto`) and `resume`.

        `resume` is None without a usable RUN; otherwise it has the `step` to resume from, the recorded `choices` that
        are kept, and the `problem` that prevents resuming.
        """
        return self._ask(seconds, "start_up")

    def reduce(self, cluster: Cluster | None, seconds: float) -> dict[str, Any]:
        """Sums over all devices of all workers; all of them must call it.

        Returns:
          `replicas`; `sum` and `expected`; `milliseconds` to all-reduce 1 MiB.
        """
        return self._ask(seconds, "reduce", cluster)

    def checkpoint_bytes(self, seconds: float) -> int:
        """Returns the size of a checkpoint of the config's model."""
        return self._ask(seconds, "checkpoint_bytes")

    def weights(self, seconds: float) -> dict[str, str] | None:
        """Returns `path` and `problem` of the config's pretrained weights; None if the run does not need them."""
        return self._ask(seconds, "weights")

    def _ask(self, seconds: float, *question: Any) -> Any:  # noqa: ANN401
        try:
            self._connection.send(question)
            if not self._connection.poll(seconds):
                self._process.kill()
                raise NoAnswerError(f"no answer within {seconds:g} s")
            problem, answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(1)
            raise NoAnswerError(f"TensorFlow's process ended (exit code {self._process.exitcode})") from None
        if problem:
            raise NoAnswerError(problem)
        return answer


def _serve(connection: Connection, setup: Setup) -> None:
    follow_parent()
    functions: dict[str, Callable] = {
        **{"start_up": _start_up, "reduce": _reduce, "checkpoint_bytes": _checkpoint_bytes, "weights": _weights}
    }
    while True:
        try:
            name, *arguments = connection.recv()
        except (EOFError, OSError):
            os._exit(0)
        try:
            reply = ("", functions[name](setup, *arguments))
        except Exception as error:
            message = str(error) if isinstance(error, ConvoyError) else f"{type(error).__name__}: {error}"
            reply = (message.splitlines()[0] if message else type(error).__name__, None)
        with contextlib.suppress(OSError):
            connection.send(reply)


def _start_up(setup: Setup) -> dict[str, Any]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from convoy.input_pipeline.tf_startup import start_tensorflow

    start_tensorflow()
    import numpy as np
    import tensorflow as tf

    from convoy.trainer.cluster.strategy import cpu_has_bfloat16
    from convoy.trainer.session.description import versions

    gpus = []
    for gpu in tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(gpu)
        capability = tuple(details.get("compute_capability", (0, 0)))
        gpus.append({"name": details.get("device_name", gpu.name), "capability": capability})
    build = tf.sysconfig.get_build_info()
    return {
        "versions": {**versions(), "python": platform.python_version(), "numpy": np.__version__},
        "seen": {
            "gpus": gpus,
            "built_with_cuda": bool(build.get("is_cuda_build")),
            "compiled_for": list(build.get("cuda_compute_capabilities", [])),
            "cpu_bfloat16": cpu_has_bfloat16(),
        },
        "auto": _auto(setup, gpus),
        "resume": _resume(setup),
    }


def _auto(setup: Setup, gpus: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Returns the resolved `auto` fields for this worker's devices; None without a config or the devices."""
    from convoy.trainer.cluster.strategy import cpu_has_bfloat16
    from convoy.trainer.session.runtime import resolve_precision_and_xla_for

    wanted = setup.devices.gpus or tuple(range(len(gpus)))
    on_gpu = setup.devices.kind == "gpu" or (setup.devices.kind == "auto" and bool(gpus))
    if not setup.config or (on_gpu and (not wanted or max(wanted) >= len(gpus))):
        return None
    in_bfloat16 = all(gpus[gpu]["capability"] >= (8, 0) for gpu in wanted) if on_gpu else cpu_has_bfloat16()
    precision, use_xla = resolve_precision_and_xla_for(setup.config, on_gpu=on_gpu, in_bfloat16=in_bfloat16)
    return {"precision": precision, "xla": use_xla}


def _resume(setup: Setup) -> dict[str, Any] | None:
    """Returns `resume` of `start_up`: whether RUN's newest checkpoint fits."""
    from convoy.trainer import config as configs
    from convoy.trainer.checkpoint.checkpoints import CheckpointStore, load_latest_valid
    from convoy.trainer.run.directory import RunDirectory
    from convoy.trainer.session.resume import resumed_config

    if not (setup.workdir and setup.config):
        return None
    found: dict[str, Any] = {"step": None, "choices": {}, "problem": ""}
    run = RunDirectory(setup.workdir)
    try:
        run.check()
    except ConvoyError:
        return None
    try:
        checkpoint = load_latest_valid(CheckpointStore(run.checkpoints, setup.config.keep_checkpoints))
        metadata = checkpoint[1] if checkpoint else None
        if metadata:
            found["step"] = metadata["step"]
            found["choices"] = metadata["config"]
        if setup.data:
            dataset, number = open_dataset(setup.data, setup.record_format), setup.virtual_replicas
            resumed = resumed_config(metadata, setup.config, dataset, run, extend=setup.extend, virtual_replicas=number)
            found["choices"] = configs.to_json(resumed)
    except (ConvoyError, OSError) as error:
        found["problem"] = str(error)
    return found


def _reduce(setup: Setup, cluster: Cluster | None) -> dict[str, Any]:
    import tensorflow as tf

    strategy = make_strategy(
        setup.devices, setup.strategy_name, cluster=cluster, heartbeat_seconds=setup.heartbeat_seconds
    )
    replicas = strategy.num_replicas_in_sync

    def on_a_replica() -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        own = tf.cast(context.replica_id_in_sync_group, tf.float32) + 1.0
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.fill([_REDUCED_FLOATS], own))

    @tf.function(autograph=False)
    def everywhere() -> tf.Tensor:
        return strategy.experimental_local_results(strategy.run(on_a_replica))

    sums = [value.numpy() for value in everywhere()]
    seconds = []
    for _ in range(_TIMED):
        began = time.perf_counter()
        [value.numpy() for value in everywhere()]
        seconds.append(time.perf_counter() - began)
    expected = replicas * (replicas + 1) / 2
    wrong = [float(value) for each in sums for value in (each.min(), each.max()) if value != expected]
    return {
        "replicas": replicas,
        "expected": expected,
        "sum": wrong[0] if wrong else expected,
        "milliseconds": statistics.median(seconds) * 1e3,
    }


def _weights(setup: Setup) -> dict[str, str] | None:
    from convoy.trainer.checkpoint.checkpoints import CheckpointStore
    from convoy.trainer.run.directory import RunDirectory
    from convoy.trainer.session.weights import located_text, published_weights, weights_file

    config = setup.config
    if not config or config.model.weights in ("", "preset"):
        return None
    if setup.workdir and CheckpointStore(RunDirectory(setup.workdir).checkpoints).steps():
        return None
    try:
        if file := published_weights(config):
            text = located_text(config)
            return {"path": text, "problem": unreachable(file) if file.url in text else ""}
        path = weights_file(config.model.weights)
    except ConvoyError as error:
        return {"path": config.model.weights, "problem": str(error)}
    return {"path": path, "problem": "" if os.path.exists(path) else "there is no such file or folder"}


def _checkpoint_bytes(setup: Setup) -> int:
    import tensorflow as tf

    from convoy.trainer.session.runtime import make_runtime

    assert setup.config
    config = setup.config.copy_and_resolve_references()
    config.deterministic = False  # process-wide, and irrelevant to the size
    config.model.weights = ""
    num_classes = open_dataset(setup.data, setup.record_format).num_classes if setup.data else 1000
    runtime = make_runtime(config, tf.distribute.OneDeviceStrategy("CPU:0"), num_classes=num_classes)
    return sum(value.nbytes for value in runtime.state.values().values())
