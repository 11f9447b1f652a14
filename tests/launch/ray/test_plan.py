"""`convoy launch ray` without a cluster: flags, the choice of nodes, and the messages about missing ones."""

import json
import os
import sys

import pytest

from convoy.cli import main
from convoy.core.errors import UsageError
from convoy.launch.agents.connection import Connection, Problem
from convoy.launch.ray import starter as starter_module
from convoy.launch.ray.cluster import Node
from convoy.launch.ray.starter import RayStarter, devices_per_node, node_counts
from convoy.launch.run_files import RunFiles
from convoy.launch.screen import Screen
from convoy.launch.supervisor import StartError

TRAIN = ("--", "train", "--data=data", "--workdir=run")


class TestCommandLine:
    @pytest.fixture(autouse=True)
    def without_ray(self, monkeypatch, tmp_path):
        monkeypatch.setitem(sys.modules, "ray", None)
        monkeypatch.chdir(tmp_path)

    def test_dry_run_prints_the_bundles_and_needs_no_ray(self, capsys, monkeypatch):
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        flags = ("--nodes=2", "--gpus_per_node=8", "--cpus_per_node=16", "--env=SECRET=x", "--dry_run")
        assert main(["convoy", "launch", "ray", *flags, *TRAIN]) == 0
        output = capsys.readouterr().out
        assert json.loads(output) == {
            "address": "10.0.0.1:6379",
            "placement_group": {"strategy": "STRICT_SPREAD", "bundles": [{"CPU": 16, "GPU": 8}] * 2},
            "command": ["convoy", *TRAIN[1:]],
            "variables": ["SECRET"],
            "files": [],
        }
        assert os.listdir() == []

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            ((), ("--nodes",)),
            (("--nodes=0",), ("--nodes=0",)),
            (("--nodes=2", "--min_nodes=3"), ("--min_nodes=3", "--nodes=2")),
            (("--nodes=2",), ("ray", "pip install 'convoy-train[ray]'")),
        ],
    )
    def test_errors_are_one_line_and_leave_no_files(self, capsys, flags, words):
        assert main(["convoy", "launch", "ray", *flags, *TRAIN]) == 2
        errors = capsys.readouterr().err
        assert all(word in errors for word in words) and errors.count("\n") == 1
        assert os.listdir() == []


@pytest.mark.parametrize(
    ("flag", "gpus", "expected"),
    [((), 0, 1), ((), 8, 8), (("--devices=cpu:4",), 8, 4), (("--devices=gpu",), 2, 2), (("--devices=gpu:0,3",), 4, 2)],
)
def test_devices_of_a_node(flag, gpus, expected):
    assert devices_per_node(["train", *flag], gpus) == expected


@pytest.mark.parametrize(
    ("devices", "gpus", "fix"),
    [("gpu", 0, "--gpus_per_node=1"), ("gpu:0,3", 2, "--gpus_per_node=4"), ("tpu", 1, "gpu")],
)
def test_devices_that_a_node_would_not_have_are_refused(devices, gpus, fix):
    with pytest.raises(UsageError, match=f"--devices={devices}.*{fix}"):
        devices_per_node(["train", f"--devices={devices}"], gpus)


@pytest.mark.parametrize(
    ("nodes", "least", "devices", "virtual_replicas", "expected"),
    [(4, 1, 1, 4, [4, 2, 1]), (3, 2, 2, 8, [2]), (2, 2, 3, 8, []), (8, 1, 8, 16, [2, 1])],
)
def test_numbers_of_nodes_divide_the_virtual_replicas(nodes, least, devices, virtual_replicas, expected):
    assert node_counts(nodes, least, devices, virtual_replicas) == expected


class Group:
    """A placement group that is ready if the cluster has enough nodes."""

    def __init__(self, cluster, count):
        self.cluster, self.count = cluster, count

    def is_ready(self, within_seconds):
        return self.count <= len(self.cluster.alive)

    def nodes(self):
        return self.cluster.alive[: self.count]

    def agent(self, bundle, folder, variables):
        return None

    def remove(self):
        self.cluster.reserved.remove(self)


class Cluster:
    """A cluster of two nodes, some of which may be gone."""

    def __init__(self):
        self.alive = [Node(f"id{index}", f"10.0.0.{index}") for index in (1, 2)]
        self.reserved = []

    def reserve(self, count, resources):
        self.reserved.append(Group(self, count))
        return self.reserved[-1]

    def contents(self):
        return "; ".join(map(str, self.alive))


class Answered(Connection):
    """A connection whose agent has answered, and which breaks when told to."""

    carrier = "test"

    def __init__(self, node, actor, hello):
        super().__init__(node, hello)
        self.hello = {**hello, "python": "python", "hostname": node.name, "sees_run": True, "problem": "", "ports": [1]}
        self.is_broken = False

    def send(self, order):
        pass

    def leave(self):
        pass

    def close(self, seconds=0.0):
        pass

    def _has_ended(self):
        return self.is_broken

    def _receive(self):
        return []

    def _silence(self):
        return 0.0

    def _problem_of_end(self):
        return Problem(f"host {self.host} stopped responding")


@pytest.fixture
def starter(tmp_path, monkeypatch):
    """Starts attempts of a run with V=2 on a fake cluster; `connections` are those of the last attempt."""
    connections = []

    def connect(*arguments):
        connections.append(Answered(*arguments))
        return connections[-1]

    monkeypatch.setattr(starter_module, "RayConnection", connect)
    monkeypatch.setattr(starter_module, "_FEWER_AFTER_SECONDS", 0.0)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"virtual_replicas": 2}))
    run_files = RunFiles(tmp_path / "run")

    def make(min_nodes=1, *, begun=True):
        if begun:
            (tmp_path / "run" / "checkpoints" / "step-000000002.npz").write_text("")
        made = RayStarter(
            cluster=Cluster(),
            nodes=2,
            min_nodes=min_nodes,
            resources={"CPU": 4, "GPU": 1},
            node_timeout=0.0,
            command=["train", "--workdir=run"],
            variables={},
            run_files=run_files,
            grace_seconds=60,
            silent_seconds=25,
            screen=Screen(None),
            is_asked_to_end=lambda: False,
        )
        made.connections = connections
        made.attempt = lambda: made.start(run_files.new_attempt())
        return made

    return make


def test_without_enough_nodes_the_message_has_what_is_wanted_and_what_is_there(starter):
    started = starter(min_nodes=2)
    started.cluster.alive.pop()
    with pytest.raises(StartError, match="2 nodes with 4 CPU, 1 GPU each.*10.0.0.1"):
        started.attempt()
    assert started.cluster.reserved == []


def test_run_continues_on_fewer_nodes_and_returns_to_all(starter):
    started = starter()
    node = started.cluster.alive.pop()
    assert started.attempt().running() == [0]
    started.cluster.alive.append(node)
    assert started.attempt().running() == [0, 1]
    assert [group.count for group in started.cluster.reserved] == [2]


def test_first_start_needs_all_nodes(starter):
    started = starter(begun=False)
    started.cluster.alive.pop()
    with pytest.raises(StartError, match="2 nodes"):
        started.attempt()


def test_new_chief_waits_for_one_that_may_still_save_on_a_lost_node(starter):
    started = starter()
    workers = started.attempt()
    started.connections[0].is_broken = True
    assert [(end.rank, end.lost) for end in workers.poll()] == [(0, "host 10.0.0.1 stopped responding")]
    del started.cluster.alive[0]
    with pytest.raises(StartError, match="Worker 0 ran on host 10.0.0.1.*within 85 s"):
        started.attempt()


def test_lost_node_without_the_chief_does_not_delay_the_restart(starter):
    started = starter()
    workers = started.attempt()
    started.connections[1].is_broken = True
    assert [end.rank for end in workers.poll()] == [1]
    del started.cluster.alive[1]
    assert started.attempt().running() == [0]
