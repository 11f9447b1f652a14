import socket
from pathlib import Path

import pytest

from convoy.launch.ports import reserved_ports


def test_reserved_ports_are_different_and_bound_until_released():
    with reserved_ports(5) as ports:
        assert len(set(ports)) == 5
        with socket.socket() as other, pytest.raises(OSError):
            other.bind(("127.0.0.1", ports[0]))
    with socket.socket() as other:
        other.bind(("127.0.0.1", ports[0]))


def test_reserved_ports_are_outside_the_ephemeral_range():
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    if first > 20000:
        with reserved_ports(20) as ports:
            assert not [port for port in ports if first <= port <= last]
