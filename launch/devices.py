"""Which cores and GPUs of this machine each worker gets."""

import os
import subprocess
from collections.abc import Mapping, Sequence

from convoy.core.errors import UsageError
from convoy.launch.trainer_command import flag_value

_SECONDS_TO_LIST_GPUS = 30


def cores_by_worker(processes: int) -> list[frozenset[int]]:
    """Returns the cores of each worker: as many for each, and none twice.

    Empty sets mean all cores: for one worker, for more workers than cores, and where processes cannot be held to cores.
    """
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    share = len(usable) // processes
    if processes == 1 or share == 0:
        return [frozenset()] * processes
    return [frozenset(usable[rank * share : (rank + 1) * share]) for rank in range(processes)]


def gpus_by_worker(
    processes: int, command: Sequence[str], environment: Mapping[str, str], *, asked_as: str = ""
) -> list[str] | None:
    """Returns CUDA_VISIBLE_DEVICES of each worker, or None where it stays as it is.

    Args:
      processes: number of workers.
      command: the trainer's, whose `--devices=cpu` wants no GPU.
      environment: of the launcher; its CUDA_VISIBLE_DEVICES is what there is to share out.
      asked_as: how a person gave that number; `--processes=N` where left out.

    Raises:
      UsageError: the GPUs cannot be shared out evenly.
    """
    if processes == 1 or (flag_value(command, "devices") or "").startswith("cpu"):
        return None
    gpus = visible_gpus(environment.get("CUDA_VISIBLE_DEVICES"))
    if not gpus:
        return None
    if len(gpus) % processes:
        asked_as = asked_as or f"--processes={processes}"
        raise UsageError(
            f"{asked_as} does not divide the {len(gpus)} GPUs of this machine ({','.join(gpus)}). "
            "Give a number that does, choose GPUs with CUDA_VISIBLE_DEVICES, or train with --devices=cpu."
        )
    share = len(gpus) // processes
    return [",".join(gpus[rank * share : (rank + 1) * share]) for rank in range(processes)]


def visible_gpus(variable: str | None) -> list[str]:
    """Returns the GPUs that programs here may use, by number or UUID; `variable` is CUDA_VISIBLE_DEVICES or None."""
    if variable is not None and (not variable.strip() or variable.strip().startswith("-")):
        return []
    installed = _installed_gpus()
    if variable is None or not installed:
        return [str(number) for number in range(installed)]
    names = [name.strip() for name in variable.split(",")]
    # CUDA ignores what follows the first that is not there.
    bad = next((i for i, name in enumerate(names) if not name or name.startswith("-")), len(names))
    return names[:bad]


def _installed_gpus() -> int:
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=_SECONDS_TO_LIST_GPUS
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines()) if listing.returncode == 0 else 0
