"""`--env=NAME=VALUE` of the launchers: environment variables for the workers."""

import os
import re
from collections.abc import Sequence

from absl import flags as absl_flags

from convoy.core.errors import UsageError
from convoy.core.flags import FlagDefiner
from convoy.launch.trainer_command import OTHER_CLUSTERS

_SET_BY_LAUNCHERS = ("CONVOY_", *OTHER_CLUSTERS)


def define_env_flag(flags: absl_flags.FlagValues, engine: str, kept_in: str = "") -> None:
    """Defines the flag of an engine; `kept_in`: where the values can be read, for its help."""
    note = f"; the value is readable in {kept_in}" if kept_in else ""
    FlagDefiner(flags).multi_string(
        "env",
        [],
        f"{engine}: NAME=VALUE, a variable for the workers; NAME alone takes its value here{note}; repeatable",
    )


def worker_variables(given: Sequence[str]) -> dict[str, str]:
    """Returns the variables that the flag sets, by name.

    Raises:
      UsageError: not a name, a name that is not set here, or one that launchers set.
    """
    variables = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UsageError(f"--env={text}: {name!r} is not the name of a variable. Example: --env=NCCL_DEBUG=INFO.")
        if name.startswith(_SET_BY_LAUNCHERS):
            raise UsageError(f"--env={text}: the launcher sets {name} itself. Remove this flag.")
        if not equals and name not in os.environ:
            raise UsageError(f"--env={name}: {name} is not set here. Set it, or pass --env={name}=VALUE.")
        variables[name] = value if equals else os.environ[name]
    return variables
