"""`convoy launch ENGINE [flags] -- train ...`: starts workers, watches them, and starts them again where that helps.

convoy launch local --processes=2 -- train --data=data --workdir=run
"""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

from absl import flags as absl_flags

from convoy.core.errors import UsageError, did_you_mean

TAKES_ARGUMENTS = True
RENAMED_FLAGS = {"echo_seconds": "secondary_exit_delay"}


class Engine(NamedTuple):
    """Where an engine lives and what `convoy launch --help` says of it."""

    module: str
    summary: str
    example: str


_ENGINES = {
    "local": Engine(
        "convoy.launch.local",
        "processes of this machine",
        "convoy launch local --processes=2 -- train --data=data --workdir=run",
    ),
    "ssh": Engine(
        "convoy.launch.ssh.engine",
        "a few machines with no scheduler that share a folder",
        "convoy launch ssh --hosts=hosts.txt -- train --data=data --workdir=run",
    ),
    "slurm": Engine(
        "convoy.launch.slurm.submit",
        "a job of SLURM, submitted and followed",
        "convoy launch slurm --nodes=2 --gpus_per_node=8 --cpus_per_task=32 --time=12:00:00 "
        "-- train --data=data --workdir=run",
    ),
    "srun": Engine(
        "convoy.launch.slurm.step",
        "the nodes of a SLURM job, from inside it",
        "convoy launch srun -- train --data=data --workdir=run",
    ),
    "kubernetes": Engine(
        "convoy.launch.kubernetes.engine",
        "pods of a Kubernetes cluster with JobSet",
        "convoy launch kubernetes --replicas=2 --gpus=8 --image=registry/convoy:gpu --pvc=team --mount=/team "
        "-- train --data=/team/data --workdir=/team/run",
    ),
    "worker": Engine(
        "convoy.launch.worker",
        "one worker, where a scheduler starts them",
        "convoy launch worker -- train --data=data --workdir=run",
    ),
}
_KNOWN = f"Engines: {', '.join(_ENGINES)}. Example: {_ENGINES['local'].example}"


def define_flags(flags: absl_flags.FlagValues, arguments: Sequence[str]) -> None:
    """Defines the flags that all engines have, and those of the engine that `arguments` name.

    Raises:
      UsageError: they name one that there isn't, or the trainer's command without `--` before it.
    """
    absl_flags.DEFINE_integer(
        "max_restarts",
        3,
        "how many restarts may follow one another without a new checkpoint",
        lower_bound=0,
        flag_values=flags,
    )
    absl_flags.DEFINE_float(
        "grace_seconds",
        60.0,
        "how long a worker may take to save and end before it is killed",
        lower_bound=0.0,
        flag_values=flags,
    )
    own = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    for command in () if "--" in arguments else {"train", "doctor"} & set(own):
        raise UsageError(f"`--` is missing before {command!r}: what stands after it goes to the trainer. {_KNOWN}")
    named = [argument for argument in own if argument in _ENGINES]
    other = [argument for argument in own if not argument.startswith("-")]
    if other and not named:
        raise UsageError(f"unknown engine {other[0]!r}{did_you_mean(other[0], _ENGINES)}. {_KNOWN}")
    for name in named[:1]:
        _module(name).define_flags(flags)


def run(flags: absl_flags.FlagValues, arguments: Sequence[str]) -> int:
    """Launches; returns the exit code.

    Raises:
      UsageError: no engine is named, or what stands after `--` cannot be launched.
    """
    from convoy.cli import require_flags
    from convoy.launch.trainer_command import trainer_command

    if not arguments or arguments[0] not in _ENGINES:
        raise UsageError(f"which engine? {_KNOWN}")
    engine = _module(arguments[0])
    require_flags(flags, *engine.REQUIRED)
    return engine.run(flags, trainer_command(arguments[1:]))


def example(arguments: Sequence[str]) -> str:
    """Returns what `--help` shows before the flags: how the engine that `arguments` name is used, or all of them."""
    named = [argument for argument in arguments if argument in _ENGINES][:1]
    width = max(map(len, _ENGINES))
    lines = []
    for name in named or _ENGINES:
        lines += [f"  {name:<{width}}  {_ENGINES[name].summary}", f"  {'':<{width}}    {_ENGINES[name].example}"]
    if not named:
        lines += ["", "`convoy launch ENGINE --help` lists an engine's flags; those of all engines:"]
    return "\n".join(lines)


def _module(name: str) -> ModuleType:
    return importlib.import_module(_ENGINES[name].module)
