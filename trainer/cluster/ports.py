"""A worker's TCP port: listening on it, and the process that holds it.

    try:
        listening_socket(2222).close()
    except OSError as error:
        print(port_problem(2222, error))       # "port 2222 is in use by nginx (process 17)"

Imports no TensorFlow.
"""

import contextlib
import errno
import os
import socket
from pathlib import Path

_LISTEN_STATE = "0A"  # include/net/tcp_states.h


def listening_socket(port: int, backlog: int = 128) -> socket.socket:
    """Returns a socket that listens on all interfaces, for IPv4 and IPv6 where the host has both.

    Raises:
      OSError: the port cannot be used.
    """
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise
    return socket.create_server(("", port), backlog=backlog)


def port_problem(port: int, error: OSError) -> str:
    """Returns why a port cannot be used, with the process that uses it if this user may know."""
    if error.errno == errno.EACCES:
        return f"port {port} is reserved for root. Choose a port of 1024 or above"
    if error.errno != errno.EADDRINUSE:
        return f"cannot listen on port {port} ({error.strerror})"
    return f"port {port} is in use by {_holder(port) or 'another process'}. End that process, or choose another port"


def _holder(port: int) -> str:
    """Returns `NAME (process PID)` of the process that listens on a port; empty if unknown."""
    wanted = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for process in Path("/proc").glob("[0-9]*") if wanted else ():
        with contextlib.suppress(OSError):  # ended, or another user's
            if any(os.readlink(descriptor) in wanted for descriptor in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text(errors='replace').strip()!r} (process {process.name})"
    return ""


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                _, local, _, state, *rest = line.split()
                if state == _LISTEN_STATE and int(local.rpartition(":")[2], 16) == port:
                    inodes.add(rest[5])
    return inodes
