"""Launches workers on hosts over ssh: `convoy launch ssh --hosts=FILE -- train ...`.

`starter.py` chooses the hosts of an attempt; `launch/agents` runs the workers on each host.
"""

import os
import sys
from collections.abc import Sequence

from absl import flags as absl_flags

from convoy.core.devices import parse_devices
from convoy.core.errors import UsageError
from convoy.core.files import current_folder
from convoy.core.flags import FlagDefiner
from convoy.launch.agents.messages import SILENT_SECONDS
from convoy.launch.run_files import RunFiles
from convoy.launch.screen import Screen
from convoy.launch.ssh.hosts import read_hosts
from convoy.launch.ssh.refusals import Remote
from convoy.launch.ssh.starter import SshStarter
from convoy.launch.supervisor import Supervisor
from convoy.launch.trainer_command import flag_value, run_directory, trains
from convoy.launch.user_files import user_files
from convoy.launch.worker_variables import define_env_flag, worker_variables

REQUIRED = ("hosts",)

_START_SECONDS = 300.0


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this engine."""
    define = FlagDefiner(flags)
    define.string(
        "hosts",
        None,
        "ssh: file with one host per line, `[user@]host[:port] [slots=N] [address=ADDRESS]`; slots is the number of "
        "worker processes, address is where the other hosts reach it",
    )
    define.integer(
        "min_hosts",
        None,
        "ssh: continue with this many hosts if others do not respond and the run's virtual replicas allow it; default "
        "all; the first start of a run always needs all",
        lower_bound=1,
    )
    define_env_flag(flags, "ssh")
    define.string("ssh_config", "", "ssh: config file for the ssh client (its -F)")
    define.string("python", "", "ssh: path of the Python with Convoy on the hosts; the same as here by default")


def run(
    flags: absl_flags.FlagValues,
    command: Sequence[str],
    *,
    silent_seconds: float = SILENT_SECONDS,
    trainer: Sequence[str] = (),
) -> int:
    """Trains on the hosts of a file until the run is done or fails; returns the exit code.

    Args:
      command: `train` and its flags, with `--workdir`.
      silent_seconds: seconds without a message after which launcher and agents consider each other gone.
      trainer: program that runs `command`, the hosts' Convoy by default; tests replace it.

    Raises:
      UsageError: an invalid host file or recipe, a host with a permanent problem, or RUN is a file.
      DataError: RUN cannot be written.
    """
    hosts = read_hosts(flags.hosts)
    if flags.min_hosts and flags.min_hosts > len(hosts):
        raise UsageError(
            f"--min_hosts={flags.min_hosts}: --hosts={flags.hosts} has {len(hosts)}. Pass at most that many."
        )
    ssh_config = flags.ssh_config
    if ssh_config and not os.access(ssh_config, os.R_OK):
        raise UsageError(f"--ssh_config={ssh_config} cannot be read. Pass a readable file (see `man ssh_config`).")
    parse_devices(flag_value(command, "devices") or "auto")
    python = flags.python or sys.executable
    screen = Screen.of_standard_output()
    run_files = RunFiles(run_directory(command))
    code = user_files(command)
    variables = {**worker_variables(flags.env), **run_files.code_variable(code)}
    run_files.write_code(code)
    starter = SshStarter(
        hosts=hosts,
        hosts_file=flags.hosts,
        min_hosts=flags.min_hosts,
        remote=Remote(current_folder(), python, os.path.abspath(ssh_config) if ssh_config else ""),
        command=command,
        trainer=trainer,
        variables=variables,
        run_files=run_files,
        grace_seconds=flags.grace_seconds,
        silent_seconds=silent_seconds,
        screen=screen,
        is_asked_to_end=lambda: supervisor.is_asked_to_end,
    )
    supervisor = Supervisor(
        run_files,
        starter.start,
        max_restarts=flags.max_restarts,
        grace_seconds=flags.grace_seconds,
        screen=screen,
        start_seconds=max(_START_SECONDS, 2 * starter.lease_seconds),
        trains=trains(command),
        facts={"engine": "ssh", "hosts": [str(host) for host in hosts], "command": list(command)},
    )
    return supervisor.run()
