"""What a person sees of a run: a header, progress, a row an evaluation.

On a terminal there is a live bar, with the newest numbers under it and a table of evaluations above it; elsewhere a
plain line every `log_every` steps and one an evaluation.
"""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from convoy.core.text import duration_text
from convoy.core.thresholds import INPUT_BOUND_PCT

_REFRESHES_PER_SECOND = 2  # each takes a core some milliseconds
_TABLE = (
    *(("step", 7), ("epoch", 7), ("train top-1", 13), ("loss", 8), ("top-1", 8), ("top-5", 8)),
    *(("macro F1", 10), ("ECE", 7)),
)


class TrainingConsole:
    """Shows a run of `total_steps` steps. A context manager: leaving it takes the bar away."""

    def __init__(self, total_steps: int, first_step: int, console: Console | None = None, *, shows: bool = True):
        """Shows nothing yet.

        Args:
          total_steps: of the run.
          first_step: where this start begins.
          console: where to; standard output where left out.
          shows: False for a worker that leaves the showing to the chief.
        """
        self.console = console or Console(
            file=_Screen(sys.stdout) if sys.stdout else None, highlight=False, soft_wrap=True, quiet=not shows
        )
        self._total_steps = total_steps
        self._first_step = first_step
        self._first_done: tuple[int, float] | None = None  # the first step, and when it ended
        self._live: Live | None = None
        self._numbers = Text(no_wrap=True, overflow="ellipsis")
        self._train_top1: float | None = None
        self._has_table = False

    def __enter__(self) -> "TrainingConsole":
        """Starts the bar where there is a terminal that can draw one."""
        if self.console.is_interactive:
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[ends]}"),
                expand=True,
            )
            self._task = self._bar.add_task("training", total=self._total_steps, completed=self._first_step, ends="")
            self._live = Live(
                Group(self._bar, self._numbers),
                console=self.console,
                refresh_per_second=_REFRESHES_PER_SECOND,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Takes the bar away."""
        if self._live:
            self._live.stop()

    def header(self, rows: Mapping[str, str]) -> None:
        """Shows what is about to run, a row each."""
        width = max(map(len, rows))
        for name, value in rows.items():  # unlike in a table no line is broken, so that a command can be copied
            self.console.print(Text.assemble((f"{name:<{width}}", "bold"), f"  {value}"))

    def step(self, step: int) -> None:
        """Moves the bar."""
        self._first_done = self._first_done or (step, time.perf_counter())
        if self._live:
            self._bar.update(self._task, completed=step)

    def progress(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Shows how training goes, from the values of the last `log_every` steps by tag."""
        self._train_top1 = values["quality/top1"]
        is_input_bound = values["perf/input_wait_pct"] > INPUT_BOUND_PCT
        text = Text.assemble(
            f"loss {values['quality/loss']:.4f}  top-1 {values['quality/top1']:6.2%}  "
            f"{values['perf/images_per_s']:,.0f} images/s  {values['perf/step_ms_p50']:.0f} ms/step  ",
            (
                f"input wait {values['perf/input_wait_pct']:.1f}%{' (input-bound)' if is_input_bound else ''}",
                "yellow" if is_input_bound else "",
            ),
            f"  lr {values['optim/lr']:.2e}",
        )
        if self._live:
            self._bar.update(self._task, completed=step, ends=f"epoch {epoch:.2f}  ETA {self._eta(step)}")
            self._numbers.plain, self._numbers.spans = text.plain, text.spans
        else:
            self.say(f"step {step}/{self._total_steps}  epoch {epoch:.2f}  {text.plain}  ETA {self._eta(step)}")

    def evaluation(self, step: int, epoch: float, split: str, values: Mapping[str, float], is_best: bool) -> None:
        """Shows an evaluation's metrics (`metrics.summarize`) as a row."""
        if not self._live:
            mark = "  *best*" if is_best else ""
            self.say(f"step {step}/{self._total_steps}  epoch {epoch:.2f}  {quality_row(split, values)}{mark}")
            return
        if not self._has_table:
            self._has_table = True
            self.console.print(Text("".join(f"{name:>{width}}" for name, width in _TABLE) + f"  {split}", "bold"))
        train_top1 = "" if self._train_top1 is None else f"{self._train_top1:.2%}"
        cells = (str(step), f"{epoch:.2f}", train_top1, f"{values['loss']:.4f}")
        cells += tuple(f"{values[name]:.2%}" for name in ("top1", "top5", "macro_f1", "ece"))
        row = "".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, _TABLE, strict=True))
        self.console.print(Text(f"{row}  * best", "green") if is_best else row)

    def say(self, text: str) -> None:
        """Shows a line; a warning stands out on a terminal, and prose is broken between words there."""
        is_prose = self._live and text.startswith(("Warning:", "Note:", "Limits:"))
        style = "yellow" if text.startswith("Warning:") else ""
        self.console.print(Text(text, style), soft_wrap=not is_prose)

    def _eta(self, step: int) -> str:
        # From the end of the first step, before which lies compiling. Evaluations and checkpoints are part of what is
        # left too, so all the time since then counts.
        first, since = self._first_done or (step, 0.0)
        if step <= first:
            return "?"
        return duration_text((time.perf_counter() - since) / (step - first) * (self._total_steps - step))


class _Screen:
    """A file on which what cannot be written is left out: a full disk must not end a run whose log lies there."""

    def __init__(self, file: TextIO):
        self._file = file

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (whatever a file has)
        return getattr(self._file, name)

    def write(self, text: str) -> None:
        with self._tolerating():
            self._file.write(text)

    def flush(self) -> None:
        with self._tolerating():
            self._file.flush()

    @contextlib.contextmanager
    def _tolerating(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # ends the run as it ends any program whose reader has gone
            raise
        except OSError:
            pass


def quality_row(split: str, values: Mapping[str, float]) -> str:
    """Returns an evaluation's metrics as one row of text."""
    return (
        f"{split}: loss {values['loss']:.4f}  top-1 {values['top1']:.2%}  top-5 {values['top5']:.2%}  "
        f"macro F1 {values['macro_f1']:.2%}  ECE {values['ece']:.2%}"
    )
