"""Checks of devices, drivers, versions and resource limits, per worker and across workers.

`driver_gpus` and `read_limits` read the system; the checks are pure functions. Imports no TensorFlow.
"""

import os
import platform
import resource
import string
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convoy.core.devices import Devices
from convoy.core.text import counted, is_count
from convoy.trainer.doctor.findings import DoctorFinding, failed, ok, skipped, warning

_SMI_SECONDS = 30
_DESCRIPTORS = 256  # open in every worker: libraries, event files, TensorFlow's own
_DESCRIPTORS_PER_WORKER = 8  # for the connections to another one
_NCCL_SHARED_MEMORY = 2**30  # what NVIDIA's containers are started with (--shm-size=1g)
_SAME_IN_A_RUN = ("convoy", "tensorflow", "keras")  # a run refuses workers that differ in these


@dataclass(frozen=True)
class Driver:
    """Output of `nvidia-smi`.

    Attributes:
      gpus: name of each GPU; empty if there are none.
      version: driver version.
      problem: why `nvidia-smi` failed; empty on success.
    """

    gpus: tuple[str, ...] = ()
    version: str = ""
    problem: str = ""


@dataclass(frozen=True)
class ResourceLimits:
    """Limits of this process: open files, and size of /dev/shm in bytes (0 if it does not exist)."""

    open_files: int
    shared_memory: int


def driver_gpus() -> Driver:
    """Returns the GPUs and driver version reported by `nvidia-smi`."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=_SMI_SECONDS)
    except FileNotFoundError:
        return Driver(problem="nvidia-smi not found")
    except (OSError, subprocess.TimeoutExpired) as error:
        return Driver(problem=f"nvidia-smi did not respond ({error})")
    if answer.returncode:
        lines = (answer.stdout + answer.stderr).strip().splitlines()
        return Driver(problem=f"nvidia-smi failed: {lines[0] if lines else f'exit code {answer.returncode}'}")
    rows = [line.rpartition(", ") for line in answer.stdout.splitlines() if ", " in line]
    return Driver(tuple(name for name, _, _ in rows), rows[0][2] if rows else "")


def check_driver(driver: Driver, devices: Devices, *, has_device_file: bool) -> DoctorFinding:
    """Checks that the driver works if the host has GPUs or `--devices` requires them."""
    if driver.gpus:
        return ok("GPU driver", "driver-works", f"{driver.version}, {_counted(driver.gpus)}")
    if devices.kind == "gpu" or (has_device_file and devices.kind != "cpu"):
        fix = "Install the NVIDIA driver; start a container with GPUs (docker: --gpus=all)."
        return failed("GPU driver", "driver-missing", driver.problem or "nvidia-smi lists no GPU", fix)
    return skipped("GPU driver", "no-gpu", "no GPU on this host, none requested")


def check_devices(
    devices: Devices, flag: str, driver: Driver, seen: Mapping[str, Any], visible: str | None
) -> tuple[list[DoctorFinding], int]:
    """Compares the GPUs visible to TensorFlow with those of the driver and with `--devices`.

    Args:
      devices: requested devices.
      flag: value of `--devices` as typed.
      driver: driver of this host.
      seen: TensorFlow's view: `gpus` (a list of `name` and `capability`), `built_with_cuda`, `compiled_for`
        (`sm_80`, `compute_90`), `cpu_bfloat16`.
      visible: CUDA_VISIBLE_DEVICES, or None.

    Returns:
      The findings, and the number of usable devices of this worker; 0 if it cannot train.
    """
    gpus, granted = seen["gpus"], granted_gpus(driver, visible)
    if devices.kind == "cpu" or (devices.kind == "auto" and not gpus and not granted):
        logical = counted(devices.count, "logical CPU device")
        computes = "with bfloat16" if seen["cpu_bfloat16"] else "without bfloat16: float32"
        return [ok("devices", "cpu-devices", f"{logical} on this CPU, {computes}")], devices.count
    findings = []
    if len(gpus) != granted:
        text = f"TensorFlow sees {len(gpus)} of {counted(granted, 'GPU')} listed by nvidia-smi"
        if visible is not None:
            text += f" and left by CUDA_VISIBLE_DEVICES={visible}"
        if not seen["built_with_cuda"] and platform.machine() == "aarch64":
            fix = "TensorFlow's wheels for Arm have no CUDA. Use the TensorFlow of NVIDIA's container."
        elif not seen["built_with_cuda"]:
            fix = "This TensorFlow is built without CUDA. Run `pip install 'convoy-train[cuda]'`."
        else:
            fix = "Run `pip install 'convoy-train[cuda]'`; the driver must support its CUDA version."
        findings.append(failed("devices", "gpus-not-visible", f"{text}.", fix))
    wanted = devices.gpus or tuple(range(len(gpus)))
    missing = [gpu for gpu in wanted if gpu >= len(gpus)]
    if missing:
        text = f"--devices={flag}: TensorFlow sees {counted(len(gpus), 'GPU')}, numbered from 0."
        findings.append(failed("devices", "gpu-index-out-of-range", text, "Pass existing GPUs, or omit --devices."))
    elif not wanted and not findings:
        text = f"--devices={flag}: no GPU found."
        findings.append(failed("devices", "no-gpu", text, "Pass --devices=cpu:N, or auto."))
    if missing or not wanted:
        return findings, 0
    findings += [unfit for gpu in wanted if (unfit := _check_capability(gpus[gpu], seen["compiled_for"]))]
    return findings or [ok("devices", "gpu-devices", _counted([gpus[gpu]["name"] for gpu in wanted]))], len(wanted)


def check_counts(counts: Mapping[int, int], names: Sequence[str]) -> list[DoctorFinding]:
    """Compares the device counts of the workers, given their counts and names by rank."""
    first, number = min(counts.items())
    for rank, count in sorted(counts.items()):
        if count != number:
            text = (
                f"{counted(number, 'device')} on {names[first]}, {count} on {names[rank]}. All workers need the same "
                "number."
            )
            fix = "Pass the same --devices on each worker."
            return [failed("devices", "device-counts-differ", text, fix, of_all=True)]
    return []


def check_versions(versions: Mapping[int, Mapping[str, str]], names: Sequence[str]) -> list[DoctorFinding]:
    """Compares the software versions of the workers, given their versions by package and their names, by rank."""
    if not versions:
        return []
    (first_rank, first), *others = sorted(versions.items())
    fix = "Install the same version on all workers."
    findings = []
    for package, version in first.items():
        rank = next((rank for rank, other in others if other[package] != version), None)
        if rank is not None:
            text = f"{package} {version} on {names[first_rank]}, {versions[rank][package]} on {names[rank]}."
            level = failed if package in _SAME_IN_A_RUN else warning
            findings.append(level("versions", "versions-differ", text, fix, of_all=True))
    text = ", ".join(f"{package} {version}" for package, version in first.items())
    return findings or [ok("versions", "versions-agree", text, of_all=True)]


def read_limits() -> ResourceLimits:
    """Returns the limits of this process."""
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if open_files == resource.RLIM_INFINITY:
        open_files = 2**31
    try:
        shared = os.statvfs("/dev/shm")
    except OSError:
        return ResourceLimits(open_files, 0)
    return ResourceLimits(open_files, shared.f_blocks * shared.f_frsize)


def check_limits(limits: ResourceLimits, *, num_workers: int, num_shards: int, gpus: int) -> list[DoctorFinding]:
    """Checks that the resource limits are high enough.

    Args:
      limits: limits of this process.
      num_workers: number of workers of the run.
      num_shards: number of shards of the training split; 0 if unknown.
      gpus: number of GPUs of this worker; 0 on CPUs, which do not use NCCL.
    """
    findings = []
    needed = _DESCRIPTORS + _DESCRIPTORS_PER_WORKER * num_workers + num_shards
    if limits.open_files < needed:
        text = f"{limits.open_files} open files allowed (ulimit -n); about {needed} may be needed."
        fix = f"Run `ulimit -n {2 * needed}` before the start."
        findings.append(warning("limits", "too-few-open-files", text, fix))
    summary = f"{limits.open_files} open files"
    if gpus and limits.shared_memory < _NCCL_SHARED_MEMORY:
        text = f"/dev/shm has {limits.shared_memory / 2**20:.0f} MiB, which may be too small for NCCL."
        fix = "docker: --shm-size=1g; Kubernetes: mount an emptyDir with medium Memory at /dev/shm."
        findings.append(warning("limits", "small-shared-memory", text, fix))
    elif gpus:
        summary += f", {limits.shared_memory / 2**30:.1f} GiB of /dev/shm"
    return findings or [ok("limits", "limits-suffice", summary)]


def granted_gpus(driver: Driver, visible: str | None) -> int:
    """Returns the number of driver GPUs in CUDA_VISIBLE_DEVICES; CUDA ignores entries after an invalid one."""
    if visible is None:
        return len(driver.gpus)
    names = [name.strip() for name in visible.split(",")]
    good = [is_count(name) or name.startswith(("GPU-", "MIG-")) for name in names]
    count = good.index(False) if False in good else len(good)
    return min(count, len(driver.gpus))


def _check_capability(gpu: Mapping[str, Any], compiled_for: Sequence[str]) -> DoctorFinding | None:
    """Returns a failure if TensorFlow is not built for the architecture of a GPU.

    The driver could compile PTX of an earlier architecture, but TensorFlow's operations fail that way on Blackwell
    (tensorflow/tensorflow#99592, #101746).
    """
    major, minor = gpu["capability"]
    newest = (0, 0)
    for target in compiled_for:
        kind, _, number = target.partition("_")
        number = number.rstrip(string.ascii_letters)  # sm_90a
        of = (int(number[:-1]), int(number[-1]))
        if kind in ("sm", "compute") and of[0] == major and of[1] <= minor:
            return None
        newest = max(newest, of)
    text = (
        f"{gpu['name']} has compute capability {major}.{minor}; this TensorFlow is built for {', '.join(compiled_for)}."
    )
    if (major, minor) > newest:
        fix = (
            "Use a TensorFlow that is built for it, such as that of NVIDIA's container, another GPU, or --devices=cpu."
        )
        return failed("devices", "gpu-too-new", text, fix)
    return failed("devices", "gpu-too-old", text, "Use another GPU, or --devices=cpu.")


def _counted(names: Sequence[str]) -> str:
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
