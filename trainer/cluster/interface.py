"""Which network the workers' TensorFlow traffic takes, where hosts have several: `--interface=ib0` or `=10.1.0.0/16`.

    cluster = over_interface(cluster, peers, "10.1.0.0/16")     # the same workers and ports, other addresses

The addresses that a cluster is described with serve to meet. Then each worker looks up its own IPv4 address on the
interface or in the network, tells it to the others, and TensorFlow gets those. Imports no TensorFlow.
"""

import fcntl
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Mapping
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
    """Returns this host's network interfaces that have an IPv4 address, each with its first.

    Raises:
      UsageError: not on Linux.
    """
    if sys.platform != "linux":
        raise UsageError(f"--interface works on Linux, and this is {sys.platform}: leave it out.")
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            request = struct.pack(f"{_REQUEST_BYTES}s", name.encode()[:_LONGEST_NAME])
            try:
                answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, request)
            except OSError:  # it has none
                continue
            found.append(Interface(name, socket.inet_ntoa(answer[_ADDRESS_AT : _ADDRESS_AT + 4])))
    return found


def choose(wanted: str, interfaces: list[Interface]) -> Interface:
    """Returns the interface that `--interface` means.

    Args:
      wanted: an interface's name, or a network as `10.1.0.0/16`.
      interfaces: of this host.

    Raises:
      UsageError: none fits; names those that are there. Or it is no network.
    """
    if "/" not in wanted:
        fitting = [interface for interface in interfaces if interface.name == wanted]
    else:
        try:
            network = ipaddress.IPv4Network(wanted, strict=False)
        except ValueError:
            raise UsageError(
                f"--interface={wanted} is no IPv4 network: give one as 10.1.0.0/16, or a name as ib0."
            ) from None
        fitting = [interface for interface in interfaces if ipaddress.IPv4Address(interface.address) in network]
    if not fitting:
        there = ", ".join(f"{name} {address}" for name, address in interfaces) + " (the first address of each)"
        raise UsageError(
            f"--interface={wanted} is none of its interfaces with an IPv4 address: {there}. "
            "Give the name of one, or a network that every worker has an address in."
        )
    return fitting[0]


def over_interface(cluster: Cluster | None, worker_group: WorkerGroup, wanted: str) -> Cluster | None:
    """Returns the cluster with the workers' addresses on an interface. Call it on all workers, once they have met.

    NCCL is told the interface too, unless `NCCL_SOCKET_IFNAME` is set already.

    Args:
      cluster: as it was found; None for a process that is alone, for which there is nothing to do.
      worker_group: the workers.
      wanted: `--interface`; nothing for the addresses as they are. Names may differ from worker to worker.

    Raises:
      UsageError: a worker has no such interface, two would have one address, or not all were given the flag. The same
        on all workers.
    """
    if not cluster:
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
        raise UsageError(f"{worker_group.address(without[0])} was started without --interface: give it to all workers.")
    moved = with_addresses(cluster, {rank: other["address"] for rank, other in enumerate(gathered)}, wanted)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={own['name']}")  # `=`: this name, not all that begin with it
    return moved


def with_addresses(cluster: Cluster, by_rank: Mapping[int, str], wanted: str) -> Cluster:
    """Returns the cluster with other hosts' addresses and the same ports.

    Raises:
      UsageError: two workers would have the same address and port.
    """
    addresses = [f"{by_rank[rank]}:{old.rpartition(':')[2]}" for rank, old in enumerate(cluster.addresses)]
    for rank, address in enumerate(addresses):
        first = addresses.index(address)
        if first != rank:
            raise UsageError(
                f"--interface={wanted} gives worker {first} ({cluster.addresses[first]}) and worker {rank} "
                f"({cluster.addresses[rank]}) the same address {address}: choose one that is its own on each host."
            )
    return replace(cluster, addresses=tuple(addresses))
