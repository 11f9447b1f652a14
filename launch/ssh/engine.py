"""Launches workers on hosts over ssh: `convoy launch ssh --hosts=FILE -- train ...`.

`starter.py` chooses the hosts of an attempt and starts the workers; `agent.py` runs on each host.
"""

import os
import sys
from collections.abc import Sequence

from absl import flags as absl_flags

from convoy.core.devices import parse_devices
from convoy.core.errors import ConvoyError, UsageError
from convoy.launch.run_files import RunFiles
from convoy.launch.screen import Screen
from convoy.launch.ssh.hosts import read_hosts
from convoy.launch.ssh.messages import SILENT_SECONDS
from convoy.launch.ssh.refusals import Remote
from convoy.launch.ssh.starter import Starter
from convoy.launch.supervisor import Supervisor
from convoy.launch.trainer_command import flag_value, trains

REQUIRED = ("hosts",)

_START_SECONDS = 300.0


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this engine."""
    absl_flags.DEFINE_string(
        "hosts",
        None,
        "ssh: file with one host per line, `[user@]host[:port] [slots=N] [address=ADDRESS]`; slots is the number of "
        "worker processes, address is where the other hosts reach it",
        flag_values=flags,
    )
    absl_flags.DEFINE_integer(
        "min_hosts",
        None,
        "ssh: continue with this many hosts if others do not respond and the run's virtual replicas allow it; default "
        "all; the first start of a run always needs all",
        lower_bound=1,
        flag_values=flags,
    )
    absl_flags.DEFINE_string("ssh_config", "", "ssh: config file for the ssh client (its -F)", flag_values=flags)
    absl_flags.DEFINE_string(
        "python",
        "",
        "ssh: path of the Python with Convoy on the hosts; the same as here by default",
        flag_values=flags,
    )


def run(flags: absl_flags.FlagValues, command: Sequence[str]) -> int:
    """Launches the trainer's `command` (`train` and its flags); returns the exit code."""
    return launch(
        command,
        hosts_file=flags.hosts,
        min_hosts=flags.min_hosts,
        ssh_config=flags.ssh_config,
        python=flags.python or sys.executable,
        max_restarts=flags.max_restarts,
        grace_seconds=flags.grace_seconds,
    )


def launch(
    command: Sequence[str],
    *,
    hosts_file: str,
    min_hosts: int | None = None,
    ssh_config: str = "",
    python: str = sys.executable,
    max_restarts: int = 3,
    grace_seconds: float = 60.0,
    silent_seconds: float = SILENT_SECONDS,
    trainer: Sequence[str] | None = None,
) -> int:
    """Trains on the hosts of a file until the run is done or fails.

    Args:
      command: `train` and its flags, with `--workdir`.
      hosts_file: see `convoy.launch.ssh.hosts`.
      min_hosts: number of hosts with which a run may continue; None for all.
      ssh_config: file for ssh's -F; empty for ssh's default.
      python: Python interpreter on the hosts.
      max_restarts: consecutive restarts without a new checkpoint.
      grace_seconds: seconds between SIGTERM and SIGKILL.
      silent_seconds: seconds without a message after which launcher and agents consider each other gone.
      trainer: program that runs `command`; tests replace it.

    Returns:
      The exit code.

    Raises:
      UsageError: an invalid host file, a host with a permanent problem, or RUN is a file.
      DataError: RUN cannot be written.
    """
    hosts = read_hosts(hosts_file)
    if min_hosts and min_hosts > len(hosts):
        raise UsageError(f"--min_hosts={min_hosts}: --hosts={hosts_file} has {len(hosts)}. Pass at most that many.")
    if ssh_config and not os.access(ssh_config, os.R_OK):
        raise UsageError(f"--ssh_config={ssh_config} cannot be read. Pass a readable file (see `man ssh_config`).")
    parse_devices(flag_value(command, "devices") or "auto")
    screen = Screen.of_standard_output()
    run_files = RunFiles(flag_value(command, "workdir") or "")
    starter = Starter(
        hosts=hosts,
        hosts_file=hosts_file,
        min_hosts=min_hosts,
        remote=Remote(_folder(), python, os.path.abspath(ssh_config) if ssh_config else ""),
        command=command,
        program=[*(trainer or (python, "-m", "convoy")), *command],
        run_files=run_files,
        grace_seconds=grace_seconds,
        silent_seconds=silent_seconds,
        screen=screen,
        is_asked_to_end=lambda: supervisor.is_asked_to_end,
    )
    supervisor = Supervisor(
        run_files,
        starter.start,
        max_restarts=max_restarts,
        grace_seconds=grace_seconds,
        screen=screen,
        start_seconds=max(_START_SECONDS, 2 * starter.lease_seconds),
        trains=trains(command),
        facts={"engine": "ssh", "hosts": [str(host) for host in hosts], "command": list(command)},
    )
    try:
        return supervisor.run()
    except ConvoyError:
        run_files.remove_traces()
        raise


def _folder() -> str:
    """Returns the current folder as the shell names it, with links: they may resolve differently on other hosts."""
    name = os.environ.get("PWD", "")
    return name if os.path.isabs(name) and os.path.exists(name) and os.path.samefile(name, ".") else os.getcwd()
