"""Why an attempt failed, and whether to start another. Rules without side effects, the same under every engine.

    policy = RestartPolicy(max_restarts=3)
    cause = cause_of(ends, events)                       # of one attempt's workers
    decision = policy.after(cause, new_checkpoint=True)  # restart, or stop with an exit code and a reason

An attempt is one life of the whole gang. When one worker ends badly, the others lose their peer and end with exit code
138 within seconds: those are echoes, and the cause is what ended by itself.
"""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from convoy.core.exit_codes import DATA, ERROR, INTERRUPTED, RETRYABLE, USAGE

_LAST_SIGNAL = 64
_NEVER_RESTARTED = {USAGE: "wrong flags or config", DATA: "data or checkpoint that cannot be used"}


class Kind(Enum):
    """What sort of end an attempt came to."""

    KILLED = "killed"
    FAILED = "failed"  # the program's own error
    REFUSED = "refused"  # wrong flags, config, data or checkpoint: another start gives the same
    INTERRUPTED = "interrupted"
    STOPPED = "stopped"  # SIGSTOP
    UNRESPONSIVE = "silent"  # alive, and did not end although its peers had
    PREEMPTED = "preempted"
    PEER_LOST = "peer_lost"
    HOST_LOST = "host_lost"  # nothing is known of how it ended: its host is gone


@dataclass(frozen=True)
class WorkerError:
    """What a worker wrote of its own exception.

    Attributes:
      time: seconds since 1970.
      step: the step it was in, None before the first.
      exit_code: that it was about to end with.
      error: `Type: text`.
    """

    time: float
    step: int | None
    exit_code: int
    error: str


@dataclass(frozen=True)
class WorkerOutcome:
    """How a worker ended.

    Attributes:
      rank: of the worker; 0 is the chief.
      returncode: its exit code, or minus the signal that killed it.
      time: when that was seen, in seconds since 1970.
      error: its own word on it, where it left one.
      ended_as: STOPPED or SILENT where the launcher had to end it, otherwise None.
      lost: why nothing is known of how it ended, where its host is gone; `returncode` means nothing then.
    """

    rank: int
    returncode: int
    time: float
    error: WorkerError | None = None
    ended_as: Kind | None = None
    lost: str = ""

    @property
    def succeeded(self) -> bool:
        """Whether it is known to have done what it should."""
        return self.returncode == 0 and not self.lost

    @property
    def exit_code(self) -> int:
        """The code as a shell counts: 128 + N for signal N."""
        return self.returncode if self.returncode >= 0 else 128 - self.returncode

    @property
    def killed_by(self) -> int:
        """The number of the signal that killed it, or 0. A worker behind a shell says so with 128 + N."""
        if self.returncode < 0:
            return -self.returncode
        is_a_signals = 128 < self.returncode <= 128 + _LAST_SIGNAL and self.returncode != RETRYABLE
        return self.returncode - 128 if is_a_signals else 0


@dataclass(frozen=True)
class Cause:
    """Why an attempt failed.

    Attributes:
      kind: what sort of end.
      rank: of the worker that it began with; None where that is not known.
      text: one line that names worker and reason.
      exit_code: what the launcher ends with if it gives up now.
      step: that the failing worker was in, where it said so.
    """

    kind: Kind
    rank: int | None
    text: str
    exit_code: int
    step: int | None = None


@dataclass(frozen=True)
class Decision:
    """What to do now: start again, or stop with `exit_code`; `reason` says why in a sentence's words."""

    restart: bool
    reason: str
    exit_code: int = 0


class RestartPolicy:
    """Counts restarts and errors since the last new checkpoint."""

    def __init__(self, max_restarts: int):
        """Args: max_restarts: how many may follow one another without a new checkpoint; 0 or more."""
        self._max_restarts = max_restarts
        self._restarts = 0
        self._steps_of_errors: set[int | None] = set()

    def after(self, cause: Cause, *, new_checkpoint: bool) -> Decision:
        """Says what follows an attempt that failed.

        Args:
          cause: why.
          new_checkpoint: whether training got further than ever before and saved that.
        """
        if new_checkpoint:
            self._restarts = 0
            self._steps_of_errors.clear()
        if cause.kind is Kind.REFUSED:
            return Decision(False, "Another start would end the same", cause.exit_code)
        if cause.kind is Kind.INTERRUPTED:
            return Decision(False, "Not restarted, since somebody interrupted it", cause.exit_code)
        if cause.kind is Kind.FAILED:
            if cause.step in self._steps_of_errors:
                where = "before the first step" if cause.step is None else f"at step {cause.step}"
                return Decision(
                    False, f"Not restarted: it failed {where} twice without a new checkpoint between", cause.exit_code
                )
            self._steps_of_errors.add(cause.step)
        if self._restarts >= self._max_restarts:
            restarts = "1 restart" if self._restarts == 1 else f"{self._restarts} restarts"
            reason = f"Given up after {restarts} without a new checkpoint" if self._restarts else "Not restarted"
            return Decision(False, f"{reason} (--max_restarts={self._max_restarts})", cause.exit_code)
        self._restarts += 1
        return Decision(True, f"restart {self._restarts} of {self._max_restarts} without a new checkpoint")


def cause_of(ends: Sequence[WorkerOutcome], events: Sequence[Mapping[str, Any]] = ()) -> Cause:
    """Returns why an attempt failed.

    Args:
      ends: of all workers; one at least did not end with 0.
      events: what the trainer wrote to events.jsonl in this attempt.
    """
    bad = sorted((end for end in ends if not end.succeeded), key=_time)
    forced = [end for end in bad if end.ended_as]
    gone = [end for end in bad if end.lost]
    own = [end for end in bad if not end.ended_as and not end.lost and _is_its_own(end)]
    # TensorFlow may abort a worker that has lost its peer: where anything else went wrong, that is an echo.
    aborted = [end for end in own if end.killed_by == signal.SIGABRT]
    own = [end for end in own if end not in aborted]
    refused = [end for end in own if end.exit_code in _NEVER_RESTARTED]
    if own and own[0] in refused:
        return _cause_of_end(min(refused, key=lambda end: end.rank))  # the same flags are wrong everywhere
    if own:
        return _cause_of_end(own[0])
    if gone:
        return _cause_of_end(gone[0])
    stopped = [end for end in forced if end.ended_as is Kind.STOPPED]
    if stopped:
        return _cause_of_end(stopped[0])
    preempted = next((event for event in events if event["event"] == "preempted"), None)
    if preempted:
        return _preempted(preempted)
    if forced:
        return _cause_of_end(forced[0])
    if aborted:
        return _cause_of_end(aborted[0])
    lost = next((event for event in events if event["event"] == "peer_lost"), None)
    if lost:
        return Cause(Kind.PEER_LOST, None, f"a peer was lost: {_first_line(lost.get('message'))}", RETRYABLE)
    return _cause_of_end(bad[0])


def exit_code_after_signal(ends: Sequence[WorkerOutcome], number: int, *, had_to_kill: bool) -> int:
    """Returns what to end with after a signal to the launcher was passed on to the workers.

    Args:
      ends: of all workers.
      number: of the signal; the last where there were several.
      had_to_kill: whether a worker did not end by itself.
    """
    codes = {end.exit_code for end in ends}
    if codes <= {0}:
        return 0 if ends else 128 + number
    if had_to_kill:
        return 128 + number
    own = [end for end in ends if end.exit_code in (ERROR, *_NEVER_RESTARTED) and _is_its_own(end)]
    if own:
        return min(own, key=_time).exit_code
    # A person who types Ctrl-C wants no scheduler to start it again, whatever echoes the workers ended with.
    return RETRYABLE if RETRYABLE in codes and number != signal.SIGINT else 128 + number


def _is_its_own(end: WorkerOutcome) -> bool:
    # Exit code 1 with nothing written down is the start-up deadline, which ends a process from outside Python.
    return bool(end.killed_by) or end.exit_code in _NEVER_RESTARTED or (end.exit_code != RETRYABLE and _said_why(end))


def _said_why(end: WorkerOutcome) -> bool:
    return end.error is not None and end.error.exit_code != RETRYABLE


def _time(end: WorkerOutcome) -> float:
    # A host's clock may be ahead of the launcher's.
    return min(end.error.time, end.time) if end.error and _said_why(end) else end.time


def _cause_of_end(end: WorkerOutcome) -> Cause:
    worker = f"worker {end.rank}"
    if end.lost:
        return Cause(Kind.HOST_LOST, end.rank, f"{worker} is lost: {end.lost}", RETRYABLE)
    if end.ended_as is Kind.STOPPED:
        return Cause(Kind.STOPPED, end.rank, f"{worker} was stopped (SIGSTOP)", RETRYABLE)
    if end.ended_as is Kind.UNRESPONSIVE:
        return Cause(Kind.UNRESPONSIVE, end.rank, f"{worker} did not end with its peers and was killed", RETRYABLE)
    step = end.error.step if end.error else None
    error = _first_line(end.error.error) if end.error and _said_why(end) else ""
    if end.exit_code == INTERRUPTED:
        return Cause(Kind.INTERRUPTED, end.rank, f"{worker} was interrupted (SIGINT)", INTERRUPTED, step)
    if end.killed_by:
        return Cause(Kind.KILLED, end.rank, f"{worker} was killed ({signal_name(end.killed_by)})", RETRYABLE, step)
    if end.exit_code in _NEVER_RESTARTED:
        meaning = error or f"exit code {end.exit_code}, {_NEVER_RESTARTED[end.exit_code]}"
        return Cause(Kind.REFUSED, end.rank, f"{worker}: {meaning}", end.exit_code, step)
    if error:
        return Cause(Kind.FAILED, end.rank, f"{worker}: {error}", ERROR, step)
    if end.exit_code == ERROR:
        return Cause(
            Kind.PEER_LOST,
            end.rank,
            f"{worker} ended with exit code 1 and no word why, as its start-up deadline does",
            RETRYABLE,
        )
    if end.exit_code == RETRYABLE:
        return Cause(Kind.PEER_LOST, end.rank, f"{worker} gave up waiting for its peers (exit code 138)", RETRYABLE)
    return Cause(Kind.KILLED, end.rank, f"{worker} ended with exit code {end.exit_code}", RETRYABLE, step)


def _preempted(event: Mapping[str, Any]) -> Cause:
    step, rank = event.get("step"), event.get("worker")
    where = "" if step is None else f" at step {step}"
    whom = "" if rank is None else f" ({event.get('signal', 'SIGTERM')} to worker {rank})"
    return Cause(Kind.PREEMPTED, rank, f"preempted{where}{whom}", RETRYABLE, step)


def signal_name(number: int) -> str:
    """Returns `SIGKILL` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _first_line(text: object) -> str:
    lines = str(text or "").strip().splitlines()
    return lines[0] if lines else "no reason given"
