"""Memory available to this process and used by it, from /proc, control groups and resource limits."""

import logging
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from convoy.core.errors import UsageError
from convoy.core.text import megabytes

# By cgroup version: the files of limit and usage, and the line of memory.stat with reclaimable memory, which counts as
# used.
_CGROUP_FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


_TENSORFLOW_BYTES = 2**31  # of address space: 1.5 GB for its libraries, and the stacks and heaps of its threads

_logger = logging.getLogger("convoy")


def check_address_space() -> None:
    """Logs a limit of this process's address space: TensorFlow ends with an abort where it is too low.

    Raises:
      UsageError: TensorFlow cannot even be imported.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return
    what = f"ulimit -v {limit // 1024}: this process may reserve {megabytes(limit)} of memory"
    if limit < _TENSORFLOW_BYTES:
        raise UsageError(
            f"{what}, and TensorFlow needs at least {megabytes(_TENSORFLOW_BYTES)} to start. Run it from a shell "
            "without this limit, or raise it."
        )
    _logger.warning("%s. If TensorFlow aborts or fails to allocate memory, raise this limit.", what)


def available_memory(root: Path = Path("/")) -> int:
    """Returns the bytes that this process can allocate, limited by the machine and by all its cgroups (v1 or v2).

    Outside Linux: half of the machine's memory.

    Args:
      root: folder that contains `proc` and `sys`.
    """
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return max(0, min([free, *_free_in_cgroups(root)]))


def _free_in_cgroups(root: Path) -> Iterator[int]:
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version = 1 if controllers else 2
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        # Limits of parent groups apply too. In a container the path may be the host's; then only the root exists.
        for part in (path, *map(str, PurePosixPath(path).parents)):
            free = _free_in(top / part.lstrip("/"), *_CGROUP_FILES[version])
            if free is not None:
                yield free


def _free_in(folder: Path, limit_file: str, use_file: str, reclaimable: str) -> int | None:
    try:
        limit, used = (int((folder / name).read_text(encoding="ascii")) for name in (limit_file, use_file))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):  # `max`: no limit
        return None
    return limit - used + int(stat.get(reclaimable, 0))


def peak_memory() -> int:
    """Returns this process's peak resident memory in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_memory() -> int:
    """Returns this process's resident memory in bytes; its peak where the system has only that."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return peak_memory()
    return pages * resource.getpagesize()
