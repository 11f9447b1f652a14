"""The trainer's command line, as far as a launcher reads it.

command = trainer_command(["train", "--data=data", "--workdir=run"])    # what stands after `--`
workdir = flag_value(command, "workdir")
"""

from collections.abc import Sequence

from input_pipeline.errors import UsageError, did_you_mean

_COMMANDS = ("train",)


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


def flag_value(words: Sequence[str], name: str) -> str | None:
    """Returns the value of a flag as `--name=value` or `--name value`, the last one, or None."""
    value = None
    for position, word in enumerate(words):
        if word in (f"--{name}", f"-{name}"):
            value = words[position + 1] if position + 1 < len(words) else None
        elif word.startswith((f"--{name}=", f"-{name}=")):
            value = word.partition("=")[2]
    return value
