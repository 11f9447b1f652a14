"""Explains why an ssh connection or its agent failed at the start, with a suggested fix.

problem = problem_of(host, 255, "Host key verification failed.", remote)
problem.text, problem.is_permanent     # permanent: no retry succeeds until somebody fixes it
"""

import shlex
from dataclasses import dataclass

from convoy.launch.agents.connection import Problem
from convoy.launch.ssh.hosts import Host

NO_FOLDER = 67  # exit code of the remote command if the launcher's folder does not exist there
_NOT_FOUND = (126, 127)  # a shell's exit codes for a program that it cannot start
_SSH_ITSELF = 255


@dataclass(frozen=True)
class Remote:
    """How hosts are reached and what runs on them.

    Attributes:
      folder: working directory of the commands.
      python: Python interpreter.
      ssh_config: file for ssh's -F; empty for ssh's default.
    """

    folder: str
    python: str
    ssh_config: str = ""

    def ssh_command(self, host: Host, *command: str) -> str:
        """Returns the shell command that connects to a host the way the launcher does."""
        config = ("-F", self.ssh_config) if self.ssh_config else ()
        port = ("-p", str(host.port)) if host.port else ()
        user = (f"{host.user}@" if host.user else "") + host.name
        return shlex.join(["ssh", *config, *port, user, *command])


def problem_of(host: Host, returncode: int, stderr: str, remote: Remote) -> Problem:
    """Returns why a connection failed.

    Args:
      host: the host.
      returncode: exit code of the ssh client.
      stderr: standard error of the ssh client and of the remote command.
      remote: what was run.
    """
    last = last_line(stderr) or f"exit code {returncode}"
    if returncode == _SSH_ITSELF:
        text = _ssh_problem(host, stderr, last, remote)
        return Problem(text or f"host {host} does not respond (ssh: {last})", is_permanent=bool(text))
    return Problem(_agent_problem(host, returncode, last, remote), is_permanent=True)


def last_line(stderr: str) -> str:
    """Returns the last line of standard error, without the prefix `ssh: `."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1].removeprefix("ssh: ").rstrip(".") if lines else ""


def _ssh_problem(host: Host, stderr: str, last: str, remote: Remote) -> str:
    """Returns what the ssh client reports if no retry can succeed; otherwise an empty string."""
    command = remote.ssh_command(host)
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in stderr:
        return (
            f"the key of host {host} has changed (ssh: {last}). If the host was reinstalled, remove the old key with "
            f"`ssh-keygen -R {host.name}` and confirm the new one with `{command}`"
        )
    if "Host key verification failed" in stderr:
        return (
            f"the key of host {host} is unknown (ssh: {last}). Connect once manually and confirm the key: `{command}`"
        )
    if "Permission denied" in stderr or "Too many authentication failures" in stderr:
        return (
            f"host {host} refuses the login (ssh: {last}). Set up a key that needs no password prompt: `ssh-copy-id`, "
            f"ssh-agent, or User and IdentityFile in ssh's config. Test it with `{command}`"
        )
    if "Could not resolve hostname" in stderr and "Temporary failure" not in stderr:
        return (
            f"the name of host {host} cannot be resolved (ssh: {last}). Correct it in the host file, or add a HostName "
            "to ssh's config"
        )
    if "Bad configuration option" in stderr or "terminating" in last:
        return f"ssh rejects its config for host {host} ({stderr.strip().splitlines()[0].strip()})"
    return ""


def _agent_problem(host: Host, returncode: int, last: str, remote: Remote) -> str:
    """Returns why the shell or Python on the host could not run the agent."""
    if returncode == NO_FOLDER:
        return (
            f"host {host} has no folder {remote.folder}, the current one. Run this command in a folder that all hosts "
            "share"
        )
    if returncode in _NOT_FOUND:
        return (
            f"host {host} cannot run {remote.python} ({last}). Pass --python=PATH of a Python with Convoy; the path "
            "must be the same on all hosts"
        )
    if "No module named" in last:
        return (
            f"{remote.python} on host {host} cannot import Convoy ({last}). Install this host's version there, or "
            "pass another --python=PATH"
        )
    return (
        f"host {host}: the agent exited before it was ready ({last}). Check "
        f"`{remote.ssh_command(host, remote.python, '--version')}`"
    )
