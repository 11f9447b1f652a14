"""Workers as processes on this machine: `convoy launch local --processes=N -- train ...`.

One process that uses all GPUs needs no launcher to train; under this one it is also started again when it dies. Several
processes form a cluster over the loopback interface, each with its share of cores and GPUs.
"""

import json
import os
from collections.abc import Sequence

from absl import flags as absl_flags

from convoy.launch.devices import cores_by_worker, gpus_by_worker
from convoy.launch.ports import reserved_ports
from convoy.launch.processes import WorkerProcesses, WorkerProgram
from convoy.launch.run_files import AttemptFiles, RunFiles
from convoy.launch.screen import Screen
from convoy.launch.supervisor import Supervisor
from convoy.launch.trainer_command import OTHER_CLUSTERS, TRAINER, flag_value, trainer_environment, trains

REQUIRED = ("processes",)


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this engine."""
    absl_flags.DEFINE_integer(
        "processes", None, "local: number of worker processes", lower_bound=1, upper_bound=64, flag_values=flags
    )
    absl_flags.DEFINE_enum(
        "cores",
        "auto",
        ("auto", "all"),
        "local: auto holds each worker to its share of the cores (with more workers than cores: one thread each); "
        "all lets each use every core",
        flag_values=flags,
    )


def run(flags: absl_flags.FlagValues, command: Sequence[str]) -> int:
    """Launches the trainer's `command` (`train` and its flags); returns the exit code."""
    return launch(
        command,
        processes=flags.processes,
        max_restarts=flags.max_restarts,
        grace_seconds=flags.grace_seconds,
        share_cores=flags.cores == "auto",
    )


def launch(
    command: Sequence[str],
    *,
    processes: int,
    max_restarts: int = 3,
    grace_seconds: float = 60.0,
    share_cores: bool = True,
    trainer: Sequence[str] = TRAINER,
) -> int:
    """Trains in worker processes until the run is done or is given up.

    Args:
      command: `train` and its flags, with `--workdir`.
      processes: number of workers.
      max_restarts: restarts that may follow one another without a new checkpoint.
      grace_seconds: between SIGTERM and SIGKILL.
      share_cores: whether each worker is held to its share of the cores.
      trainer: the program that understands `command`; tests put a small one in its place.

    Returns:
      The exit code.

    Raises:
      UsageError: GPUs cannot be shared out, or RUN is a file.
      DataError: RUN cannot be written.
    """
    run_files = RunFiles(flag_value(command, "workdir"))
    cores = cores_by_worker(processes) if share_cores else [frozenset()] * processes
    environment = _environment(command, processes, one_thread=share_cores and processes > 1 and not cores[0])
    used_ports: set[int] = set()

    def start(files: AttemptFiles) -> WorkerProcesses:
        with reserved_ports(processes if processes > 1 else 0, avoid=used_ports) as ports:
            used_ports.update(ports)  # so that a worker of the attempt before could never be taken for a new one
            programs = [
                WorkerProgram(
                    command=[*trainer, *command],
                    environment={**environment[rank], **_attempt_variables(files, rank, ports)},
                    log=files.log(rank),
                    cores=cores[rank],
                )
                for rank in range(processes)
            ]
        return WorkerProcesses(programs)

    supervisor = Supervisor(
        run_files,
        start,
        max_restarts=max_restarts,
        grace_seconds=grace_seconds,
        screen=Screen.of_standard_output(),
        trains=trains(command),
        facts={"engine": "local", "processes": processes, "command": list(command)},
    )
    return supervisor.run()


def _environment(command: Sequence[str], processes: int, *, one_thread: bool) -> list[dict[str, str]]:
    """Returns what the environment of each worker holds in every attempt."""
    common = trainer_environment()
    for name in OTHER_CLUSTERS:
        common.pop(name, None)
    if one_thread:
        common = {"TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1", **common}
    gpus = gpus_by_worker(processes, command, os.environ)
    return [{**common, **({"CUDA_VISIBLE_DEVICES": gpus[rank]} if gpus else {})} for rank in range(processes)]


def _attempt_variables(files: AttemptFiles, rank: int, ports: Sequence[int]) -> dict[str, str]:
    variables = {"CONVOY_ATTEMPT": str(files.number), "CONVOY_ERROR_FILE": str(files.error_file(rank))}
    if ports:
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        variables["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})
    return variables
