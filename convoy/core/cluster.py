"""Which workers a run has and which of them this process is, as the environment says it.

    cluster = find_cluster(os.environ, hosts=(), index=None)       # None: one process is all there is
    cluster.addresses[cluster.index], cluster.is_chief

Looked for in this order: `TF_CONFIG`, SLURM, a Kubernetes Indexed Job, explicit flags. Imports no TensorFlow.
"""

import json
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from convoy.core.errors import UsageError

DEFAULT_PORT = 2222
HOSTS_VARIABLE = "CONVOY_SLURM_HOSTS"  # the step's, by commas, from a launcher: containers have no scontrol
# SLURM's jobs on one host must not meet on one port, and the job's number is known on every host of it: up to 16 ports
# a job, below those that systems give to outgoing connections (32768 and above).
_SLURM_FIRST_PORT, _SLURM_PORTS_A_JOB, _SLURM_JOBS = 20000, 16, 750
_IN_BLOCKS = "Start the step with `srun --distribution=block`, and without SLURM_HOSTFILE."


@dataclass(frozen=True)
class Cluster:
    """The workers of a run.

    Attributes:
      addresses: `host:port` of each, by rank.
      index: this process's rank.
      source: what said so, for people.
      jobs: by rank, TensorFlow's name of each task: `("chief", 0)`, `("worker", 0)`, ...
    """

    addresses: tuple[str, ...]
    index: int
    source: str
    jobs: tuple[tuple[str, int], ...]

    @property
    def num_workers(self) -> int:
        """How many processes train together."""
        return len(self.addresses)

    @property
    def is_chief(self) -> bool:
        """Whether this process writes what all share."""
        return self.index == 0


def find_cluster(
    environment: Mapping[str, str],
    *,
    hosts: Sequence[str] = (),
    index: int | None = None,
    expand_hosts: Callable[[str], list[str]] | None = None,
) -> Cluster | None:
    """Returns the cluster that the environment or the flags describe, or None where this process is alone.

    Args:
      environment: variables by name.
      hosts: `host:port` by rank, from `--worker_hosts`.
      index: this process's rank, from `--worker_index`.
      expand_hosts: from SLURM's short form of a host list to its hosts; `scontrol show hostnames` where left out.

    Raises:
      UsageError: a description that cannot be one.
    """
    found = (
        _from_tf_config(environment)
        or _from_slurm(environment, expand_hosts or _scontrol_hostnames)
        or _from_kubernetes(environment)
        or _from_flags(hosts, index)
    )
    return found if found and found.num_workers > 1 else None


def _workers(addresses: Sequence[str], index: int, source: str) -> Cluster:
    if not 0 <= index < len(addresses):
        raise UsageError(f"{source}: this task has index {index}, and there are {len(addresses)} workers, from 0 on.")
    return Cluster(tuple(addresses), index, source, tuple(("worker", rank) for rank in range(len(addresses))))


def _from_tf_config(environment: Mapping[str, str]) -> Cluster | None:
    text = environment.get("TF_CONFIG", "")
    if not text.strip():
        return None
    try:
        config = json.loads(text)
        tasks = {job: list(addresses) for job, addresses in config.get("cluster", {}).items()}
        task = config.get("task", {})
        own = (str(task.get("type", "worker")), int(task.get("index", 0)))
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"TF_CONFIG={text!r} cannot be read ({error}). It looks like "
            '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}.'
        ) from None
    if not tasks:
        return None
    strange = sorted(tasks.keys() - {"chief", "worker"}) or sorted({own[0]} - {"chief", "worker"})
    if strange:
        raise UsageError(f"TF_CONFIG names a task {strange[0]!r}: Convoy's workers are of type chief or worker.")
    jobs = [(job, rank) for job in ("chief", "worker") for rank in range(len(tasks.get(job, ())))]
    if own not in jobs:
        raise UsageError(f"TF_CONFIG: this task is {own[0]} {own[1]}, which its cluster {json.dumps(tasks)} lacks.")
    addresses = tuple(_checked_address(tasks[job][rank], "TF_CONFIG") for job, rank in jobs)
    return Cluster(addresses, jobs.index(own), "TF_CONFIG", tuple(jobs))


def _from_slurm(environment: Mapping[str, str], expand_hosts: Callable[[str], list[str]]) -> Cluster | None:
    # A batch script has some of these too; only what `srun` started has the step's.
    if not {"SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_PROCID"} <= environment.keys():
        return None
    number = _integer(environment, "SLURM_STEP_NUM_TASKS")
    if number < 2:
        return None
    known = environment.get(HOSTS_VARIABLE)
    hosts = known.split(",") if known else expand_hosts(environment["SLURM_STEP_NODELIST"])
    tasks_per_host = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    counts = counts_by_host(tasks_per_host)
    if len(counts) != len(hosts) or sum(counts) != number:
        raise UsageError(
            f"SLURM_STEP_TASKS_PER_NODE={tasks_per_host!r} does not tell where the {number} tasks of {len(hosts)} "
            f"hosts run. {_IN_BLOCKS}"
        )
    places = _places_of_ranks(counts, environment)
    rank = _integer(environment, "SLURM_PROCID")
    place_of_job = _integer(environment, "SLURM_JOB_ID", "0") % _SLURM_JOBS
    first_port = _SLURM_FIRST_PORT + place_of_job * _SLURM_PORTS_A_JOB
    found = _workers([f"{hosts[host]}:{first_port + local}" for host, local in places], rank, "SLURM")
    if {"SLURM_NODEID", "SLURM_LOCALID"} <= environment.keys():
        own = (_integer(environment, "SLURM_NODEID"), _integer(environment, "SLURM_LOCALID"))
        if own != places[rank]:
            raise UsageError(
                f"SLURM runs task {rank} at another place (SLURM_NODEID={own[0]}, SLURM_LOCALID={own[1]}) than its "
                f"layout says ({places[rank][0]}, {places[rank][1]}). {_IN_BLOCKS}"
            )
    return found


def _places_of_ranks(counts: Sequence[int], environment: Mapping[str, str]) -> list[tuple[int, int]]:
    """Returns where each rank runs: the place of its host in the list, and its own among the host's tasks."""
    distribution = environment.get("SLURM_DISTRIBUTION", "").partition(":")[0].partition(",")[0]
    if distribution == "arbitrary":
        raise UsageError(f"SLURM_DISTRIBUTION=arbitrary does not tell which task runs where. {_IN_BLOCKS}")
    # So many ranks go to a host at a time, host after host, and again from the first where it has more.
    at_a_time = {"cyclic": 1, "plane": _integer(environment, "SLURM_DIST_PLANESIZE", "1")}.get(
        distribution, max(counts)
    )
    places: list[tuple[int, int]] = []
    placed = [0] * len(counts)
    while placed != list(counts):
        for host, count in enumerate(counts):
            until = min(placed[host] + max(1, at_a_time), count)
            places += [(host, local) for local in range(placed[host], until)]
            placed[host] = until
    return places


def counts_by_host(text: str) -> list[int]:
    """Returns the number that each host has of something, from SLURM's `2(x3),1`; nothing where it is no such text."""
    counts = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            return []
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _scontrol_hostnames(nodes: str) -> list[str]:
    try:
        command = ["scontrol", "show", "hostnames", nodes]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.split()
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(
            f"SLURM_STEP_NODELIST={nodes}: `scontrol show hostnames` failed ({error}). Is scontrol on the PATH of the "
            "job? In a container set TF_CONFIG, or give --worker_hosts and --worker_index."
        ) from None


def _from_kubernetes(environment: Mapping[str, str]) -> Cluster | None:
    # An Indexed Job's pod is called JOB-INDEX, and found as JOB-INDEX.SUBDOMAIN behind a headless service.
    if not {"JOB_COMPLETION_INDEX", "CONVOY_WORKERS", "HOSTNAME"} <= environment.keys():
        return None
    index, number = _integer(environment, "JOB_COMPLETION_INDEX"), _integer(environment, "CONVOY_WORKERS")
    stem, _, last = environment["HOSTNAME"].split(".")[0].rpartition("-")
    if last != str(index):
        raise UsageError(
            f"HOSTNAME={environment['HOSTNAME']} does not end in JOB_COMPLETION_INDEX={index}: is this the pod of an "
            "Indexed Job?"
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
        raise UsageError(f"--worker_index={index}: give 0 to {len(hosts) - 1}, this process's place in --worker_hosts.")
    return _workers([_checked_address(host, "--worker_hosts") for host in hosts], index, "--worker_hosts")


def _checked_address(address: object, source: str) -> str:
    host, _, port = str(address).rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"{source} has the address {address!r}: give HOST:PORT.")
    return str(address)


def _integer(environment: Mapping[str, str], name: str, default: str = "") -> int:
    text = environment.get(name, default)
    if not text.isdigit():
        raise UsageError(f"{name}={text!r} in the environment is no number.")
    return int(text)
