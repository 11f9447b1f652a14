"""The cluster of Ray, as far as this launcher uses it.

cluster = Cluster(address="auto")
group = cluster.reserve(2, {"CPU": 1, "GPU": 8})
if group.is_ready(within_seconds=1.0):
    actors = [group.agent(index, folder, variables) for index in range(2)]
group.remove()
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from convoy.core.errors import UsageError

Resources = Mapping[str, float]

_SHOWN = ("CPU", "GPU")


@dataclass(frozen=True)
class Node:
    """A node of the cluster.

    Attributes:
      identifier: Ray's, of this start of Ray on the host.
      address: IP address, by which Ray names nodes; IPv6 in brackets.
      resources: all of its resources, used or not.
      slots: number of workers.
    """

    identifier: str
    address: str
    resources: Resources = field(default_factory=dict, compare=False)
    slots: int = 1

    @property
    def name(self) -> str:
        """The address."""
        return self.address

    @property
    def name_of_lock(self) -> str:
        """Name that no other node has, not even another one on the same host."""
        return self.identifier

    def __str__(self) -> str:
        """Returns the address."""
        return self.address


class Cluster:
    """A connection to a running cluster."""

    def __init__(self, address: str):
        """Connects.

        Args:
          address: `HOST:PORT`, or empty for the cluster of this host, or of RAY_ADDRESS.

        Raises:
          UsageError: Ray is not installed, or there is no cluster.
        """
        try:
            import ray
        except ImportError as error:
            raise UsageError(
                f"`convoy launch ray` needs Ray ({error}). Run `pip install 'convoy-train[ray]'`."
            ) from None
        self._ray: Any = ray
        try:
            # Without the logs of actors: the workers' logs are in RUN.
            ray.init(address=address or "auto", log_to_driver=False, logging_level="WARNING")
        except (ConnectionError, ValueError, RuntimeError) as error:
            given = f"--address={address}" if address else "no --address"
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise UsageError(
                f"{given}: no Ray cluster ({reason}). Start one with `ray start --head`, or pass --address=HOST:6379 "
                "of a running one."
            ) from None

    def close(self) -> None:
        """Disconnects; Ray then ends what still runs of this launch."""
        self._ray.shutdown()

    def nodes(self) -> list[Node]:
        """Returns the nodes that are alive."""
        return [
            Node(
                node["NodeID"],
                f"[{node['NodeManagerAddress']}]" if ":" in node["NodeManagerAddress"] else node["NodeManagerAddress"],
                node["Resources"],
            )
            for node in self._ray.nodes()
            if node["Alive"]
        ]

    def contents(self) -> str:
        """Returns the nodes with their resources, and what is free, as text: `10.0.0.1 (8 CPU, 1 GPU); free: ...`."""
        nodes = "; ".join(f"{node} ({resources_text(node.resources)})" for node in self.nodes()) or "no nodes"
        return f"{nodes}; free: {resources_text(self._ray.available_resources())}"

    def reserve(self, count: int, resources: Resources) -> "Group":
        """Requests resources on each of `count` different nodes; `Group.is_ready` says whether they are reserved."""
        from ray.util.placement_group import placement_group

        return Group(self, placement_group([dict(resources)] * count, strategy="STRICT_SPREAD"), resources)


class Group:
    """A placement group, one bundle of resources per node."""

    def __init__(self, cluster: Cluster, group: Any, resources: Resources):
        """Args: cluster: the cluster. group: Ray's handle. resources: of each bundle."""
        self._cluster = cluster
        self._group = group
        self._resources = resources

    def is_ready(self, within_seconds: float) -> bool:
        """Returns whether the resources are reserved; waits for that, whole seconds at least one."""
        return bool(self._group.wait(max(1, round(within_seconds))))

    def nodes(self) -> list[Node]:
        """Returns the node of each bundle; fewer if one has just died."""
        from ray.util.placement_group import placement_group_table

        found: dict[int, str] = placement_group_table(self._group)["bundles_to_node_id"]
        nodes = {node.identifier: node for node in self._cluster.nodes()}
        return [nodes[found[bundle]] for bundle in sorted(found) if found[bundle] in nodes]

    def agent(self, bundle: int, folder: str, variables: Mapping[str, str]) -> Any:
        """Starts the actor of a bundle; see `AgentActor`. Returns its handle at once."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        from convoy.launch.ray.actor import AgentActor

        # Ray would hide no GPU from an actor that reserves none.
        hidden = {} if self._resources.get("GPU") else {"CUDA_VISIBLE_DEVICES": ""}
        actor = ray.remote(AgentActor).options(
            num_cpus=self._resources["CPU"],
            num_gpus=self._resources.get("GPU", 0),
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle),
        )
        return actor.remote(folder, {**variables, **hidden})

    def remove(self) -> None:
        """Frees the resources; Ray ends the actors that use them."""
        from ray.util.placement_group import remove_placement_group

        remove_placement_group(self._group)


def resources_text(resources: Resources) -> str:
    """Returns `8 CPU, 1 GPU`."""
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in _SHOWN)
