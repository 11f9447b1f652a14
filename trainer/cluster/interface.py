"""Network selection for TensorFlow traffic on hosts with several networks: `--interface=ib0` or `=10.1.0.0/16`.

    cluster = over_interface(worker_group, "10.1.0.0/16")  # same workers and ports, other addresses

The workers rendezvous on the addresses in the cluster description. Each worker then looks up its own IPv4 address on
the interface or in the network and sends it to the others; TensorFlow uses those addresses. Imports no TensorFlow.
"""

import fcntl
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from convoy.core.cluster import Cluster
from convoy.core.errors import UsageError
from convoy.trainer.cluster.worker_group import WorkerGroup

_SIOCGIFADDR = 0x8915  # linux/sockios.h
_REQUEST_BYTES, _ADDRESS_AT = 256, 20  # struct ifreq: the name, then a sockaddr_in whose address is at this byte
_LONGEST_NAME = 15


class Interface(NamedTuple):
    """A network interface and its IPv4 address."""

    name: str
    address: str


def own_interfaces() -> list[Interface]:
    """Returns this host's network interfaces that have an IPv4 address, each with its first address.

    Raises:
      UsageError: not on Linux.
    """
    if sys.platform != "linux":
        raise UsageError(f"--interface: only supported on Linux, not on {sys.platform}. Omit it.")
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            request = struct.pack(f"{_REQUEST_BYTES}s", name.encode()[:_LONGEST_NAME])
            try:
                answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, request)
            except OSError:  # no IPv4 address
                continue
            found.append(Interface(name, socket.inet_ntoa(answer[_ADDRESS_AT : _ADDRESS_AT + 4])))
    return found


def choose(wanted: str, interfaces: list[Interface]) -> Interface:
    """Returns the first interface that matches `--interface`.

    Args:
      wanted: interface name, or a network such as `10.1.0.0/16`.
      interfaces: interfaces of this host.

    Raises:
      UsageError: no interface matches (the message lists those of this host), or the network is invalid.
    """
    if "/" not in wanted:
        fitting = [interface for interface in interfaces if interface.name == wanted]
    else:
        try:
            network = ipaddress.IPv4Network(wanted, strict=False)
        except ValueError:
            raise UsageError(
                f"--interface={wanted}: not an IPv4 network. Pass one such as 10.1.0.0/16, or a name such as ib0."
            ) from None
        fitting = [interface for interface in interfaces if ipaddress.IPv4Address(interface.address) in network]
    if not fitting:
        there = ", ".join(f"{name} {address}" for name, address in interfaces) + " (the first address of each)"
        raise UsageError(
            f"--interface={wanted}: no such interface with an IPv4 address. Available: {there}. "
            "Pass one of these names, or a network in which every worker has an address."
        )
    return fitting[0]


def over_interface(worker_group: WorkerGroup, wanted: str) -> Cluster | None:
    """Returns the cluster with the workers' addresses on an interface; None for a single process.

    All workers must call it, after the rendezvous.

    Also sets `NCCL_SOCKET_IFNAME`, unless it is already set.

    Args:
      worker_group: the workers.
      wanted: value of `--interface`; empty to keep the addresses. Interface names may differ between workers.

    Raises:
      UsageError: a worker has no such interface, two workers would have the same address, or the flag is missing on
        some workers. All workers raise the same error.
    """
    if not (cluster := worker_group.cluster):
        return None
    own = {"wanted": wanted, "name": "", "address": "", "problem": ""}
    if wanted:
        try:
            own["name"], own["address"] = choose(wanted, own_interfaces())
        except UsageError as error:
            own["problem"] = str(error)
    gathered = worker_group.exchange("address", own)
    for rank, other in enumerate(gathered):
        if other["problem"]:
            raise UsageError(f"{worker_group.address(rank)}: {other['problem']}")
    without = [rank for rank, other in enumerate(gathered) if not other["wanted"]]
    if len(without) == len(gathered):
        return cluster
    if without:
        raise UsageError(f"{worker_group.address(without[0])} was started without --interface. Pass it on all workers.")
    moved = with_hosts(cluster, [other["address"] for other in gathered], wanted)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={own['name']}")  # `=`: exact name, not a prefix
    return moved


def with_hosts(cluster: Cluster, hosts: Sequence[str], wanted: str) -> Cluster:
    """Returns the cluster with other hosts, by rank, and the same ports.

    Raises:
      UsageError: two workers would have the same address and port.
    """
    addresses = [f"{host}:{old.rpartition(':')[2]}" for host, old in zip(hosts, cluster.addresses, strict=True)]
    for rank, address in enumerate(addresses):
        first = addresses.index(address)
        if first != rank:
            raise UsageError(
                f"--interface={wanted} gives worker {first} ({cluster.addresses[first]}) and worker {rank} "
                f"({cluster.addresses[rank]}) the same address {address}. "
                "Pass an interface or network with a unique address on each host."
            )
    return replace(cluster, addresses=tuple(addresses))
