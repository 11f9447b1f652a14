"""Cause of a failed attempt, and the decision to restart. Pure functions and rules, shared by all engines.

    policy = RestartPolicy(max_restarts=3)
    cause = cause_of(outcomes, events)                    # of one attempt's workers
    decision = policy.decide(cause, new_checkpoint=True)  # restart, or stop with an exit code and a reason

All workers of an attempt start and end together. When one fails, the others lose their peer and exit with code 138
within seconds. Those are secondary failures; the cause is the worker that ended for a reason of its own.
"""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from operator import attrgetter
from typing import Any

from convoy.core.exit_codes import DATA, ERROR, INTERRUPTED, RETRYABLE, USAGE
from convoy.core.text import counted

_LAST_SIGNAL = 64
_NEVER_RESTARTED = {USAGE: "invalid flags or config", DATA: "unusable data or checkpoint"}


class Kind(Enum):
    """Kind of failure of an attempt."""

    KILLED = "killed"
    FAILED = "failed"  # an exception in the program
    REFUSED = "refused"  # invalid flags, config, data, checkpoint or callback: a restart would fail the same way
    INTERRUPTED = "interrupted"
    STOPPED = "stopped"  # SIGSTOP
    UNRESPONSIVE = "unresponsive"  # still running after its peers had exited
    PREEMPTED = "preempted"
    PEER_LOST = "peer_lost"
    HOST_LOST = "host_lost"  # outcome unknown: its host is gone


@dataclass(frozen=True)
class WorkerError:
    """The exception that a worker wrote to its error file.

    Attributes:
      time: seconds since 1970.
      step: step of the exception; None before the first step.
      exit_code: exit code that the worker was about to end with.
      error: `Type: text`.
      is_final: whether a restart would fail the same way.
    """

    time: float
    step: int | None
    exit_code: int
    error: str
    is_final: bool = False


@dataclass(frozen=True)
class WorkerOutcome:
    """How a worker ended.

    Attributes:
      rank: rank of the worker; 0 is the chief.
      returncode: exit code, or minus the number of the signal that killed it.
      time: time at which the launcher observed the end, in seconds since 1970.
      error: contents of its error file, if it left one.
      ended_as: STOPPED or UNRESPONSIVE if the launcher had to end it, otherwise None.
      lost: why the outcome is unknown, if its host is gone; `returncode` is meaningless then.
      host_time: the same time by the clock of the worker's host, by which `error` is dated; None if it is the same.
    """

    rank: int
    returncode: int
    time: float
    error: WorkerError | None = None
    ended_as: Kind | None = None
    lost: str = ""
    host_time: float | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the worker is known to have finished its work."""
        return self.returncode == 0 and not self.lost

    @property
    def exit_code(self) -> int:
        """The exit code in shell convention: 128 + N for signal N."""
        return self.returncode if self.returncode >= 0 else 128 - self.returncode

    @property
    def killed_by(self) -> int:
        """Number of the signal that killed the worker, or 0. Workers started by a shell report it as 128 + N."""
        if self.returncode < 0:
            return -self.returncode
        is_signal = 128 < self.returncode <= 128 + _LAST_SIGNAL and self.returncode != RETRYABLE
        return self.returncode - 128 if is_signal else 0

    @property
    def own_error(self) -> WorkerError | None:
        """The error file's content, unless it reports a secondary failure."""
        return self.error if self.error and self.error.exit_code != RETRYABLE else None

    @property
    def is_refused(self) -> bool:
        """Whether a restart would fail the same way."""
        return self.exit_code in _NEVER_RESTARTED or bool(self.own_error and self.own_error.is_final)

    @property
    def is_primary(self) -> bool:
        """Whether the worker failed for a reason of its own, not because it lost a peer."""
        # Exit code 1 without an error file is the start-up deadline, which ends the process from outside Python.
        reported = self.exit_code != RETRYABLE and self.own_error is not None
        return bool(self.killed_by) or self.exit_code in _NEVER_RESTARTED or reported

    @property
    def failure_time(self) -> float:
        """Time of the failure by the launcher's clock, in seconds since 1970."""
        if not self.own_error:
            return self.time
        # Clocks of hosts differ by minutes. How long a worker took to exit is measured on its own host.
        ended = self.time if self.host_time is None else self.host_time
        return self.time - max(0.0, ended - self.own_error.time)


@dataclass(frozen=True)
class Cause:
    """Why an attempt failed.

    Attributes:
      kind: kind of failure.
      rank: rank of the worker that failed first; None if unknown.
      text: one line that names the worker and the reason.
      exit_code: exit code of the launcher if it gives up now.
      step: step of the failing worker, if it reported one.
    """

    kind: Kind
    rank: int | None
    text: str
    exit_code: int
    step: int | None = None


@dataclass(frozen=True)
class Decision:
    """What to do next: restart, or stop with `exit_code`. `reason` is a phrase for the log line."""

    restart: bool
    reason: str
    exit_code: int = 0


class RestartPolicy:
    """Counts restarts and errors since the last new checkpoint."""

    def __init__(self, max_restarts: int):
        """Args: max_restarts: consecutive restarts allowed without a new checkpoint; 0 or more."""
        self._max_restarts = max_restarts
        self._restarts = 0
        self._error_steps: set[int | None] = set()

    def decide(self, cause: Cause, *, new_checkpoint: bool) -> Decision:
        """Returns what to do after a failed attempt.

        Args:
          cause: cause of the failure.
          new_checkpoint: whether the attempt saved a later step than any attempt before.
        """
        if new_checkpoint:
            self._restarts = 0
            self._error_steps.clear()
        if cause.kind is Kind.REFUSED:
            return Decision(False, "Not restarted: a restart would fail the same way", cause.exit_code)
        if cause.kind is Kind.INTERRUPTED:
            return Decision(False, "Not restarted: interrupted by the user", cause.exit_code)
        if cause.kind is Kind.FAILED:
            if cause.step in self._error_steps:
                where = "before the first step" if cause.step is None else f"at step {cause.step}"
                reason = f"Not restarted: failed {where} twice without a new checkpoint in between"
                return Decision(False, reason, cause.exit_code)
            self._error_steps.add(cause.step)
        if self._restarts >= self._max_restarts:
            restarts = counted(self._restarts, "restart")
            reason = f"Giving up after {restarts} without a new checkpoint" if self._restarts else "Not restarted"
            return Decision(False, f"{reason} (--max_restarts={self._max_restarts})", cause.exit_code)
        self._restarts += 1
        return Decision(True, f"restart {self._restarts} of {self._max_restarts} without a new checkpoint")


def cause_of(outcomes: Sequence[WorkerOutcome], events: Sequence[Mapping[str, Any]] = ()) -> Cause:
    """Returns why an attempt failed.

    Args:
      outcomes: outcomes of all workers, at least one of them a failure.
      events: the events that the trainer wrote to events.jsonl during the attempt.
    """
    failed = sorted((outcome for outcome in outcomes if not outcome.succeeded), key=attrgetter("failure_time"))
    forced = [outcome for outcome in failed if outcome.ended_as]
    stopped = [outcome for outcome in forced if outcome.ended_as is Kind.STOPPED]
    lost = [outcome for outcome in failed if outcome.lost]
    primary = [outcome for outcome in failed if not outcome.ended_as and not outcome.lost and outcome.is_primary]
    # TensorFlow may abort a worker that has lost its peer: a secondary failure if anything else went wrong.
    aborted = [outcome for outcome in primary if outcome.killed_by == signal.SIGABRT]
    primary = [outcome for outcome in primary if outcome not in aborted]
    refused = [outcome for outcome in primary if outcome.is_refused]
    if primary and primary[0] in refused:
        return _cause_of_outcome(min(refused, key=attrgetter("rank")))  # the same flags are wrong everywhere
    if causes := [*primary, *lost, *stopped]:
        return _cause_of_outcome(causes[0])
    preempted = next((event for event in events if event["event"] == "preempted"), None)
    if preempted:
        return _preempted(preempted)
    retryable = [(outcome.rank, outcome.error) for outcome in failed if outcome.error and not outcome.own_error]
    for rank, error in retryable[:1]:  # its port is taken, which its peers cannot know
        return Cause(Kind.PEER_LOST, rank, _first_line(error.error), RETRYABLE)
    if causes := [*forced, *aborted]:
        return _cause_of_outcome(causes[0])
    peer_lost = next((event for event in events if event["event"] == "peer_lost"), None)
    if peer_lost:
        return Cause(Kind.PEER_LOST, None, f"peer lost: {_first_line(peer_lost.get('message'))}", RETRYABLE)
    return _cause_of_outcome(failed[0])


def exit_code_after_signal(outcomes: Sequence[WorkerOutcome], number: int, *, had_to_kill: bool) -> int:
    """Returns the launcher's exit code after it forwarded a signal to the workers.

    Args:
      outcomes: outcomes of all workers.
      number: number of the signal; of the last one if there were several.
      had_to_kill: whether a worker did not exit and was killed.
    """
    codes = {outcome.exit_code for outcome in outcomes}
    if codes == {0}:
        return 0
    if had_to_kill:
        return 128 + number
    own = [outcome for outcome in outcomes if outcome.exit_code in (ERROR, *_NEVER_RESTARTED) and outcome.is_primary]
    if own:
        return min(own, key=attrgetter("failure_time")).exit_code
    # After Ctrl-C no scheduler should restart the run, whatever the workers' secondary exit codes.
    return RETRYABLE if RETRYABLE in codes and number != signal.SIGINT else 128 + number


def signal_name(number: int) -> str:
    """Returns `SIGKILL` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _cause_of_outcome(outcome: WorkerOutcome) -> Cause:
    rank, worker = outcome.rank, f"worker {outcome.rank}"
    if outcome.lost:
        return Cause(Kind.HOST_LOST, rank, f"{worker} is lost: {outcome.lost}", RETRYABLE)
    if outcome.ended_as is Kind.STOPPED:
        return Cause(Kind.STOPPED, rank, f"{worker} was stopped (SIGSTOP)", RETRYABLE)
    if outcome.ended_as is Kind.UNRESPONSIVE:
        return Cause(Kind.UNRESPONSIVE, rank, f"{worker} did not exit with its peers and was killed", RETRYABLE)
    step = outcome.error.step if outcome.error else None
    error = _first_line(outcome.own_error.error) if outcome.own_error else ""
    if outcome.exit_code == INTERRUPTED:
        return Cause(Kind.INTERRUPTED, rank, f"{worker} was interrupted (SIGINT)", INTERRUPTED, step)
    if outcome.killed_by:
        return Cause(Kind.KILLED, rank, f"{worker} was killed ({signal_name(outcome.killed_by)})", RETRYABLE, step)
    if outcome.is_refused:
        meaning = error or f"exit code {outcome.exit_code}, {_NEVER_RESTARTED[outcome.exit_code]}"
        return Cause(Kind.REFUSED, rank, f"{worker}: {meaning}", outcome.exit_code, step)
    if error:
        return Cause(Kind.FAILED, rank, f"{worker}: {error}", 1, step)
    if outcome.exit_code == 1:
        text = f"{worker} exited with code 1 and no error report, which is typical of the start-up deadline"
        return Cause(Kind.PEER_LOST, rank, text, RETRYABLE)
    if outcome.exit_code == RETRYABLE:
        return Cause(Kind.PEER_LOST, rank, f"{worker} gave up waiting for its peers (exit code 138)", RETRYABLE)
    return Cause(Kind.KILLED, rank, f"{worker} exited with code {outcome.exit_code}", RETRYABLE, step)


def _preempted(event: Mapping[str, Any]) -> Cause:
    step, rank = event.get("step"), event.get("worker")
    where = "" if step is None else f" at step {step}"
    signaled = "" if rank is None else f" ({event.get('signal', 'SIGTERM')} to worker {rank})"
    return Cause(Kind.PREEMPTED, rank, f"preempted{where}{signaled}", RETRYABLE, step)


def _first_line(text: object) -> str:
    lines = str(text or "").strip().splitlines()
    return lines[0] if lines else "no reason given"
