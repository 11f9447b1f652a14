"""Free ports of this machine that no other process is likely to take before a worker listens on them.

with reserved_ports(2) as ports:
    ...    # the ports stay bound here; leave the block just before starting the workers
"""

import contextlib
import random
import socket
from collections.abc import Iterator
from pathlib import Path

# A worker binds its port only seconds after its start, once TensorFlow is imported. Until then the system may assign
# any port of its ephemeral range to an outgoing connection, so these lie outside of it.
_CANDIDATES = (range(20000, 30000), range(61000, 65536))
_EPHEMERAL_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_TRIES = 200


@contextlib.contextmanager
def reserved_ports(count: int, avoid: set[int] | None = None) -> Iterator[list[int]]:
    """Binds `count` different ports that are free on all interfaces, none of them in `avoid`, and yields them."""
    avoid = set(avoid or ())
    with contextlib.ExitStack() as bound:
        ports = []
        for _ in range(count):
            listener = bound.enter_context(_bound(avoid))
            ports.append(listener.getsockname()[1])
            avoid.add(ports[-1])
        yield ports


def _bound(avoid: set[int]) -> socket.socket:
    ephemeral = _ephemeral_range()
    candidates = [port for ports in _CANDIDATES for port in ports if port not in avoid and port not in ephemeral]
    chosen = random.SystemRandom().sample(candidates, min(_TRIES, len(candidates)))
    for port in chosen:
        with contextlib.suppress(OSError):  # in use
            return _bound_to(port)
    return _bound_to(0)  # the system's choice


def _bound_to(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.bind(("", port))  # TensorFlow's server listens on all interfaces too
    except OSError:
        listener.close()
        raise
    return listener


def _ephemeral_range() -> range:
    try:
        first, last = map(int, _EPHEMERAL_RANGE_FILE.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        first, last = 32768, 60999
    return range(first, last + 1)
