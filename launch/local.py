"""Workers as processes on this machine: `convoy launch local --processes=N -- train ...`.

Training with one process on all GPUs needs no launcher, but a launcher restarts it when it dies. Several processes
form a cluster over the loopback interface, each with its share of the cores and GPUs.
"""

import os
from collections.abc import Sequence

from absl import flags as absl_flags

from convoy.core.flags import FlagDefiner
from convoy.launch.devices import cores_by_worker, gpus_by_worker, worker_environments
from convoy.launch.ports import reserved_ports
from convoy.launch.processes import WorkerProcesses, WorkerProgram
from convoy.launch.run_files import AttemptFiles, RunFiles
from convoy.launch.screen import Screen
from convoy.launch.supervisor import Supervisor
from convoy.launch.trainer_command import (
    TRAINER,
    cluster_variables,
    key_variable,
    run_directory,
    trainer_environment,
    trains,
)

REQUIRED = ("processes",)


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this engine."""
    define = FlagDefiner(flags)
    define.integer("processes", None, "local: number of worker processes", lower_bound=1, upper_bound=64)
    define.enum(
        "cores",
        "auto",
        ("auto", "all"),
        "local: auto pins each worker to its share of the cores, or limits it to one thread with more workers than "
        "cores; all lets every worker use every core",
    )


def run(flags: absl_flags.FlagValues, command: Sequence[str], *, trainer: Sequence[str] = TRAINER) -> int:
    """Trains in worker processes until the run is done or given up; returns the exit code.

    Args:
      command: `train` and its flags, with `--workdir`.
      trainer: the program that runs `command`; tests replace it.

    Raises:
      UsageError: the GPUs cannot be divided evenly, or RUN is a file.
      DataError: RUN is not writable.
    """
    run_files = RunFiles(run_directory(command))
    processes: int = flags.processes
    pins_cores = flags.cores == "auto"
    cores = cores_by_worker(processes) if pins_cores else [frozenset[int]()] * processes
    environments = worker_environments(
        {**trainer_environment(), **key_variable()},
        processes,
        gpus=gpus_by_worker(processes, command, os.environ),
        one_thread=pins_cores and processes > 1 and not cores[0],
    )
    used_ports: set[int] = set()

    def start(files: AttemptFiles) -> WorkerProcesses:
        with reserved_ports(processes, avoid=used_ports) as ports:
            used_ports.update(ports)  # a worker left over from another attempt can never connect to the new ones
        addresses = [f"127.0.0.1:{port}" for port in ports]
        programs = [
            WorkerProgram(
                command=[*trainer, *command],
                environment={**environments[rank], **files.variables(rank), **cluster_variables(addresses, rank)},
                log=files.log(rank),
                cores=cores[rank],
            )
            for rank in range(processes)
        ]
        return WorkerProcesses(programs)

    supervisor = Supervisor(
        run_files,
        start,
        max_restarts=flags.max_restarts,
        grace_seconds=flags.grace_seconds,
        screen=Screen.of_standard_output(),
        trains=trains(command),
        facts={"engine": "local", "processes": processes, "command": list(command)},
    )
    return supervisor.run()
