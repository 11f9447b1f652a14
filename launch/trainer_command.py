"""The trainer's command line, as far as a launcher reads it.

command = trainer_command(["train", "--data=data", "--workdir=run"])    # what stands after `--`
workdir = flag_value(command, "workdir")
"""

import os
import sys
from collections.abc import Sequence

from convoy.core.errors import UsageError, did_you_mean

TRAINER = (sys.executable, "-m", "convoy")  # the program that understands the command
# What would make a worker believe that it is one of a cluster around the machine that starts it.
OTHER_CLUSTERS = ("TF_CONFIG", "SLURM_STEP_NUM_TASKS", "JOB_COMPLETION_INDEX")

_COMMANDS = ("train", "doctor")


def trainer_command(words: Sequence[str]) -> list[str]:
    """Returns what stood after `--` if it is a command that can be launched into a run directory.

    Raises:
      UsageError: it is another command, or none, or names no run directory.
    """
    example = "convoy launch local --processes=2 -- train --data=data --workdir=run"
    if not words or words[0].startswith("-"):
        raise UsageError(f"no command to launch: `train` and its flags stand after --. Example: {example}")
    if words[0] not in _COMMANDS:
        raise UsageError(
            f"{words[0]!r} cannot be launched{did_you_mean(words[0], _COMMANDS)}: "
            f"give `train` and its flags after --. Example: {example}"
        )
    if not flag_value(words, "workdir"):
        raise UsageError(f"--workdir must be given after `-- train`: logs and checkpoints go there. Example: {example}")
    return list(words)


def trainer_environment() -> dict[str, str]:
    """Returns the environment of a worker that this process starts, without what tells it of its cluster."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if not {"", os.getcwd()} & set(sys.path):
        # `python -m` would look for packages in this folder first, which the command that was typed did not.
        environment["PYTHONSAFEPATH"] = "1"
    return environment


def trains(command: Sequence[str]) -> bool:
    """Returns whether a command trains, and does not only look."""
    return command[0] == "train"


def flag_value(words: Sequence[str], name: str) -> str | None:
    """Returns the value of a flag as `--name=value` or `--name value`, the last one, or None."""
    value = None
    for position, word in enumerate(words):
        if word in (f"--{name}", f"-{name}"):
            value = words[position + 1] if position + 1 < len(words) else None
        elif word.startswith((f"--{name}=", f"-{name}=")):
            value = word.partition("=")[2]
    return value
