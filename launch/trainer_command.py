"""The trainer's command line and environment, as far as launchers need to read them.

command = trainer_command(["train", "--data=data", "--workdir=run"])    # the arguments after `--`
run_directory(command)                                                  # "run"
"""

import json
import os
import re
import secrets
import sys
from collections.abc import Sequence

from convoy.core.cluster import KEY_VARIABLE
from convoy.core.errors import UsageError, did_you_mean

TRAINER = (sys.executable, "-m", "convoy")  # the program that runs the command
# Variables that would make a worker join the cluster of the process that starts it.
OTHER_CLUSTERS = ("TF_CONFIG", "SLURM_STEP_NUM_TASKS", "JOB_COMPLETION_INDEX")
LAUNCHED_COMMANDS = ("train", "doctor")

_EXAMPLE = "Example: convoy launch local --processes=2 -- train --data=data --workdir=run"


def trainer_command(words: Sequence[str]) -> list[str]:
    """Returns the arguments after `--` if they are a command that can be launched into a run directory.

    Raises:
      UsageError: no command, a command that cannot be launched, or no `--workdir`.
    """
    if not words or words[0].startswith("-"):
        raise UsageError(f"no command to launch: give `train` and its flags after --. {_EXAMPLE}")
    if words[0] not in LAUNCHED_COMMANDS:
        raise UsageError(
            f"{words[0]!r} cannot be launched{did_you_mean(words[0], LAUNCHED_COMMANDS)}: "
            f"give `train` and its flags after --. {_EXAMPLE}"
        )
    run_directory(words)
    return list(words)


def run_directory(command: Sequence[str]) -> str:
    """Returns the command's `--workdir`.

    Raises:
      UsageError: it has none.
    """
    workdir = flag_value(command, "workdir")
    if not workdir:
        raise UsageError(f"--workdir must be given after `-- train`: logs and checkpoints go there. {_EXAMPLE}")
    return workdir


def trainer_environment() -> dict[str, str]:
    """Returns the environment for a worker that this process starts."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if not {"", os.getcwd()} & set(sys.path):
        # `python -m` would search the current directory first; the `convoy` script did not.
        environment["PYTHONSAFEPATH"] = "1"
    return environment


def cluster_variables(addresses: Sequence[str], rank: int) -> dict[str, str]:
    """Returns the variable that describes the cluster to a worker; nothing for a single worker.

    Args:
      addresses: `host:port` of each worker.
      rank: rank of the worker.
    """
    if len(addresses) == 1:
        return {}
    return {
        "TF_CONFIG": json.dumps({"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": rank}})
    }


def key_variable() -> dict[str, str]:
    """Returns the variable by which the workers of a launch authenticate each other: a new key, or the user's own.

    It must reach the workers by their environment: never on a command line, and in no file of RUN.
    """
    return {KEY_VARIABLE: os.environ.get(KEY_VARIABLE) or secrets.token_hex(32)}


def trains(command: Sequence[str]) -> bool:
    """Returns whether a command trains. Other commands only inspect and must leave RUN unchanged."""
    return command[0] == "train"


def flag_value(words: Sequence[str], name: str) -> str | None:
    """Returns the last value of a flag given as `--name=value` or `--name value`, or None."""
    value = None
    for position, word in enumerate(words):
        if word in (f"--{name}", f"-{name}"):
            value = words[position + 1] if position + 1 < len(words) else None
        elif word.startswith((f"--{name}=", f"-{name}=")):
            value = word.partition("=")[2]
    return value


def integer_or_none(text: str | None) -> int | None:
    """Returns the value of a flag or variable as a non-negative integer; None if it is missing or not one."""
    return int(text) if text and re.fullmatch(r"[0-9]{1,18}", text) else None
