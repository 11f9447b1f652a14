"""Cluster discovery: the workers of a run, and the rank of this process, from the environment or from flags.

    cluster = find_cluster(os.environ, hosts=(), index=None)       # None: a single process
    cluster.addresses[cluster.index], cluster.is_chief

The first of these that is present counts: flags, `TF_CONFIG`, SLURM, a Kubernetes Indexed Job.
"""

import ipaddress
import json
import logging
import os
import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from convoy.core.errors import UsageError
from convoy.core.text import counted

DEFAULT_PORT = 2222  # of workers in Kubernetes
KEY_VARIABLE = "CONVOY_CLUSTER_KEY"  # set by launchers: with it, workers prove to each other that they belong together
HOSTS_VARIABLE = "CONVOY_SLURM_HOSTS"  # comma-separated hosts of the step, set by launchers: containers lack scontrol
# SLURM jobs on the same host need different ports, so ports are derived from the job ID: up to 16 per job, below the
# ephemeral ports (32768 and above).
_SLURM_FIRST_PORT, _SLURM_PORTS_PER_JOB, _SLURM_JOBS = 20000, 16, 750
_MOST_WORKERS = 2**16  # more is a mistake, whose list would fill the memory
# By source, the variable without which it describes no cluster.
_VARIABLES = {"TF_CONFIG": "TF_CONFIG", "SLURM": "SLURM_STEP_NUM_TASKS", "Kubernetes": "JOB_COMPLETION_INDEX"}
_USE_BLOCKS = "Start the step with `srun --distribution=block` and without SLURM_HOSTFILE."


@dataclass(frozen=True)
class Cluster:
    """The workers of a run.

    Attributes:
      addresses: `host:port` by rank.
      index: rank of this process.
      source: where the description comes from, for messages.
      jobs: TensorFlow's job name and task index by rank: `("chief", 0)`, `("worker", 0)`, ...
      key: secret of the workers; empty without one.
    """

    addresses: tuple[str, ...]
    index: int
    source: str
    jobs: tuple[tuple[str, int], ...]
    key: str = field(default="", repr=False)

    @property
    def num_workers(self) -> int:
        """Number of processes that train together."""
        return len(self.addresses)

    @property
    def is_chief(self) -> bool:
        """Whether this process is the chief, which writes the run directory."""
        return self.index == 0

    @property
    def how_to_train_alone(self) -> str:
        """A sentence about what described the cluster, and how to train without it."""
        return _how_to_train_alone(self.source)

    def name(self, rank: int) -> str:
        """Returns `worker RANK (HOST:PORT)`."""
        return f"worker {rank} ({self.addresses[rank]})"

    def tasks(self) -> list[str]:
        """Returns `JOB INDEX at HOST:PORT` by rank: what must be the same on all workers."""
        return [f"{job} {index} at {address}" for (job, index), address in zip(self.jobs, self.addresses, strict=True)]


def host_and_port(address: str) -> tuple[str, int]:
    """Returns the parts of an address of a cluster; an IPv6 host comes without its brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def find_cluster(
    environment: Mapping[str, str], *, hosts: Sequence[str] = (), index: int | None = None
) -> Cluster | None:
    """Returns the cluster that the environment or the flags describe; None for a single process.

    Args:
      environment: variables by name.
      hosts: `host:port` by rank, from `--worker_hosts`.
      index: rank of this process, from `--worker_index`.

    Raises:
      UsageError: an invalid description.
    """
    environment = {name: value for name, value in environment.items() if value and value.strip()}
    found = (
        _from_flags(hosts, index)
        or _described_by("TF_CONFIG", environment)
        or _described_by("SLURM", environment)
        or _described_by("Kubernetes", environment)
    )
    if not found or found.num_workers == 1:
        return None
    first_rank: dict[tuple[str, int], int] = {}
    for rank, address in enumerate(found.addresses):
        first = first_rank.setdefault(_socket_of(address), rank)
        if first != rank:
            same = address if found.addresses[first] == address else f"{found.addresses[first]} = {address}"
            raise UsageError(
                f"{found.source}: workers {first} and {rank} have the same address {same}. Give each its own port."
            )
    return replace(found, key=environment.get(KEY_VARIABLE, ""))


def _described_by(source: str, environment: Mapping[str, str]) -> Cluster | None:
    find = {"TF_CONFIG": _from_tf_config, "SLURM": _from_slurm, "Kubernetes": _from_kubernetes}[source]
    try:
        return find(environment)
    except UsageError as error:
        raise UsageError(f"{error} {_how_to_train_alone(source)}") from None


def _how_to_train_alone(source: str) -> str:
    if source not in _VARIABLES:
        return f"{source} describes the cluster: leave it out to train in one process."
    return f"{_VARIABLES[source]} describes the cluster: unset it to train in one process."


def _socket_of(address: str) -> tuple[str, int]:
    """Returns the same value for two spellings of an address, as far as that is known without asking for names."""
    host, port = host_and_port(address.lower())
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return host.removesuffix("."), port
    return "localhost" if parsed.is_loopback and str(parsed) in ("127.0.0.1", "::1") else str(parsed), port


def _workers(addresses: Sequence[str], index: int, source: str) -> Cluster:
    if not 0 <= index < len(addresses):
        raise UsageError(f"{source}: index {index} of this task is not between 0 and {len(addresses) - 1}.")
    addresses = tuple(_checked_address(address, source) for address in addresses)
    return Cluster(addresses, index, source, tuple(("worker", rank) for rank in range(len(addresses))))


def _from_tf_config(environment: Mapping[str, str]) -> Cluster | None:
    text = environment.get("TF_CONFIG")
    if not text:
        return None
    try:
        config = json.loads(text, object_pairs_hook=_each_key_once)
        tasks, task = config.get("cluster", {}), config.get("task", {})
        job = task.get("type", "worker")
        if not all(isinstance(addresses, list) for addresses in tasks.values()) or not isinstance(job, str):
            raise ValueError("a task type is text, and its addresses are a list")
    except (ValueError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"TF_CONFIG={text!r} is invalid ({error}). Example: "
            '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}.'
        ) from None
    if not tasks:
        if task or "sparseCluster" in config:
            given = f"the task {json.dumps(task)}" if task else "sparseCluster"
            raise UsageError(
                f"TF_CONFIG={text!r} has {given} and no cluster. Add all workers as "
                '"cluster": {"worker": ["host1:2222", "host2:2222"]}, or unset TF_CONFIG to train in one process.'
            )
        return None
    unknown = sorted(tasks.keys() - {"chief", "worker"}) or sorted({job} - {"chief", "worker"})
    if unknown:
        raise UsageError(f"TF_CONFIG has a task of type {unknown[0]!r}. Use only the types chief and worker.")
    if len(tasks.get("chief", ())) > 1:
        raise UsageError(f"TF_CONFIG has {len(tasks['chief'])} tasks of type chief. Make all but one of them workers.")
    own = (job, _task_index(task.get("index"), len(tasks.get(job, ()))))
    jobs = [(job, rank) for job in ("chief", "worker") for rank in range(len(tasks.get(job, ())))]
    if own not in jobs:
        raise UsageError(f"TF_CONFIG: task {own[0]} {own[1]} is not in the cluster {json.dumps(tasks)}.")
    addresses = tuple(_checked_address(tasks[job][rank], "TF_CONFIG") for job, rank in jobs)
    return Cluster(addresses, jobs.index(own), "TF_CONFIG", tuple(jobs))


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [key for key, number in Counter(key for key, _ in pairs).items() if number > 1]
    if repeated:
        raise ValueError(f"it has {repeated[0]!r} more than once")
    return dict(pairs)


def _task_index(given: object, tasks: int) -> int:
    """Returns the index of this task among those of its type; it may be missing if there is only one."""
    if given is None and tasks == 1:
        return 0
    if isinstance(given, str) and re.fullmatch(r"[0-9]{1,9}", given):
        return int(given)
    if not isinstance(given, int) or isinstance(given, bool):
        raise UsageError(
            f'TF_CONFIG: "index": {json.dumps(given)} of this task must be an integer, its position in the list of its '
            "type."
        )
    return given


def _from_slurm(environment: Mapping[str, str]) -> Cluster | None:
    # Only processes started by `srun` have the variables of a step; batch scripts have those of the job.
    if not {"SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_PROCID"} <= environment.keys():
        return None
    number = _integer(environment, "SLURM_STEP_NUM_TASKS", most=_MOST_WORKERS)
    if number < 2 or _is_in_terminal_of_step(environment):
        return None
    known = environment.get(HOSTS_VARIABLE)
    hosts = known.split(",") if known else _scontrol_hostnames(environment["SLURM_STEP_NODELIST"])
    tasks_per_host = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    counts = counts_by_host(tasks_per_host)
    if len(counts) != len(hosts) or sum(counts) != number:
        raise UsageError(
            f"SLURM_STEP_TASKS_PER_NODE={tasks_per_host!r} does not match {counted(number, 'task')} on "
            f"{counted(len(hosts), 'host')}. {_USE_BLOCKS}"
        )
    layout = _task_layout(counts, environment)
    rank = _integer(environment, "SLURM_PROCID")
    job = _integer(environment, "SLURM_JOB_ID", "0") % _SLURM_JOBS
    first_port = _SLURM_FIRST_PORT + job * _SLURM_PORTS_PER_JOB
    found = _workers([f"{hosts[host]}:{first_port + local}" for host, local in layout], rank, "SLURM")
    for name, expected in zip(("SLURM_NODEID", "SLURM_LOCALID"), layout[rank], strict=True):
        if name in environment and _integer(environment, name) != expected:
            raise UsageError(
                f"SLURM task {rank} runs at {name}={environment[name]}; expected {expected}. {_USE_BLOCKS}"
            )
    return found


def _is_in_terminal_of_step(environment: Mapping[str, str]) -> bool:
    """Whether this command was typed in a shell of `srun --ntasks=N --pty`: the other tasks do not run it."""
    if "SLURM_PTY_PORT" not in environment or environment.get("SLURM_TASK_PID") in (None, str(os.getpid())):
        return False
    logging.getLogger("convoy").warning(
        "this shell is one of the %s tasks of its SLURM step, the others do not run this command: it runs in one "
        "process. To use all tasks, start it with `convoy launch srun -- ...`.",
        environment["SLURM_STEP_NUM_TASKS"],
    )
    return True


def _task_layout(counts: Sequence[int], environment: Mapping[str, str]) -> list[tuple[int, int]]:
    """Returns the index of the host and the index within the host, by rank."""
    distribution = environment.get("SLURM_DISTRIBUTION", "").partition(":")[0].partition(",")[0]
    if distribution == "arbitrary":
        raise UsageError(f"SLURM_DISTRIBUTION=arbitrary: the hosts of the tasks are unknown. {_USE_BLOCKS}")
    # Hosts get this many ranks in turn until all are full.
    group = {"cyclic": 1, "plane": _integer(environment, "SLURM_DIST_PLANESIZE", "1")}.get(distribution, max(counts))
    layout: list[tuple[int, int]] = []
    placed = [0] * len(counts)
    while placed != list(counts):
        for host, count in enumerate(counts):
            end = min(placed[host] + max(1, group), count)
            layout += [(host, local) for local in range(placed[host], end)]
            placed[host] = end
    return layout


def counts_by_host(text: str) -> list[int]:
    """Returns the numbers in SLURM's syntax `2(x3),1` by host; an empty list if the text is invalid."""
    counts: list[int] = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?", part)
        if not match or int(match[2] or 1) > _MOST_WORKERS:
            return []
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _scontrol_hostnames(nodes: str) -> list[str]:
    if "[" not in nodes:
        return nodes.split(",")
    try:
        command = ["scontrol", "show", "hostnames", nodes]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.split()
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(
            f"SLURM_STEP_NODELIST={nodes!r}: `scontrol show hostnames` failed ({error}). Put scontrol on the PATH; in "
            "a container set TF_CONFIG, or pass --worker_hosts and --worker_index."
        ) from None


def _from_kubernetes(environment: Mapping[str, str]) -> Cluster | None:
    # A pod of an Indexed Job has the name JOB-INDEX, and JOB-INDEX.SUBDOMAIN with a headless service.
    if not {"JOB_COMPLETION_INDEX", "CONVOY_WORKERS", "HOSTNAME"} <= environment.keys():
        return None
    index = _integer(environment, "JOB_COMPLETION_INDEX")
    number = _integer(environment, "CONVOY_WORKERS", most=_MOST_WORKERS)
    stem, _, last = environment["HOSTNAME"].split(".")[0].rpartition("-")
    if last != str(index):
        raise UsageError(
            f"HOSTNAME={environment['HOSTNAME']} does not end in -{index} (JOB_COMPLETION_INDEX). Use an Indexed Job."
        )
    subdomain = environment.get("CONVOY_SUBDOMAIN", "")
    port = _integer(environment, "CONVOY_PORT", str(DEFAULT_PORT))
    hosts = [f"{stem}-{rank}" + (f".{subdomain}" if subdomain else "") for rank in range(number)]
    return _workers([f"{host}:{port}" for host in hosts], index, "Kubernetes")


def _from_flags(hosts: Sequence[str], index: int | None) -> Cluster | None:
    if not hosts:
        if index is not None:
            raise UsageError(f"--worker_index={index} needs --worker_hosts=HOST:PORT,HOST:PORT.")
        return None
    if index is None or not 0 <= index < len(hosts):
        raise UsageError(f"--worker_index={index}: pass 0 to {len(hosts) - 1}, the index in --worker_hosts.")
    return _workers(hosts, index, "--worker_hosts")


def _checked_address(address: object, source: str) -> str:
    host, _, port = str(address).rpartition(":")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise UsageError(f"{source}: address {address!r} is not HOST:PORT.")
    if ":" in host and not re.fullmatch(r"\[[^\[\]]+\]", host):
        raise UsageError(f"{source}: address {address!r}: an IPv6 address needs brackets, as in [::1]:2222.")
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host.strip("[]"))
        except ValueError:
            raise UsageError(f"{source}: address {address!r}: {host} is not an IPv6 address.") from None
    elif not re.fullmatch(r"[A-Za-z0-9._-]+", host):
        raise UsageError(f"{source}: address {address!r}: a host consists of letters (a-z), digits, '.', '-' and '_'.")
    return f"{host}:{int(port)}"


def _integer(environment: Mapping[str, str], name: str, default: str = "", most: int = 2**63) -> int:
    text = environment.get(name, default)
    if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) > most:
        raise UsageError(f"{name}={text!r} in the environment is not an integer from 0 to {most}.")
    return int(text)
