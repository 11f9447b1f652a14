"""What a launch came to: its attempts, the share of the time that trained steps which count, and how that is told.

Functions over the events that the trainer wrote to events.jsonl, one list an attempt:
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
    """One life of the gang.

    Attributes:
      number: over the life of RUN, from 1.
      seconds: from the start of its workers to the end of the last.
      cause: why it ended, or `done`.
      exit_codes: by rank, as a shell counts: 128 + N for signal N.
      events: the trainer's, of this attempt.
      end_step: the last step that is known of.
      log: of the worker that was the cause, relative to RUN; empty where it has nothing to say.
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
        """The step it began from, or None where it did not get so far."""
        return start_step(self.events)


def start_step(events: Sequence[Event]) -> int | None:
    """Returns the step that an attempt began from, or None where it did not get so far."""
    return next((event.get("step") for event in events if event["event"] in ("start", "restored")), None)


def end_step(events: Sequence[Event], *known: int | None) -> int | None:
    """Returns the last step of an attempt that is known of: from its events, and from elsewhere in `known`."""
    if start_step(events) is None:
        return None
    steps = [event.get("step") for event in events if event["event"] != "restart"]
    return max((step for step in (*steps, *known) if step is not None), default=None)


def seconds_that_count(attempts: Sequence[Sequence[Event]], kept_step: int | None = None) -> list[float]:
    """Returns for each attempt how long it trained steps that count, in seconds.

    A step counts when no later attempt had to do it again. The time runs from the end of an attempt's first step,
    before which lie imports, compilation and restoring, to the moment when it took the state that the later ones began
    from.

    Args:
      attempts: the events of each, in their order.
      kept_step: of the checkpoint that a next attempt would begin from; for the last attempt if it is not done.
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
    """Returns the share of `wall_seconds` in which steps were trained that count, 0 to 1."""
    counted = sum(seconds_that_count([attempt.events for attempt in attempts], kept_step))
    return min(1.0, counted / wall_seconds) if wall_seconds > 0 else 0.0


def summary(attempts: Sequence[Attempt], wall_seconds: float, kept_step: int | None = None) -> str:
    """Returns the table of a launch's attempts and its goodput, as lines.

    Args:
      attempts: in their order.
      wall_seconds: of the whole launch.
      kept_step: as for `seconds_that_count`.
    """
    rows = [(str(attempt.number), _steps(attempt), _cause(attempt)) for attempt in attempts]
    number_width, steps_width, cause_width = (max((len(row[column]) for row in rows), default=0) for column in range(3))
    lines = [f"Attempts: {len(attempts)} in {duration_text(wall_seconds)}"]
    for (number, steps, cause), following in zip(rows, [*attempts[1:], None], strict=True):
        went_on = "" if following is None or following.start_step is None else _went_on(following.start_step)
        lines.append(f"  {number:>{number_width}}  {steps:<{steps_width}}  {cause:<{cause_width}}  {went_on}".rstrip())
    share = goodput(attempts, wall_seconds, kept_step)
    lines.append(
        f"Goodput: {share:.0%} of the time trained steps that count "
        f"({duration_text(share * wall_seconds)} of {duration_text(wall_seconds)}).".replace("%", " %")
    )
    return "\n".join(lines)


def as_json(attempts: Sequence[Attempt], wall_seconds: float, kept_step: int | None = None) -> dict[str, Any]:
    """Returns what `summary` tells for a program to read."""
    counted = seconds_that_count([attempt.events for attempt in attempts], kept_step)
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
            for attempt, seconds in zip(attempts, counted, strict=True)
        ],
        "seconds": round(wall_seconds, 3),
        "goodput": round(goodput(attempts, wall_seconds, kept_step), 4),
    }


def _steps(attempt: Attempt) -> str:
    if attempt.start_step is None:
        return "no step"
    return f"step {attempt.start_step} -> {attempt.end_step}"


def _cause(attempt: Attempt) -> str:
    cause = attempt.cause
    if len(cause) > _LONGEST_CAUSE:
        cause = cause[: _LONGEST_CAUSE - 3].rstrip() + "..."
    return f"{cause} ({attempt.log})" if attempt.log else cause


def _went_on(step: int) -> str:
    return f"went on from step {step}" if step else "went on from the start"
