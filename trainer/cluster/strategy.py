"""The `tf.distribute` strategy for `--devices`, `--strategy` and a cluster, and device capabilities.

devices = parse_devices("cpu:2")
strategy = make_strategy(devices, "auto")     # starts TensorFlow, unless it was used before
"""

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from convoy.core.cluster import Cluster, host_and_port
from convoy.core.devices import Devices, check_strategy
from convoy.core.errors import UsageError
from convoy.core.processes import usable_cores
from convoy.core.text import counted
from convoy.trainer.cluster.ports import listening_socket, port_problem
from convoy.trainer.cluster.proxies import bypass_proxies
from convoy.trainer.cluster.rendezvous import PortTakenError

if TYPE_CHECKING:
    import tensorflow as tf

_RESTART = "Restart Python (in a notebook: the kernel), and make this the first use of TensorFlow"


def make_strategy(
    devices: Devices, name: str = "auto", *, cluster: Cluster | None = None, heartbeat_seconds: float = 30.0
) -> "tf.distribute.Strategy":
    """Configures TensorFlow's devices and returns the strategy over them.

    The first use of TensorFlow in a process fixes its devices: afterwards a strategy takes those that exist.

    Args:
      devices: devices of this process, from `parse_devices`.
      name: one of `STRATEGIES`; `auto` is `multi_worker` in a cluster, otherwise `one_device` for one device and
        `mirrored` for several.
      cluster: workers of the run; None for a single process.
      heartbeat_seconds: silence after which a worker counts as lost.

    Raises:
      UsageError: a GPU does not exist, `one_device` is used with several devices, the strategy does not fit the
        cluster, or TensorFlow was used before, with other devices.
      PortTakenError: this worker's port is taken.
    """
    import tensorflow as tf

    check_strategy(name, cluster)
    found = tf.config.list_physical_devices("GPU")
    if devices.kind == "cpu" or (devices.kind == "auto" and not found):
        names = _cpus(devices.count)
    else:
        wanted = devices.gpus or tuple(range(len(found)))
        missing = [gpu for gpu in wanted if gpu >= len(found)]
        if missing or not wanted:
            raise UsageError(
                f"--devices=gpu{':' if wanted else ''}{','.join(map(str, wanted))}: TensorFlow sees "
                f"{counted(len(found), 'GPU')}. Omit --devices to use all devices; `nvidia-smi` lists the GPUs that "
                "the driver sees."
            )
        names = _gpus([found[gpu] for gpu in wanted], or_fewer=devices.kind == "auto") or _cpus(devices.count)
    if cluster:
        return _multi_worker(cluster, tuple(names), heartbeat_seconds)
    if name == "one_device" and len(names) > 1:
        raise UsageError(f"--strategy=one_device with {len(names)} devices. Pass one device, or --strategy=mirrored.")
    if name == "mirrored" or len(names) > 1:
        return tf.distribute.MirroredStrategy(names)
    return tf.distribute.OneDeviceStrategy(names[0])


def count_devices(devices: Devices) -> tuple[str, int]:
    """Returns `CPU` or `GPU`, and the number of devices of a strategy, without using them."""
    import tensorflow as tf

    found = len(tf.config.list_physical_devices("GPU"))
    if devices.kind == "cpu" or (devices.kind == "auto" and not found):
        return "CPU", devices.count
    return "GPU", len(devices.gpus) or found


@functools.cache  # TensorFlow's server cannot be started twice in a process, which may train several runs
def _multi_worker(cluster: Cluster, names: tuple[str, ...], heartbeat_seconds: float) -> "tf.distribute.Strategy":
    import tensorflow as tf

    from convoy.trainer.tf_compat.internals import cpu_devices_of_a_worker, set_heartbeat, sigterm_kept

    bypass_proxies(cluster)
    tasks: dict[str, list[str]] = {}
    for (job, _), address in zip(cluster.jobs, cluster.addresses, strict=True):
        tasks.setdefault(job, []).append(address)
    job, index = cluster.jobs[cluster.index]
    spec = tf.train.ClusterSpec(tasks)
    on_gpu = names[0].startswith("GPU")
    set_heartbeat(spec, heartbeat_seconds=heartbeat_seconds, register_seconds=2 * heartbeat_seconds)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        spec, task_type=job, task_id=index, num_accelerators={"GPU": len(names) if on_gpu else 0}, rpc_layer="grpc"
    )
    # TensorFlow's default between workers is its gRPC ring, even on GPUs.
    library = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(implementation=library.NCCL if on_gpu else library.AUTO)
    try:
        with sigterm_kept(), cpu_devices_of_a_worker(1 if on_gpu else len(names)):
            return tf.distribute.MultiWorkerMirroredStrategy(resolver, options)
    except tf.errors.UnknownError as error:  # what its server ends with if it cannot listen
        _, port = host_and_port(cluster.addresses[cluster.index])
        try:
            listening_socket(port).close()
        except OSError as problem:
            raise PortTakenError(f"{cluster.name(cluster.index)}: {port_problem(port, problem)}.") from error
        raise


def set_cpu_threads(count: int) -> None:
    """Sets the number of intra-op CPU threads, which the first use of TensorFlow in a process fixes.

    oneDNN and Eigen split sums among the threads, so a deterministic run needs the same number everywhere.

    Raises:
      UsageError: TensorFlow was used before, with another number.
    """
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(count)
    except RuntimeError:  # it was used before
        chosen = tf.config.threading.get_intra_op_parallelism_threads()
        in_use = chosen or int(os.environ.get("TF_NUM_INTRAOP_THREADS") or usable_cores())
        if in_use != count:
            raise UsageError(
                f"config.deterministic_threads={count}: TensorFlow already uses {in_use} threads in this process. "
                f"{_RESTART}."
            ) from None


def _cpus(count: int) -> list[str]:
    """Returns the names of `count` logical CPU devices, and hides the GPUs, if TensorFlow was not used before."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_visible_devices([], "GPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:
        if (existing := len(tf.config.list_logical_devices("CPU"))) < count:
            raise UsageError(
                f"--devices=cpu:{count}: TensorFlow already runs in this process, with "
                f"{counted(existing, 'logical CPU device')}. {_RESTART}."
            ) from None
    return [f"CPU:{index}" for index in range(count)]


def _gpus(wanted: "list[tf.config.PhysicalDevice]", *, or_fewer: bool) -> list[str]:
    """Returns the names of these GPUs, and hides the others, if TensorFlow was not used before.

    Otherwise it uses some GPUs, and `or_fewer` is whether those among them are enough.
    """
    import tensorflow as tf

    try:
        tf.config.set_visible_devices(wanted, "GPU")
        for gpu in wanted:
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError:
        pass  # it was used before: what it uses stays as it is
    visible = tf.config.get_visible_devices("GPU")
    hidden = [gpu.name.rpartition(":")[2] for gpu in wanted if gpu not in visible]
    if hidden and not or_fewer:
        raise UsageError(
            f"--devices=gpu:{','.join(hidden)}: TensorFlow already runs in this process, without "
            f"{'this GPU' if len(hidden) == 1 else 'these GPUs'}. {_RESTART}."
        )
    return [f"GPU:{visible.index(gpu)}" for gpu in wanted if gpu in visible]


def runs_on_gpu(strategy: "tf.distribute.Strategy") -> bool:
    """Whether the strategy's devices are GPUs."""
    return "GPU" in strategy.extended.worker_devices[0]


def peak_gpu_memory() -> int:
    """Returns the peak memory of this process's GPUs in bytes, the maximum over GPUs."""
    import tensorflow as tf

    gpus = range(len(tf.config.list_logical_devices("GPU")))
    return max(tf.config.experimental.get_memory_info(f"GPU:{gpu}")["peak"] for gpu in gpus)


def computes_in_bfloat16(strategy: "tf.distribute.Strategy") -> bool:
    """Whether every device multiplies bfloat16 in hardware: compute capability 8.0, AVX512-BF16 or AMX."""
    import tensorflow as tf

    if runs_on_gpu(strategy):
        details = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.get_visible_devices("GPU")]
        return all(detail.get("compute_capability", (0, 0)) >= (8, 0) for detail in details)
    return cpu_has_bfloat16()


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU multiplies bfloat16 in hardware, by the flags that Linux reports; False where it reports none."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags
