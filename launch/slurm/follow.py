"""Follows a SLURM job: prints its state and its log until it ends.

exit_code = follow("17", Path("run/logs/slurm-17.out"), Screen.of_standard_output())

Following can be stopped at any time without an effect on the job.
"""

import signal
import time
from pathlib import Path

from convoy.core.exit_codes import RETRYABLE
from convoy.launch.screen import Follower, Screen
from convoy.launch.shutdown import Signals
from convoy.launch.slurm.client import Job, SlurmError, query_job

_POLL_SECONDS = 2.0  # every poll is a request to slurmctld
_TICK_SECONDS = 0.1
# Exit codes for jobs whose batch script has none of its own.
_EXIT_CODES = {"CANCELLED": 128 + signal.SIGTERM, "TIMEOUT": RETRYABLE, "NODE_FAIL": RETRYABLE, "PREEMPTED": RETRYABLE}


def follow(job_id: str, log: Path, screen: Screen) -> int:
    """Follows a job until it ends or a signal arrives.

    Args:
      job_id: number of the job.
      log: the job's log file, which need not exist yet.
      screen: where to print.

    Returns:
      The job's exit code; 128 + N after signal N.
    """
    screen.say(
        f"convoy: following job {job_id}. Ctrl-C stops following only; `scancel {job_id}` saves a checkpoint and ends "
        "the job."
    )
    lines = Follower(log, prefix="")
    last_status, next_poll = "", 0.0
    try:
        with Signals() as signals:
            while not signals.pending:
                if time.monotonic() >= next_poll:
                    try:
                        job = query_job(job_id)
                        status = _status(job_id, job)
                        if job is None or job.has_ended:
                            screen.write(lines.rest())
                            screen.say(f"convoy: {status}")
                            return _exit_code(job)
                    except SlurmError as error:
                        if signals.pending:  # Ctrl-C reached SLURM's command too
                            break
                        status = f"SLURM does not answer: {error}"
                    if status != last_status:
                        screen.say(f"convoy: {status}")
                        last_status = status
                    next_poll = time.monotonic() + _POLL_SECONDS
                screen.follow(lines)
                time.sleep(_TICK_SECONDS)
            number = signals.take()[-1]
        screen.say(f"convoy: stopped following. Job {job_id} is still running; `scancel {job_id}` ends it. Log: {log}")
        return 128 + number
    finally:
        screen.drain()


def _status(job_id: str, job: Job | None) -> str:
    """Returns the log line for a job's state."""
    if job is None:
        return f"job {job_id} has ended, and SLURM has no record of it. Try `sacct -j {job_id}`."
    start = f", start {job.restarts + 1}" if job.restarts else ""
    if job.state == "PENDING":
        if job.reason == "BeginTime":  # SLURM delays a requeued job until it is cleaned up
            at = job.start_time.partition("T")[2]  # may be unknown
            return f"job {job_id} is requeued{start}." + (f" It starts at {at} or later." if at else "")
        reason = "" if job.reason == "None" else f" ({job.reason})"
        return f"job {job_id} is pending{start}{reason}."
    if job.state == "RUNNING":
        return f"job {job_id} is running on {job.nodes}{start}."
    if job.state == "COMPLETED":
        return f"job {job_id} is done."
    if job.has_ended:
        reason = "" if job.reason in ("None", "NonZeroExitCode") else f", {job.reason}"
        return f"job {job_id} has ended: {job.state}{reason}, exit code {_exit_code(job)}."
    return f"job {job_id}: {job.state}{start}."


def _exit_code(job: Job | None) -> int:
    if job is None:
        return 1
    if job.state == "COMPLETED":
        return 0
    return job.exit_code or _EXIT_CODES.get(job.state, 1)
