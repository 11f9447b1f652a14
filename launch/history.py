"""Attempts of a launch, their goodput (share of wall time spent on retained steps), and the summary of both.

Functions over the events that the trainer wrote to events.jsonl, one list per attempt:
`{"event": name, "time": seconds since 1970, "step": ...}`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convoy.core.text import duration_text

Event = Mapping[str, Any]

_LONGEST_CAUSE = 90  # characters in the table


@dataclass(frozen=True)
class Attempt:
    """One attempt: all workers, from their start to the end of the last.

    Attributes:
      number: counted from 1 over the life of RUN.
      seconds: duration.
      cause: why it ended, or `done`.
      exit_codes: exit codes by rank, in shell convention: 128 + N for signal N.
      events: the trainer's events of this attempt.
      end_step: last step known to be reached.
      log: log of the worker that caused the failure, relative to RUN; empty if it is of no use.
    """

    number: int
    seconds: float
    cause: str
    exit_codes: tuple[int, ...]
    events: Sequence[Event] = ()
    end_step: int | None = None
    log: str = ""

    @property
    def start_step(self) -> int | None:
        """The step at which the attempt started, or None if it did not get that far."""
        return start_step(self.events)


def start_step(events: Sequence[Event]) -> int | None:
    """Returns the step at which an attempt started, or None if it did not get that far."""
    return next((event.get("step") for event in events if event["event"] in ("start", "restored")), None)


def end_step(events: Sequence[Event], *known: int | None) -> int | None:
    """Returns the last step known to be reached in an attempt, from its events and from other sources in `known`."""
    if start_step(events) is None:
        return None
    steps = [event.get("step") for event in events if event["event"] != "restart"]
    return max((step for step in (*steps, *known) if step is not None), default=None)


def retained_seconds(attempts: Sequence[Sequence[Event]], kept_step: int | None = None) -> list[float]:
    """Returns the time that each attempt spent on retained steps, in seconds.

    A step is retained if no later attempt had to repeat it. The time runs from the end of an attempt's first step
    (imports, compilation and restoring come before it) to the checkpoint from which later attempts continued.

    Args:
      attempts: events of each attempt, in order.
      kept_step: step of the checkpoint from which another attempt would resume; applies to a last attempt that did
        not finish.
    """
    result = []
    limit = kept_step
    for events in reversed(attempts):
        result.append(_seconds_to(events, limit))
        begin = start_step(events)
        if begin is not None:
            limit = begin if limit is None else min(limit, begin)
    return result[::-1]


def _seconds_to(events: Sequence[Event], step: int | None) -> float:
    first = next((event["time"] for event in events if event["event"] == "first_step"), None)
    ends = [
        event["time"]
        for event in events
        if event["event"] == "done" or (event["event"] == "checkpoint" and event.get("step") == step)
    ]
    return max(0.0, ends[-1] - first) if first is not None and ends else 0.0


def goodput(attempts: Sequence[Attempt], wall_seconds: float, kept_step: int | None = None) -> float:
    """Returns the share of `wall_seconds` spent on retained steps, 0 to 1."""
    retained = sum(retained_seconds([attempt.events for attempt in attempts], kept_step))
    return min(1.0, retained / wall_seconds) if wall_seconds > 0 else 0.0


def summary(attempts: Sequence[Attempt], wall_seconds: float, kept_step: int | None = None) -> str:
    """Returns the lines that summarize a launch: one row per attempt, and the goodput.

    Args:
      attempts: in order.
      wall_seconds: duration of the whole launch.
      kept_step: as for `retained_seconds`.
    """
    rows = [(str(attempt.number), _steps(attempt), _cause(attempt)) for attempt in attempts]
    number_width, steps_width, cause_width = (max((len(row[column]) for row in rows), default=0) for column in range(3))
    lines = [f"Attempts: {len(attempts)} in {duration_text(wall_seconds)}"]
    for (number, steps, cause), following in zip(rows, [*attempts[1:], None], strict=True):
        next_step = following.start_step if following else None
        resumed = "" if next_step is None else f"resumed from step {next_step}"
        lines.append(f"  {number:>{number_width}}  {steps:<{steps_width}}  {cause:<{cause_width}}  {resumed}".rstrip())
    share = goodput(attempts, wall_seconds, kept_step)
    retained = f"{duration_text(share * wall_seconds)} of {duration_text(wall_seconds)}"
    lines.append(f"Goodput: {100 * share:.0f} % ({retained} spent on retained steps)")
    return "\n".join(lines)


def as_json(attempts: Sequence[Attempt], wall_seconds: float, kept_step: int | None = None) -> dict[str, Any]:
    """Returns the content of `summary` as JSON values."""
    retained = retained_seconds([attempt.events for attempt in attempts], kept_step)
    return {
        "attempts": [
            {
                "attempt": attempt.number,
                "start_step": attempt.start_step,
                "end_step": attempt.end_step,
                "cause": attempt.cause,
                "log": attempt.log or None,
                "exit_codes": list(attempt.exit_codes),
                "seconds": round(attempt.seconds, 3),
                "seconds_that_count": round(seconds, 3),
            }
            for attempt, seconds in zip(attempts, retained, strict=True)
        ],
        "seconds": round(wall_seconds, 3),
        "goodput": round(goodput(attempts, wall_seconds, kept_step), 4),
    }


def _steps(attempt: Attempt) -> str:
    return "no step" if attempt.start_step is None else f"step {attempt.start_step} -> {attempt.end_step}"


def _cause(attempt: Attempt) -> str:
    cause = attempt.cause
    if len(cause) > _LONGEST_CAUSE:
        cause = cause[: _LONGEST_CAUSE - 3].rstrip() + "..."
    return f"{cause} ({attempt.log})" if attempt.log else cause
