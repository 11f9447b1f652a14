"""SLURM's own commands, as far as launchers use them.

job = job_facts("17")                  # None where SLURM does not know it
job.state, job.reason, job.exit_code
slurm("scancel", "--signal=TERM", "17.0")
"""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from convoy.core.errors import UsageError

_PATIENCE_SECONDS = 60.0
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
    """A SLURM command failed. The message is what it said."""


class NoAnswerError(SlurmError):
    """A SLURM command was not done in time. What it was to do may still happen."""


@dataclass(frozen=True)
class Job:
    """What SLURM says of a job.

    Attributes:
      state: `PENDING`, `RUNNING`, `COMPLETED`, ...
      reason: why it waits, or ended so: `Resources`, `NonZeroExitCode`, ...
      nodes: that it has, in SLURM's short form; empty while it waits.
      start_time: when it began, or is expected to, `2026-11-22T18:42:33`; `Unknown` where that is not known.
      restarts: how often it was put back into the queue.
      exit_code: of its batch script, as a shell counts: 128 + N for signal N.
      is_batch: whether it has a batch script, and so can be put back.
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
        """Whether it will not run any more."""
        return self.state in _ENDED


def slurm(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """Runs a SLURM command and returns what it printed.

    Args:
      command: and its arguments.
      environment: of it; this process's where left out.

    Raises:
      UsageError: there is no such command here.
      SlurmError: it failed.
    """
    try:
        result = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE_SECONDS,
        )
    except FileNotFoundError:
        raise UsageError(
            f"{command[0]} is not on the PATH. Run this where SLURM's commands are: on a login node of the cluster."
        ) from None
    except subprocess.TimeoutExpired:
        raise NoAnswerError(f"{command[0]} did not answer within {_PATIENCE_SECONDS:g} s") from None
    if result.returncode != 0:
        lines = (result.stderr.strip() or result.stdout.strip() or f"exit code {result.returncode}").splitlines()
        raise SlurmError("; ".join(re.sub(rf"^{command[0]}: (error: )?", "", line) for line in lines))
    return result.stdout


def job_facts(job: str) -> Job | None:
    """Returns what SLURM says of a job; None where it does not know it, or does not any more.

    Raises:
      SlurmError: SLURM does not answer.
    """
    try:
        text = slurm("scontrol", "show", "job", job, "--oneliner")
    except SlurmError as error:
        if _UNKNOWN_JOB in str(error):
            return None
        raise
    return parsed_job(text)


def parsed_job(text: str) -> Job:
    """Returns what a line of `scontrol show job --oneliner` says."""
    facts: dict[str, str] = {}
    for name, value in re.findall(r"(\w+)=(\S*)", text):
        facts.setdefault(name, value)
    code, _, number = facts.get("ExitCode", "0:0").partition(":")
    nodes = facts.get("NodeList", "")
    return Job(
        state=facts.get("JobState", ""),
        reason=facts.get("Reason", "None"),
        nodes="" if nodes == "(null)" else nodes,
        start_time=facts.get("StartTime", "Unknown"),
        restarts=int(facts.get("Restarts", "0")),
        exit_code=128 + int(number) if number not in ("", "0") else int(code),
        is_batch=facts.get("BatchFlag", "0") != "0",
    )


def nodes_that_do_not_answer(nodes: str) -> dict[str, str]:
    """Returns those of some nodes that SLURM cannot reach, with their state: `{"n2": "down*"}`.

    Args:
      nodes: in SLURM's short form, `n[1-3]`.

    Raises:
      SlurmError: SLURM does not answer.
    """
    listing = slurm("sinfo", "--noheader", "--Node", f"--nodes={nodes}", "--format=%N %T")
    states = dict(line.split() for line in listing.splitlines() if line.strip())
    return {node: state for node, state in states.items() if state.endswith("*") or state.startswith("down")}
