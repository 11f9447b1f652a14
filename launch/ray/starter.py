"""Reserves the nodes of an attempt in a placement group and starts an agent on each."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from convoy.core.devices import parse_devices
from convoy.core.errors import UsageError
from convoy.core.files import current_folder
from convoy.core.text import counted
from convoy.launch.agents.connection import Connection
from convoy.launch.agents.starter import Starter
from convoy.launch.ray.cluster import Cluster, Group, Resources, resources_text
from convoy.launch.ray.connection import RayConnection
from convoy.launch.run_files import AttemptFiles
from convoy.launch.supervisor import StartError
from convoy.launch.trainer_command import flag_value

_FEWER_AFTER_SECONDS = 30.0  # longer than Ray takes to notice a dead node and place its bundle elsewhere
_TICK_SECONDS = 1.0


def node_counts(nodes: int, min_nodes: int, devices_per_node: int, virtual_replicas: int) -> list[int]:
    """Returns with how many nodes a run may continue, the largest first.

    Args:
      nodes: largest number of nodes.
      min_nodes: smallest number of nodes.
      devices_per_node: replicas on each.
      virtual_replicas: virtual replicas of the run.
    """
    counts = range(nodes, min_nodes - 1, -1)
    return [count for count in counts if virtual_replicas % (count * devices_per_node) == 0]


def devices_per_node(command: Sequence[str], gpus: int) -> int:
    """Returns how many devices the trainer's `command` uses on a node where it gets `gpus` GPUs.

    Raises:
      UsageError: `--devices` is invalid, or needs GPUs that were not requested.
    """
    devices = parse_devices(flag_value(command, "devices") or "auto")
    if devices.kind == "cpu":
        return devices.count
    if devices.kind == "gpu" and gpus <= max(devices.gpus, default=0):
        raise UsageError(
            f"--devices={flag_value(command, 'devices')} with --gpus_per_node={gpus}: Ray gives each worker that many "
            f"GPUs. Pass --gpus_per_node={max(devices.gpus, default=0) + 1}."
        )
    return len(devices.gpus) or gpus or 1


@dataclass(kw_only=True)
class RayStarter(Starter):
    """Starts attempts on nodes of a cluster.

    Attributes:
      cluster: the cluster.
      nodes: number of nodes.
      min_nodes: number of nodes with which a run may continue.
      resources: what to reserve on each node.
      node_timeout: seconds to wait for the resources.
    """

    cluster: Cluster
    nodes: int
    min_nodes: int
    resources: Resources
    node_timeout: float
    _group: Group | None = None  # of the previous attempt

    def _connect(self, files: AttemptFiles, connections: list[Connection]) -> list[Connection]:
        devices = devices_per_node(self.command, int(self.resources.get("GPU", 0)))
        group, count = self._reserved(self._counts(devices))
        nodes, folder, variables = group.nodes(), current_folder(), self._agent_variables()
        if len(nodes) < count:
            raise StartError("a reserved node has died.")

        def connect(index: int, hello: dict[str, Any]) -> RayConnection:
            return RayConnection(nodes[index], group.agent(index, folder, variables), hello)

        problems = self._greet(nodes, connect, files, connections)
        self._check_permanent(problems)
        if problems:
            raise StartError("; ".join(problem.text for problem in problems.values()) + ".")
        self._check_chief(nodes, why="")
        self._print_attempt(files, connections, devices * count)
        return connections

    def _counts(self, devices: int) -> list[int]:
        virtual_replicas = self._virtual_replicas()
        if not virtual_replicas:  # the first start of a run needs all nodes
            return [self.nodes]
        if counts := node_counts(self.nodes, self.min_nodes, devices, virtual_replicas):
            return counts
        raise UsageError(
            f"--nodes={self.nodes} with {counted(devices, 'device')} each: the run's V={virtual_replicas} virtual "
            f"replicas cannot be divided among {self.min_nodes} to {self.nodes} nodes. Change --nodes, --min_nodes, "
            "--devices, or the run's --virtual_replicas."
        )

    def _reserved(self, counts: Sequence[int]) -> tuple[Group, int]:
        """Returns a group of the first of these numbers of nodes that can be reserved, and the number."""
        if self._group:
            self._group.remove()
        for count in counts:
            self._group = self.cluster.reserve(count, self.resources)
            seconds = self.node_timeout if count == counts[-1] else min(self.node_timeout, _FEWER_AFTER_SECONDS)
            if self._is_ready(self._group, count, seconds):
                return self._group, count
            self._group.remove()
            self._group = None
        raise StartError(
            f"no {self._wanted(counts[-1])} within --node_timeout={self.node_timeout:g} s: the cluster has "
            f"{self.cluster.contents()}. Add nodes, or change --nodes, --cpus_per_node or --gpus_per_node."
        )

    def _is_ready(self, group: Group, count: int, seconds: float) -> bool:
        deadline, has_printed = time.monotonic() + seconds, False
        while not group.is_ready(_TICK_SECONDS):
            if self.is_asked_to_end():
                raise StartError("asked to end.")
            if time.monotonic() >= deadline:
                return False
            if not has_printed:
                has_printed = True
                self.screen.say(
                    f"convoy: waiting up to {seconds:.0f} s for {self._wanted(count)}: the cluster has "
                    f"{self.cluster.contents()}."
                )
            self.screen.pump()
        return True

    def _wanted(self, count: int) -> str:
        return f"{counted(count, 'node')} with {resources_text(self.resources)}{' each' if count > 1 else ''}"
