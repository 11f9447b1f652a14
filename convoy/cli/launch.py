"""`convoy launch ENGINE [flags] -- train ...`: starts workers, watches them, and restarts them after failures.

convoy launch local --processes=2 -- train --data=data --workdir=run
"""

import importlib
from collections.abc import Sequence
from types import ModuleType

from absl import flags as absl_flags

from convoy.cli import Command, listing, require_flags
from convoy.core.errors import UsageError, did_you_mean
from convoy.core.flags import FlagDefiner
from convoy.launch.trainer_command import LAUNCHED_COMMANDS, flag_value, trainer_command

TAKES_ARGUMENTS = True
RENAMED_FLAGS = {"echo_seconds": "secondary_exit_delay"}

_ENGINES = {
    "local": Command(
        "processes on this machine", "convoy launch local --processes=2 -- train --data=data --workdir=run"
    ),
    "ssh": Command(
        "hosts without a scheduler that share a folder",
        "convoy launch ssh --hosts=hosts.txt -- train --data=data --workdir=run",
    ),
    "slurm": Command(
        "a SLURM job, submitted and followed",
        "convoy launch slurm --nodes=2 --gpus_per_node=8 --cpus_per_task=32 --time=12:00:00 "
        "-- train --data=data --workdir=run",
    ),
    "srun": Command(
        "the nodes of a SLURM job, from inside the job", "convoy launch srun -- train --data=data --workdir=run"
    ),
    "kubernetes": Command(
        "pods of a Kubernetes cluster with JobSet",
        "convoy launch kubernetes --replicas=2 --gpus=8 --image=registry/convoy:gpu --pvc=team --mount=/team "
        "-- train --data=/team/data --workdir=/team/run",
    ),
    "ray": Command(
        "nodes of a Ray cluster that share a folder",
        "convoy launch ray --nodes=2 --gpus_per_node=8 -- train --data=data --workdir=run",
    ),
    "worker": Command("one worker, started by a scheduler", "convoy launch worker -- train --data=data --workdir=run"),
}
_MODULES = {
    "ssh": "ssh.engine",
    "slurm": "slurm.submit",
    "srun": "slurm.step",
    "kubernetes": "kubernetes.engine",
    "ray": "ray.engine",
}
_ENGINE_LIST = f"Engines: {', '.join(_ENGINES)}. Example: {_ENGINES['local'].example}"


def define_flags(flags: absl_flags.FlagValues, arguments: Sequence[str]) -> None:
    """Defines the flags of all engines, and those of the engine named in `arguments`.

    Raises:
      UsageError: the engine is unknown, or `--` is missing before the trainer's command.
    """
    define = FlagDefiner(flags)
    define.integer("max_restarts", 3, "number of consecutive restarts without a new checkpoint", lower_bound=0)
    define.float(
        "grace_seconds", 60.0, "seconds that a worker may take to save and exit before it is killed", lower_bound=0.0
    )
    own = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    launched = next((argument for argument in own if argument in LAUNCHED_COMMANDS), None)
    if launched and "--" not in arguments:
        raise UsageError(f"`--` is missing before {launched!r}: it separates the trainer's command. {_ENGINE_LIST}")
    named = _named_engine(own)
    other = [argument for argument in own if not argument.startswith("-")]
    if named:
        _module(named).define_flags(flags)
    elif other:
        raise UsageError(f"unknown engine {other[0]!r}{did_you_mean(other[0], _ENGINES)}. {_ENGINE_LIST}")


def run(flags: absl_flags.FlagValues, arguments: Sequence[str]) -> int:
    """Launches; returns the exit code.

    Raises:
      UsageError: no engine is named, or the command after `--` cannot be launched.
    """
    if not arguments or arguments[0] not in _ENGINES:
        raise UsageError(f"no engine given. {_ENGINE_LIST}")
    engine = _module(arguments[0])
    require_flags(flags, *engine.REQUIRED)
    command = trainer_command(arguments[1:])
    if arguments[0] != "worker" and (hosts := flag_value(command, "worker_hosts")):
        raise UsageError(f"--worker_hosts={hosts}: `convoy launch {arguments[0]}` finds the hosts itself. Remove it.")
    exit_code: int = engine.run(flags, command)
    return exit_code


def example(arguments: Sequence[str]) -> str:
    """Returns what `--help` prints before the flags: usage of the engine named in `arguments`, or of all engines."""
    if named := _named_engine(arguments):
        return "\n".join(listing({named: _ENGINES[named]}))
    return "\n".join(
        [*listing(_ENGINES), "", "`convoy launch ENGINE --help` lists an engine's flags. Flags of all engines:"]
    )


def _named_engine(arguments: Sequence[str]) -> str | None:
    return next((argument for argument in arguments if argument in _ENGINES), None)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"convoy.launch.{_MODULES.get(name, name)}")
