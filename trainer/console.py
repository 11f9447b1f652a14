"""What a person sees of a run: a header, progress, a row an evaluation.

On a terminal there is a live bar; elsewhere a plain line every `log_every` steps.
"""

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_INPUT_BOUND_PCT = 20  # from this share of the time on, faster devices would not help


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
        self.console = console or Console(highlight=False, soft_wrap=True, quiet=not shows)
        self._total_steps = total_steps
        self._first_step = first_step
        self._started = time.perf_counter()
        self._bar: Progress | None = None
        self._task = None

    def __enter__(self) -> "TrainingConsole":
        """Starts the bar where there is a terminal."""
        if self.console.is_terminal:
            columns = (TextColumn("{task.fields[where]}"), BarColumn(bar_width=None), TextColumn("{task.fields[what]}"))
            self._bar = Progress(*columns, console=self.console, expand=True, transient=True)
            self._task = self._bar.add_task(
                "training", total=self._total_steps, completed=self._first_step, where="starting", what=""
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Takes the bar away."""
        if self._bar:
            self._bar.stop()

    def header(self, rows: Mapping[str, str]) -> None:
        """Shows what is about to run, a row each."""
        width = max(map(len, rows))
        for name, value in rows.items():  # unlike in a table no line is broken, so that a command can be copied
            self.say(f"{name:<{width}}  {value}")

    def step(self, step: int) -> None:
        """Moves the bar."""
        if self._bar:
            self._bar.update(self._task, completed=step, where=f"step {step}/{self._total_steps}")

    def progress(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Shows how training goes, from the values of the last `log_every` steps by tag."""
        input_bound = " (input-bound)" if values["perf/input_wait_pct"] > _INPUT_BOUND_PCT else ""
        text = (
            f"loss {values['quality/loss']:.4f}  top-1 {values['quality/top1']:6.2%}  "
            f"{values['perf/images_per_s']:,.0f} images/s  {values['perf/step_ms_p50']:.0f} ms/step  "
            f"input wait {values['perf/input_wait_pct']:.1f}%{input_bound}  "
            f"lr {values['optim/lr']:.2e}  ETA {self._eta(step)}"
        )
        if self._bar:
            self._bar.update(self._task, completed=step, where=f"step {step}/{self._total_steps}", what=text)
        else:
            self.say(f"step {step}/{self._total_steps}  epoch {epoch:.2f}  {text}")

    def evaluation(self, step: int, epoch: float, split: str, values: Mapping[str, float], is_best: bool) -> None:
        """Shows an evaluation's metrics (`metrics.summarize`) as a row."""
        self.say(
            f"step {step}/{self._total_steps}  epoch {epoch:.2f}  {quality_row(split, values)}"
            + ("  *best*" if is_best else "")
        )

    def say(self, text: str) -> None:
        """Shows a line."""
        self.console.print(text, markup=False)

    def _eta(self, step: int) -> str:
        # Evaluations and checkpoints are part of what is left too, so the whole elapsed time counts.
        done = max(1, step - self._first_step)
        return duration_text((time.perf_counter() - self._started) / done * (self._total_steps - step))


def quality_row(split: str, values: Mapping[str, float]) -> str:
    """Returns an evaluation's metrics as one row of text."""
    return (
        f"{split}: loss {values['loss']:.4f}  top-1 {values['top1']:.2%}  top-5 {values['top5']:.2%}  "
        f"macro F1 {values['macro_f1']:.2%}  ECE {values['ece']:.2%}"
    )


def duration_text(seconds: float) -> str:
    """Returns seconds as `m:ss` or `h:mm:ss`."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
