"""SLURM's command-line tools, as far as launchers need them.

job = query_job("17")                  # None if SLURM does not know it
job.state, job.reason, job.exit_code
slurm("scancel", "--signal=TERM", "17.0")
"""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from convoy.core.errors import UsageError

_TIMEOUT_SECONDS = 60.0
_ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
_UNKNOWN_JOB = "Invalid job id"


class SlurmError(Exception):
    """A SLURM command failed. The message is the command's."""


class NoAnswerError(SlurmError):
    """A SLURM command timed out. Its effect may still happen."""


@dataclass(frozen=True)
class Job:
    """State of a job, as SLURM reports it.

    Attributes:
      state: `PENDING`, `RUNNING`, `COMPLETED`, ...
      reason: why it is pending or has failed: `Resources`, `NonZeroExitCode`, ...
      nodes: its nodes, in SLURM's short form; empty while pending.
      start_time: actual or expected start, `2026-11-22T18:42:33`, or `Unknown`.
      restarts: how often it was requeued.
      exit_code: exit code of its batch script, in shell convention: 128 + N for signal N.
      is_batch: whether it has a batch script, and so can be requeued.
    """

    state: str
    reason: str
    nodes: str
    start_time: str
    restarts: int
    exit_code: int
    is_batch: bool

    @property
    def has_ended(self) -> bool:
        """Whether the job has ended for good."""
        return self.state in _ENDED


def slurm(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """Runs a SLURM command and returns its standard output.

    Args:
      command: program and arguments.
      environment: its environment; default: this process's.

    Raises:
      UsageError: the command is not installed.
      SlurmError: the command failed.
    """
    try:
        result = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
        )
    except FileNotFoundError:
        raise UsageError(f"{command[0]} is not on the PATH. Run this on a login node of the SLURM cluster.") from None
    except subprocess.TimeoutExpired:
        raise NoAnswerError(f"{command[0]} did not answer within {_TIMEOUT_SECONDS:g} s") from None
    if result.returncode != 0:
        lines = (result.stderr.strip() or result.stdout.strip() or f"exit code {result.returncode}").splitlines()
        raise SlurmError("; ".join(re.sub(rf"^{command[0]}: (error: )?", "", line) for line in lines))
    return result.stdout


def query_job(job: str) -> Job | None:
    """Returns the state of a job; None if SLURM does not know it, or no longer.

    Raises:
      SlurmError: SLURM does not answer.
    """
    try:
        text = slurm("scontrol", "show", "job", job, "--oneliner")
    except SlurmError as error:
        if _UNKNOWN_JOB in str(error):
            return None
        raise
    return parse_job(text)


def parse_job(text: str) -> Job:
    """Returns the job described by a line of `scontrol show job --oneliner`."""
    fields: dict[str, str] = {}
    for name, value in re.findall(r"(\w+)=(\S*)", text):
        fields.setdefault(name, value)
    code, _, number = fields.get("ExitCode", "0:0").partition(":")
    nodes = fields.get("NodeList", "")
    return Job(
        state=fields.get("JobState", ""),
        reason=fields.get("Reason", "None"),
        nodes="" if nodes == "(null)" else nodes,
        start_time=fields.get("StartTime", "Unknown"),
        restarts=int(fields.get("Restarts", "0")),
        exit_code=128 + int(number) if number not in ("", "0") else int(code),
        is_batch=fields.get("BatchFlag", "0") != "0",
    )


def unreachable_nodes(nodes: str) -> dict[str, str]:
    """Returns the nodes that SLURM cannot reach, with their state: `{"n2": "down*"}`.

    Args:
      nodes: the nodes to check, in SLURM's short form: `n[1-3]`.

    Raises:
      SlurmError: SLURM does not answer.
    """
    listing = slurm("sinfo", "--noheader", "--Node", f"--nodes={nodes}", "--format=%N %T")
    states = {node: state for node, state in (line.split() for line in listing.splitlines() if line.strip())}
    return {node: state for node, state in states.items() if state.endswith("*") or state.startswith("down")}
