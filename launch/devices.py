"""Assignment of this machine's cores and GPUs to workers."""

import os
import subprocess
from collections.abc import Mapping, Sequence

from convoy.core.errors import UsageError
from convoy.core.text import counted
from convoy.launch.trainer_command import OTHER_CLUSTERS, flag_value

_LIST_GPUS_TIMEOUT_SECONDS = 30


def cores_by_worker(processes: int) -> list[frozenset[int]]:
    """Returns the cores of each worker: disjoint sets of equal size.

    Empty sets mean all cores: with one worker, with more workers than cores, and on systems without CPU affinity.
    """
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    share = len(usable) // processes
    if processes == 1 or share == 0:
        return [frozenset()] * processes
    return [frozenset(usable[rank * share : (rank + 1) * share]) for rank in range(processes)]


def gpus_by_worker(
    processes: int, command: Sequence[str], environment: Mapping[str, str], *, asked_as: str = ""
) -> list[str] | None:
    """Returns CUDA_VISIBLE_DEVICES of each worker, or None to leave it unchanged.

    Args:
      processes: number of workers.
      command: the trainer's; with `--devices=cpu` no GPUs are assigned.
      environment: the launcher's; its CUDA_VISIBLE_DEVICES limits the GPUs to assign.
      asked_as: how the user gave `processes`, for the error message; default `--processes=N`.

    Raises:
      UsageError: the GPUs cannot be divided evenly.
    """
    gpus = usable_gpus(command, environment) if processes > 1 else []
    if not gpus:
        return None
    share = gpus_per_worker(
        len(gpus),
        processes,
        asked_as=asked_as or f"--processes={processes}",
        available=f"the {counted(len(gpus), 'GPU')} of this machine ({','.join(gpus)})",
        or_else=", choose GPUs with CUDA_VISIBLE_DEVICES, or train with --devices=cpu",
    )
    return [",".join(gpus[rank * share : (rank + 1) * share]) for rank in range(processes)]


def worker_environments(
    environment: Mapping[str, str], processes: int, *, gpus: Sequence[str] | None, one_thread: bool
) -> list[dict[str, str]]:
    """Returns the environment of each worker, as far as it is the same in all attempts.

    Args:
      environment: environment of the process that starts them.
      processes: number of workers.
      gpus: see `gpus_by_worker`.
      one_thread: whether each computes with one thread, unless `environment` requests another number.
    """
    common = {name: value for name, value in environment.items() if name not in OTHER_CLUSTERS}
    if one_thread:
        common = {"TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1", **common}
    return [{**common, **({"CUDA_VISIBLE_DEVICES": gpus[rank]} if gpus else {})} for rank in range(processes)]


def gpus_per_worker(gpus: int, processes: int, *, asked_as: str, available: str, or_else: str = "") -> int:
    """Returns how many GPUs each worker of one host gets.

    Args:
      gpus: number of GPUs on the host.
      processes: number of workers on the host.
      asked_as: how the user gave `processes`: `--processes=3`.
      available: the GPUs, for the error message: `--gpus_per_node=8`.
      or_else: other ways out, for the error message.

    Raises:
      UsageError: the GPUs cannot be divided evenly.
    """
    if gpus % processes:
        divisors = [str(number) for number in range(1, gpus + 1) if gpus % number == 0]
        raise UsageError(f"{asked_as} does not divide {available}. Give a divisor ({', '.join(divisors)}){or_else}.")
    return gpus // processes


def usable_gpus(command: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Returns the GPUs, by number or UUID, that the trainer's `command` may use."""
    if (flag_value(command, "devices") or "").startswith("cpu"):
        return []
    variable = environment.get("CUDA_VISIBLE_DEVICES")
    if variable is not None and (not variable.strip() or variable.strip().startswith("-")):
        return []
    installed = _installed_gpus()
    if variable is None or not installed:
        return [str(number) for number in range(installed)]
    names = [name.strip() for name in variable.split(",")]
    # CUDA ignores everything from the first invalid entry on.
    bad = next((i for i, name in enumerate(names) if not name or name.startswith("-")), len(names))
    return names[:bad]


def _installed_gpus() -> int:
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=_LIST_GPUS_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines()) if listing.returncode == 0 else 0
