"""What to say when an ssh connection or the agent behind it ends early: what is wrong, and how to mend it.

problem = problem_of(host, 255, "Host key verification failed.", remote)
problem.text, problem.stays       # `stays`: another try gives the same until somebody mends it
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from convoy.launch.ssh.hosts import Host

NO_FOLDER = 67  # what the remote shell ends with where the launcher's folder is not there
_NOT_FOUND = (126, 127)  # a shell's words for a program that it cannot start
_SSH_ITSELF = 255


@dataclass(frozen=True)
class Problem:
    """Why a host cannot take part. `stays` says that no further try will mend it."""

    text: str
    stays: bool = False


@dataclass(frozen=True)
class Remote:
    """How hosts are reached and what they are asked to run.

    Attributes:
      folder: that commands run in.
      python: interpreter there.
      ssh_config: for ssh's -F; ssh's own choice where empty.
    """

    folder: str
    python: str
    ssh_config: str = ""

    def by_hand(self, host: Host, *command: str) -> str:
        """Returns the command with which a person looks at a host in the way the launcher does."""
        config = ("-F", self.ssh_config) if self.ssh_config else ()
        port = ("-p", str(host.port)) if host.port else ()
        user = (f"{host.user}@" if host.user else "") + host.name
        return shlex.join(["ssh", *config, *port, user, *command])


def problem_of(host: Host, returncode: int, stderr: str, remote: Remote) -> Problem:
    """Returns what is wrong.

    Args:
      host: that was connected to.
      returncode: of the ssh client.
      stderr: what it and the remote side wrote there.
      remote: what was asked for.
    """
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = last_line(stderr) or f"exit code {returncode}"
    for check in (_of_ssh, _of_python):
        if problem := check(host, returncode, lines, last, remote):
            return problem
    if returncode == _SSH_ITSELF:
        return Problem(f"host {host} does not answer (ssh: {last})")
    return Problem(
        f"host {host}: the agent ended before it was ready ({last}). Look there: "
        f"{remote.by_hand(host, remote.python, '--version')}",
        stays=True,
    )


def last_line(stderr: str) -> str:
    """Returns the last line that ssh or the remote side wrote, without ssh's own name before it."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1].removeprefix("ssh: ").rstrip(".") if lines else ""


def _of_ssh(host: Host, returncode: int, lines: Sequence[str], last: str, remote: Remote) -> Problem | None:
    if returncode != _SSH_ITSELF:
        return None
    text = "\n".join(lines)
    by_hand = remote.by_hand(host)
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in text:
        return Problem(
            f"host {host} shows another key than it did before (ssh: {last}). If it was set up anew, take the old key "
            f"out with `ssh-keygen -R {host.name}`, and confirm the new one with `{by_hand}`",
            stays=True,
        )
    if "Host key verification failed" in text:
        return Problem(
            f"the key of host {host} is not known here (ssh: {last}). Connect once by hand, compare the key, and "
            f"confirm it: `{by_hand}`",
            stays=True,
        )
    if "Permission denied" in text or "Too many authentication failures" in text:
        return Problem(
            f"host {host} does not let this user in (ssh: {last}). Keys without a password prompt are needed: "
            f"`ssh-copy-id`, an agent, or User and IdentityFile in ssh's config. Try `{by_hand}`",
            stays=True,
        )
    if "Could not resolve hostname" in text and "Temporary failure" not in text:
        return Problem(
            f"host {host} has no address here (ssh: {last}). Correct its name in the host file, or give it a HostName "
            "in ssh's config",
            stays=True,
        )
    if "Bad configuration option" in text or "terminating" in last:
        return Problem(f"ssh cannot use its config for host {host} ({lines[0]})", stays=True)
    return None


def _of_python(host: Host, returncode: int, lines: Sequence[str], last: str, remote: Remote) -> Problem | None:
    if returncode == NO_FOLDER:
        return Problem(
            f"host {host} has no folder {remote.folder}, where this command was typed. Start it in a folder that all "
            "hosts share",
            stays=True,
        )
    if returncode in _NOT_FOUND:
        return Problem(
            f"host {host} has no {remote.python} (its shell: {last}). Give the Python with Convoy there as "
            "--python=PATH, the same on all hosts",
            stays=True,
        )
    if "No module named" in last:
        return Problem(
            f"{remote.python} on host {host} has no Convoy ({last}). Install the version of this machine there, or "
            "give another --python=PATH",
            stays=True,
        )
    return None
