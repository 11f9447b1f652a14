"""Progress of a long command: a bar on a terminal, and a line every ten seconds otherwise.

with progress_display("converting", "images") as progress:
    progress(120, 5000)    # as often as convenient
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, cast

from convoy.core.streams import Terminal
from convoy.core.terminal import can_redraw

_PLAIN_LINE_SECONDS = 10.0


@contextmanager
def progress_display(activity: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function to call with the number of units done and the total.

    Args:
      activity: what the command does, such as "converting".
      unit: name of the units, such as "images".
    """
    if not can_redraw(sys.stderr):
        yield _PlainProgress(activity, unit)
        return
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn(activity),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[rate]}"),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(
        *columns, console=Console(file=cast("IO[str]", Terminal("stderr"))), transient=True
    ) as bar:
        task = bar.add_task(activity, total=None, rate="starting")

        def update(done: int, total: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=done, total=total, rate=f"{speed:,.0f} {unit}/s" if speed else "starting")

        yield update


class _PlainProgress:
    def __init__(self, activity: str, unit: str) -> None:
        self._activity, self._unit = activity, unit
        self._first: tuple[float, int] | None = None
        self._last = 0
        self._next = time.monotonic() + _PLAIN_LINE_SECONDS

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done and (self._first is None or done < self._last):  # or another pass over the images
            self._first = (now, done)
        self._last = done
        if now < self._next:
            return
        self._next = now + _PLAIN_LINE_SECONDS
        rate = (done - self._first[1]) / (now - self._first[0]) if self._first and now > self._first[0] else 0.0
        left = f", {(total - done) / rate:,.0f} s left" if rate else ""
        print(
            f"{self._activity}: {done:,} of {total:,} {self._unit}, {rate:,.0f} {self._unit}/s{left}",
            file=sys.stderr,
            flush=True,
        )
