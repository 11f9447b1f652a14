"""Free ports of this machine that nobody else is likely to take before a worker listens on them.

with reserved_ports(2) as ports:
    ...    # nobody else gets them here; leave just before the workers start
"""

import contextlib
import random
import socket
from collections.abc import Iterator
from pathlib import Path

# A worker binds its port only seconds after it was started, when TensorFlow is imported. The system hands out ports of
# its own range to every outgoing connection meanwhile, so these lie outside of it.
_CANDIDATES = (range(20000, 30000), range(61000, 65536))
_SYSTEMS_OWN = Path("/proc/sys/net/ipv4/ip_local_port_range")
_TRIES = 200


@contextlib.contextmanager
def reserved_ports(count: int, avoid: set[int] | None = None) -> Iterator[list[int]]:
    """Holds `count` different ports that are free on all interfaces, none of them in `avoid`."""
    avoid = set(avoid or ())
    with contextlib.ExitStack() as held:
        ports = []
        for _ in range(count):
            listener = held.enter_context(_bound(avoid))
            ports.append(listener.getsockname()[1])
            avoid.add(ports[-1])
        yield ports


def _bound(avoid: set[int]) -> socket.socket:
    systems_own = _systems_own()
    candidates = [port for ports in _CANDIDATES for port in ports if port not in avoid and port not in systems_own]
    chosen = random.SystemRandom().sample(candidates, min(_TRIES, len(candidates)))
    for port in chosen:
        with contextlib.suppress(OSError):  # taken
            return _bound_to(port)
    return _bound_to(0)  # any that the system likes


def _bound_to(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.bind(("", port))  # TensorFlow's server listens on all interfaces too
    except OSError:
        listener.close()
        raise
    return listener


def _systems_own() -> range:
    try:
        first, last = map(int, _SYSTEMS_OWN.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        first, last = 32768, 60999
    return range(first, last + 1)
