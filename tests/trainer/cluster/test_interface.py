"""Choosing a network: what a host has, what the flag means, and the workers that tell each other."""

import os
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from convoy.core.cluster import Cluster
from convoy.core.errors import UsageError
from convoy.launch.ports import reserved_ports
from convoy.trainer.cluster import interface as interfaces
from convoy.trainer.cluster.interface import Interface, choose, over_interface, own_interfaces, with_hosts
from convoy.trainer.cluster.transport import loopback_note
from convoy.trainer.cluster.worker_group import WorkerGroup

HAS = [Interface("lo", "127.0.0.1"), Interface("eth0", "192.168.4.7"), Interface("ib0", "10.1.3.7")]


def cluster(rank=0, addresses=("a:2222", "b:2223")):
    return Cluster(tuple(addresses), rank, "flags", tuple(("worker", number) for number in range(len(addresses))))


@pytest.mark.parametrize("wanted", ["ib0", "10.1.0.0/16", "10.1.3.7/16", "10.1.3.7/32"])
def test_interface_by_name_or_network(wanted):
    assert choose(wanted, HAS) == Interface("ib0", "10.1.3.7")


@pytest.mark.parametrize("wanted", ["ib1", "ib", "10.2.0.0/16"])
def test_unknown_interface_lists_available_ones(wanted):
    with pytest.raises(UsageError, match=rf"--interface={wanted}: .*lo 127.0.0.1, eth0 192.168.4.7, ib0 10.1.3.7"):
        choose(wanted, HAS)


def test_invalid_network():
    with pytest.raises(UsageError, match="--interface=10.1/99: "):
        choose("10.1/99", HAS)


def test_this_host_has_the_loopback_interface():
    assert Interface("lo", "127.0.0.1") in own_interfaces()


def test_ports_are_kept():
    assert with_hosts(cluster(), ["10.1.0.1", "10.1.0.2"], "ib0").addresses == ("10.1.0.1:2222", "10.1.0.2:2223")


def test_duplicate_address():
    with pytest.raises(UsageError, match=r"--interface=lo gives worker 0 \(a:1\) and worker 1 \(b:1\) the same"):
        with_hosts(cluster(addresses=("a:1", "b:1")), ["127.0.0.1", "127.0.0.1"], "lo")


def everywhere(interface_of, monkeypatch):
    """Calls `over_interface` on two connected workers and returns the clusters, or the errors."""
    with reserved_ports(2) as ports:
        addresses = tuple(f"127.0.0.1:{port}" for port in ports)

    def worker(rank):
        with WorkerGroup(cluster(rank, addresses), startup_seconds=20) as worker_group:
            worker_group.rendezvous()
            try:
                return over_interface(worker_group, interface_of[rank])
            except UsageError as error:
                return str(error)
            finally:
                worker_group.exchange("done")

    monkeypatch.setattr(interfaces, "own_interfaces", lambda: HAS)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "")  # so that monkeypatch restores it
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(worker, (0, 1))), ports


def test_same_addresses_on_all_workers(monkeypatch):
    (first, second), ports = everywhere(("ib0", "10.1.0.0/16"), monkeypatch)
    assert first.addresses == second.addresses == tuple(f"10.1.3.7:{port}" for port in ports)
    assert (first.index, second.index) == (0, 1)
    assert os.environ["NCCL_SOCKET_IFNAME"] == "=ib0"


def test_worker_without_interface_is_named_on_all(monkeypatch):
    (first, second), ports = everywhere(("ib0", "ib7"), monkeypatch)
    assert first == second
    assert first.startswith(f"worker 1 (127.0.0.1:{ports[1]}): --interface=ib7: ")


def test_no_flag_or_no_cluster(monkeypatch):
    found, ports = everywhere(("", ""), monkeypatch)
    assert [cluster.addresses for cluster in found] == [tuple(f"127.0.0.1:{port}" for port in ports)] * 2
    assert "NCCL_SOCKET_IFNAME" not in os.environ
    assert over_interface(WorkerGroup(None), "ib0") is None


def test_worker_without_flag_is_named_on_all(monkeypatch):
    (first, second), ports = everywhere(("ib0", ""), monkeypatch)
    assert first == second
    assert first.startswith(f"worker 1 (127.0.0.1:{ports[1]}) was started without --interface")


def test_loopback_note_names_host_and_address(monkeypatch):
    def resolve(host, *_, **__):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1" if host == "node1" else "10.0.0.4", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert all(word in loopback_note("node1") for word in ("node1", "127.0.1.1", "/etc/hosts"))
    assert [loopback_note(host) for host in ("node2", "127.0.0.1", "localhost")] == ["", "", ""]
