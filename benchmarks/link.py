"""Two network namespaces on this machine, connected by a link with a chosen rate, to validate the cost model.

    with rate_limited_link(100) as ends:             # Mbit/s
        subprocess.run([*ends[0].prefix, "ping", "-c1", ends[1].address])

The link is a veth pair, and `tc tbf` limits both directions. The namespaces have no names: each exists as long as a
process in it, and the first process exits when its standard input closes. Nothing is left behind, however this process
ends.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

from convoy.core.errors import UsageError

_ADDRESSES = ("192.0.2.1", "192.0.2.2")  # reserved for documentation (RFC 5737), and visible in the namespaces only
_DEVICE = "convoy"
_TOOLS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}
# A token bucket lets this much pass at once after each pause: the kernel's largest segment, 64 KiB, which it would
# otherwise have to split, and little compared to the megabytes of a model.
_BURST_BYTES = 66_000
# Packets that wait longer are dropped, as in a switch.
_QUEUE_MILLISECONDS = 50


class End(NamedTuple):
    """One end of a link.

    Attributes:
      address: IP address of its device.
      prefix: command prefix that executes a command there, replacing itself.
    """

    address: str
    prefix: tuple[str, ...]


@contextlib.contextmanager
def rate_limited_link(megabits_per_second: float | None) -> Iterator[tuple[End, End]]:
    """Creates the link, and removes it on exit.

    Args:
      megabits_per_second: rate in each direction; None for no limit.

    Raises:
      UsageError: insufficient privileges, or a tool is missing.
    """
    _check_tools()
    with contextlib.ExitStack() as stack:
        holders = [stack.enter_context(_namespace()) for _ in _ADDRESSES]
        first, second = (str(holder.pid) for holder in holders)
        _run("ip", "link", "add", _DEVICE, "netns", first, "type", "veth", "peer", "name", _DEVICE, "netns", second)
        ends = []
        for holder, address in zip(holders, _ADDRESSES, strict=True):
            prefix = ("nsenter", f"--net=/proc/{holder.pid}/ns/net", "--")
            _run(*prefix, "ip", "address", "add", f"{address}/30", "dev", _DEVICE)
            for device in ("lo", _DEVICE):
                _run(*prefix, "ip", "link", "set", device, "up")
            if megabits_per_second is not None:
                limit = ("rate", f"{megabits_per_second:g}mbit", "burst", f"{_BURST_BYTES}b")
                queue = ("latency", f"{_QUEUE_MILLISECONDS}ms")
                _run(*prefix, "tc", "qdisc", "add", "dev", _DEVICE, "root", "tbf", *limit, *queue)
            ends.append(End(address, prefix))
        yield ends[0], ends[1]


@contextlib.contextmanager
def _namespace() -> Iterator[subprocess.Popen]:
    """Starts the first process of a namespace, `cat`, which waits until its input closes."""
    command = ["unshare", "--net", "sh", "-c", "echo made; exec cat"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as holder:
        if holder.stdout.readline() != "made\n":
            raise UsageError(f"--link: cannot create a network namespace ({holder.stderr.read().strip()}).")
        try:
            yield holder
        finally:
            holder.stdin.close()


def _check_tools() -> None:
    if os.geteuid() != 0:
        raise UsageError("--link creates network namespaces, which requires root. Run as root, or omit --link.")
    for tool, package in _TOOLS.items():
        if not shutil.which(tool):
            raise UsageError(f"--link requires `{tool}` from the package {package}. Install it, or omit --link.")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"--link: `{' '.join(command)}` failed: {done.stderr.strip()}")
