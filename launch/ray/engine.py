"""Launches workers on nodes of a Ray cluster: `convoy launch ray --nodes=N -- train ...`."""

import json
import os
from collections.abc import Sequence

from absl import flags as absl_flags

from convoy.core.errors import UsageError
from convoy.core.flags import FlagDefiner
from convoy.launch.agents.messages import SILENT_SECONDS
from convoy.launch.ray.cluster import Cluster
from convoy.launch.ray.starter import RayStarter, devices_per_node
from convoy.launch.run_files import RunFiles
from convoy.launch.screen import Screen
from convoy.launch.supervisor import Supervisor
from convoy.launch.trainer_command import run_directory, trains
from convoy.launch.user_files import user_files
from convoy.launch.worker_variables import define_env_flag, worker_variables

REQUIRED = ("nodes",)


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this engine."""
    define = FlagDefiner(flags)
    define.integer("nodes", None, "ray: number of nodes, one worker per node", lower_bound=1)
    define.integer("gpus_per_node", 0, "ray: GPUs that Ray reserves for the worker on each node", lower_bound=0)
    define.integer(
        "cpus_per_node",
        1,
        "ray: CPUs that Ray reserves for the worker on each node; they limit what else Ray places there, not how many "
        "cores the worker uses",
        lower_bound=1,
    )
    define.integer(
        "min_nodes",
        None,
        "ray: continue with this many nodes if others are lost and the run's virtual replicas allow it; default all; "
        "the first start of a run always needs all",
        lower_bound=1,
    )
    define.float(
        "node_timeout",
        300.0,
        "ray: seconds to wait for nodes with free resources, at the start and after a node is lost",
        lower_bound=0.0,
    )
    define.string(
        "address",
        "",
        "ray: address of the cluster that this host belongs to, `HOST:PORT`; default RAY_ADDRESS, or the one that Ray "
        "finds on this host",
    )
    define_env_flag(flags, "ray")
    define.bool("dry_run", False, "ray: print what would be started and exit")


def run(
    flags: absl_flags.FlagValues,
    command: Sequence[str],
    *,
    silent_seconds: float = SILENT_SECONDS,
    trainer: Sequence[str] = (),
) -> int:
    """Trains on nodes of a Ray cluster until the run is done or fails; returns the exit code.

    Args:
      command: `train` and its flags, with `--workdir`.
      silent_seconds: seconds without a message after which launcher and agents consider each other gone.
      trainer: program that runs `command`, the nodes' Convoy by default; tests replace it.

    Raises:
      UsageError: invalid flags or recipe, Ray is not installed, no cluster, a node with a permanent problem, or RUN is
        a file.
      DataError: RUN cannot be written.
    """
    if flags.min_nodes and flags.min_nodes > flags.nodes:
        raise UsageError(f"--min_nodes={flags.min_nodes}: more than --nodes={flags.nodes}. Pass at most that many.")
    devices_per_node(command, flags.gpus_per_node)
    resources = {"CPU": flags.cpus_per_node, **({"GPU": flags.gpus_per_node} if flags.gpus_per_node else {})}
    code = user_files(command)
    variables = worker_variables(flags.env)
    if flags.dry_run:
        start = {
            "address": flags.address or os.environ.get("RAY_ADDRESS") or "auto",
            "placement_group": {"strategy": "STRICT_SPREAD", "bundles": [resources] * flags.nodes},
            "command": ["convoy", *command],
            "variables": sorted(variables),
            "files": list(code.names),
        }
        print(json.dumps(start, indent=2))
        return 0
    screen = Screen.of_standard_output()
    run_files = RunFiles(run_directory(command))
    cluster = Cluster(flags.address)  # before the supervisor, whose signal handlers replace Ray's
    run_files.write_code(code)
    starter = RayStarter(
        cluster=cluster,
        nodes=flags.nodes,
        min_nodes=flags.min_nodes or flags.nodes,
        resources=resources,
        node_timeout=flags.node_timeout,
        command=command,
        trainer=trainer,
        variables={**variables, **run_files.code_variable(code)},
        run_files=run_files,
        grace_seconds=flags.grace_seconds,
        silent_seconds=silent_seconds,
        screen=screen,
        is_asked_to_end=lambda: supervisor.is_asked_to_end,
    )
    supervisor = Supervisor(
        run_files,
        starter.start,
        max_restarts=flags.max_restarts,
        grace_seconds=flags.grace_seconds,
        screen=screen,
        start_seconds=flags.node_timeout,
        trains=trains(command),
        facts={"engine": "ray", "processes": flags.nodes, "command": list(command)},
    )
    try:
        return supervisor.run()
    finally:
        cluster.close()
