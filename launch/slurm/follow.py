"""Shows how a SLURM job is and what it writes, until it ends.

exit_code = follow("17", Path("run/logs/slurm-17.out"), Screen.of_standard_output())

Whoever follows can stop at any time: the job does not notice.
"""

import signal
import time
from pathlib import Path

from convoy.core.exit_codes import RETRYABLE
from convoy.launch.screen import Follower, Screen
from convoy.launch.shutdown import Signals
from convoy.launch.slurm.client import Job, SlurmError, job_facts

_POLL_SECONDS = 2.0  # each asks slurmctld
_TICK_SECONDS = 0.1
# Where the batch script's own exit code does not say it.
_EXIT_CODES = {"CANCELLED": 128 + signal.SIGTERM, "TIMEOUT": RETRYABLE, "NODE_FAIL": RETRYABLE, "PREEMPTED": RETRYABLE}


def follow(job: str, log: Path, screen: Screen) -> int:
    """Follows a job to its end, or until a signal comes.

    Args:
      job: its number.
      log: that it writes; need not be there yet.
      screen: where to show it.

    Returns:
      The job's exit code; 128 + N after signal N.
    """
    screen.say(f"convoy: following job {job}. Ctrl-C stops only that; `scancel {job}` ends the job, which saves first.")
    lines = Follower(log, prefix="")
    said, next_poll = "", 0.0
    try:
        with Signals() as signals:
            while not signals.are_waiting:
                if time.monotonic() >= next_poll:
                    try:
                        facts = job_facts(job)
                        text = _described(job, facts)
                    except SlurmError as error:
                        if signals.are_waiting:  # the person's Ctrl-C reached the command too
                            break
                        facts, text = Job("UNKNOWN", "", "", "", 0, 0, True), f"SLURM does not answer: {error}"
                    if facts is None or facts.has_ended:
                        screen.write(lines.rest())
                        screen.say(f"convoy: {text}")
                        return _exit_code(facts)
                    if text != said:
                        screen.say(f"convoy: {text}")
                        said = text
                    next_poll = time.monotonic() + _POLL_SECONDS
                screen.follow(lines)
                time.sleep(_TICK_SECONDS)
            number = signals.take()[-1]
        screen.say(f"convoy: no longer following. Job {job} goes on; `scancel {job}` ends it. Its log: {log}")
        return 128 + number
    finally:
        screen.drain()


def _described(job: str, facts: Job | None) -> str:
    """Returns how a job is, in a sentence that stays the same as long as the job does."""
    if facts is None:
        return f"job {job} is over, and SLURM no longer knows how it ended. `sacct -j {job}` may."
    again = f", start {facts.restarts + 1}" if facts.restarts else ""
    if facts.state == "PENDING":
        if facts.reason == "BeginTime":  # a requeued job waits until all traces of it are gone
            return f"job {job} is back in the queue{again}. It starts at {facts.start_time.partition('T')[2]} or later."
        why = "" if facts.reason == "None" else f" ({facts.reason})"
        return f"job {job} waits in the queue{again}{why}."
    if facts.state == "RUNNING":
        return f"job {job} runs on {facts.nodes}{again}."
    if facts.state == "COMPLETED":
        return f"job {job} is done."
    if facts.has_ended:
        why = "" if facts.reason in ("None", "NonZeroExitCode") else f", {facts.reason}"
        return f"job {job} has ended: {facts.state}{why}, exit code {_exit_code(facts)}."
    return f"job {job}: {facts.state}{again}."


def _exit_code(facts: Job | None) -> int:
    if facts is None:
        return 1
    if facts.state == "COMPLETED":
        return 0
    return facts.exit_code or _EXIT_CODES.get(facts.state, 1)
