"""Ports and clocks: real connections on the loopback interface, and what is said of made-up results."""

import contextlib
import os
import socket
import threading
import time
from dataclasses import replace

import pytest

from convoy.core.cluster import Cluster
from convoy.core.finding import Severity
from convoy.launch.ports import reserved_ports
from convoy.trainer.cluster.proxies import bypass_proxies
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.doctor import network
from convoy.trainer.doctor.network import (
    Reached,
    Responder,
    Search,
    check_clocks,
    check_key,
    check_names,
    check_ports,
    check_proxy,
    reach,
)

ADDRESSES = ("a:2222", "b:2222", "c:2222")
NAMES = ("worker 0 (a:2222)", "worker 1 (b:2222)")
GOOD = Reached("", 0.0, 0.002)


@pytest.fixture
def port():
    with reserved_ports(1) as ports:
        pass
    return ports[0]


class TestReaching:
    def test_says_who_answers_and_that_clocks_of_one_machine_agree(self, port):
        with Responder(port, rank=1):
            reached = reach(f"127.0.0.1:{port}", 1)
        assert reached.problem == ""
        assert abs(reached.clock_ahead) < 0.5

    def test_the_port_is_free_at_once_afterwards(self, port):
        with Responder(port, rank=1):
            reach(f"127.0.0.1:{port}", 1)
        with Responder(port, rank=2):
            assert reach(f"127.0.0.1:{port}", 2).problem == ""

    def test_another_worker_is_told(self, port):
        with Responder(port, rank=2):
            assert reach(f"127.0.0.1:{port}", 1).problem == "worker 2 answers there"

    def test_nobody_is_told(self, port):
        assert reach(f"127.0.0.1:{port}", 1).problem == "connection refused"

    def test_another_program_is_told(self):
        with socket.create_server(("127.0.0.1", 0)) as server:

            def answer():
                connection, _ = server.accept()
                with connection:
                    connection.recv(100)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n")

            threading.Thread(target=answer, daemon=True).start()
            assert reach(f"127.0.0.1:{server.getsockname()[1]}", 1).problem == "another program answers there"

    def test_one_that_accepts_and_says_nothing_is_told(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
            assert reach(address, 1, seconds=0.2).problem == "timed out"

    def test_one_that_drips_is_given_up(self):
        with socket.create_server(("127.0.0.1", 0)) as server:

            def answer():
                connection, _ = server.accept()
                with connection, contextlib.suppress(OSError):
                    while True:
                        connection.sendall(b" ")
                        time.sleep(0.01)

            threading.Thread(target=answer, daemon=True).start()
            assert reach(f"127.0.0.1:{server.getsockname()[1]}", 1, seconds=0.3).problem == "timed out"

    def test_a_name_that_nobody_knows_is_told(self):
        assert reach("no.such.host.invalid:1", 1).problem.startswith("the name no.such.host.invalid is not known there")


def test_a_search_that_has_ended_tries_no_more_hosts(monkeypatch):
    tried, trying = [], threading.Event()

    def slow(address, rank, seconds):
        tried.append(rank)
        trying.set()
        assert search._ended.wait(60)
        return Reached("timed out")

    monkeypatch.setattr(network, "reach", slow)
    cluster = Cluster(ADDRESSES, 0, "flags", ())
    with Search(WorkerGroup(cluster), ADDRESSES) as search:
        assert trying.wait(60)
    assert tried == [1]


def test_says_whether_workers_authenticate_each_other():
    cluster = Cluster(ADDRESSES, 0, "flags", ())
    without, with_key = check_key(cluster), check_key(replace(cluster, key="secret"))
    assert (without.severity, without.code) == (Severity.WARNING, "workers-not-authenticated")
    assert (with_key.severity, with_key.code) == (Severity.OK, "workers-authenticated")
    for finding in (without, with_key):
        assert "CONVOY_CLUSTER_KEY" in finding.text and "secret" not in f"{finding}".replace("same secret", "")


class TestProxies:
    @pytest.mark.parametrize("name", ["grpc_proxy", "https_proxy", "http_proxy"])
    def test_is_named_without_its_password(self, monkeypatch, name):
        monkeypatch.setattr(os, "environ", {name: "http://me:password@proxy:3128"})
        finding = check_proxy()
        assert (finding.severity, finding.code) == (Severity.OK, "proxy-bypassed")
        assert name in finding.text and "password" not in finding.text

    @pytest.mark.parametrize("variables", [{}, {"http_proxy": ""}, {"no_proxy": "x"}])
    def test_without_one_nothing_is_said_or_changed(self, monkeypatch, variables):
        monkeypatch.setattr(os, "environ", dict(variables))
        bypass_proxies(Cluster(ADDRESSES, 0, "flags", ()))
        assert check_proxy() is None and os.environ == variables

    @pytest.mark.parametrize(
        ("variables", "kept"),
        [({}, "a"), ({"no_proxy": "x,b"}, "xab"), ({"no_proxy": "x", "no_grpc_proxy": "y"}, "y")],
    )
    def test_workers_are_added_to_the_exceptions_of_grpc_alone(self, monkeypatch, variables, kept):
        variables = {"http_proxy": "http://127.0.0.1:9", **variables}
        monkeypatch.setattr(os, "environ", dict(variables))
        bypass_proxies(Cluster(("a:1", "b:1", "[::1]:1"), 0, "flags", ()))
        assert {*os.environ.pop("no_grpc_proxy").split(",")} == {*kept, "a", "b", "::1"}
        assert os.environ == {name: value for name, value in variables.items() if name != "no_grpc_proxy"}


class TestPorts:
    def test_open_ports_are_counted(self):
        finding = check_ports({0: {1: GOOD, 2: GOOD}, 1: {0: GOOD, 2: GOOD}, 2: {0: GOOD, 1: GOOD}}, ADDRESSES)
        assert (finding.severity, finding.code) == (Severity.OK, "ports-open")
        assert "6 connections" in finding.text

    def test_closed_port_names_pair_direction_and_fix(self):
        finding = check_ports({0: {1: Reached("timed out")}, 1: {0: GOOD}}, ADDRESSES[:2])
        assert (finding.severity, finding.code) == (Severity.ERROR, "ports-closed")
        assert "worker 0 (a:2222) cannot reach worker 1 (b:2222): timed out" in finding.text
        assert "b:2222" in finding.fix and "a:2222" not in finding.fix


class TestClocks:
    @pytest.mark.parametrize(
        ("seconds", "level"),
        [
            (0.02, Severity.OK),
            (-0.9, Severity.OK),
            (2.0, Severity.WARNING),
            (-29, Severity.WARNING),
            (31, Severity.ERROR),
        ],
    )
    def test_severity_by_difference(self, seconds, level):
        finding = check_clocks({0: {1: Reached("", seconds, 0.001)}, 1: {}}, NAMES)
        assert finding.severity == level
        if level != Severity.OK:
            which = "ahead of" if seconds > 0 else "behind"
            assert f"worker 1 (b:2222) is {abs(seconds):.1f} s {which} that of worker 0 (a:2222)" in finding.text

    def test_clock_is_read_in_the_open_direction(self):
        finding = check_clocks({0: {1: Reached("timed out")}, 1: {0: Reached("", 5.0, 0.1)}}, NAMES)
        assert "worker 1 (b:2222) is 5.0 s behind" in finding.text

    def test_that_nobody_could_read_are_not_told(self):
        assert check_clocks({0: {1: Reached("timed out")}, 1: {0: Reached("timed out")}}, NAMES) is None


class TestNames:
    @pytest.fixture
    def names(self, monkeypatch):
        table = {"node1": "127.0.1.1", "node2": "10.0.0.2"}

        def resolve(host, *_, **__):
            if host[0].isdigit():
                return [(0, 0, 0, "", (host, 0))]
            if host not in table:
                raise socket.gaierror(-2, "Name or service not known")
            return [(0, 0, 0, "", (table[host], 0))]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        return lambda *addresses, rank=0: check_names(Cluster(addresses, rank, "flags", ()))

    def test_one_that_cannot_be_resolved_fails(self, names):
        (finding,) = names("node2:1", "nodee:1")
        assert finding.severity is Severity.ERROR
        assert "nodee" in finding.text and "Name or service not known" in finding.text

    def test_another_workers_that_is_a_loopback_address_here_fails(self, names):
        (finding,) = names("node1:1", "node2:1", rank=1)
        assert finding.severity is Severity.ERROR
        assert "node1" in finding.text and "127.0.1.1" in finding.text

    def test_its_own_may_be_as_debian_has_it(self, names):
        (finding,) = names("node1:1", "node2:1", rank=0)
        assert finding.severity is Severity.OK

    def test_a_cluster_on_one_machine_may_be_all_loopback(self, names):
        assert [finding.severity for finding in names("127.0.0.1:1", "127.0.0.1:2")] == [Severity.OK]
        assert [finding.severity for finding in names("node1:1", "node1:2")] == [Severity.OK]
