"""Console output of training: a header, progress, and one row per evaluation.

A terminal shows a live progress bar with the latest metrics below it and a table of evaluations above it. Other outputs
get one plain line every `log_every` steps and one per evaluation.
"""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, cast

from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from convoy.core.finding import Finding, Severity
from convoy.core.streams import Terminal, escaped
from convoy.core.terminal import can_redraw
from convoy.core.text import duration_text
from convoy.core.thresholds import INPUT_BOUND_PCT
from convoy.trainer.callbacks.callback import Callback, Evaluation, Log, Training
from convoy.trainer.run.task import SINGLE_LABEL, Task, task_of_metrics

if TYPE_CHECKING:
    from convoy.trainer.step.step import StepResult

_REFRESHES_PER_SECOND = 2  # a refresh takes some milliseconds of CPU time
# Widths of columns of the table of evaluations; those of metrics follow from their titles.
_FIRST_COLUMNS = {"step": 7, "epoch": 7}


class Console(Callback):
    """Shows a run on standard output, for the command line and for programs that want the same.

    Example:
      convoy.train("smoke", data="data", workdir="shown", devices="cpu:1", callbacks=[convoy.Console()])
    """

    every_worker = True

    def __init__(self, console: RichConsole | None = None):
        """Args: console: where to print; None for standard output."""
        self._console = console
        self._shown_limits = ""
        self._has_begun = False

    def on_start(self, training: Training) -> None:
        """Prints the settings of the run; on workers other than the chief, one line."""
        from convoy.trainer.session.description import header_rows

        session, group = training.session, training.session.worker_group
        self._view = self._new_view(training).__enter__()
        self._has_begun = True
        if not training.is_chief:
            print(
                f"Worker {training.rank} of {training.num_workers} trains from step {training.step}. "
                f"The chief, {group.address(0)}, shows progress and writes {training.workdir}.",
                flush=True,
            )
            return
        self._view.header(
            header_rows(session.config, session.plan, session.runtime, session.dataset, session.run, group)
        )
        if training.step:
            changed = f" Changed: {'; '.join(training.changed)}." if training.changed else ""
            self._view.say(f"Resumed at step {training.step} of {training.total_steps}.{changed}")

    def on_step_end(self, training: Training, result: "StepResult") -> None:
        """Advances the progress bar."""
        self._view.step(training.step)

    def on_log(self, training: Training, log: Log) -> None:
        """Shows the training metrics, and the bottleneck analysis when it says something new."""
        self._view.progress(log.step, log.epoch, log.values)
        if log.limits and log.limits["sentence"] != self._shown_limits:
            self._shown_limits = log.limits["sentence"]
            self._view.say(f"Limits: {self._shown_limits}.")

    def on_evaluation(self, training: Training, evaluation: Evaluation) -> None:
        """Shows the metrics of an evaluation as a row."""
        self._view.evaluation(
            evaluation.step, evaluation.epoch, evaluation.split, evaluation.metrics, evaluation.is_best
        )

    def on_message(self, training: Training, message: str | Finding) -> None:
        """Prints a line, or a finding and its fix."""
        view = self._view if self._has_begun else self._new_view(training)
        if isinstance(message, Finding):
            view.finding(message)
        else:
            view.say(message)

    def on_end(self, training: Training, result: Mapping[str, Any] | None) -> None:
        """Removes the progress bar, and says what has become of the run."""
        if self._has_begun:
            self._view.__exit__(None, None, None)
        if self._has_begun and result:
            step, stop = result["step"], result["stop"]
            reached = f"Stopped at step {step}: {stop['reason']}" if stop else f"Done: step {step}"
            self._view.say(f"{reached}, weights_sha256 {result['weights_sha256'][:16]}.")
            self._view.say(f"Curves: {training.session.run.curves}")

    def _new_view(self, training: Training) -> "TrainingConsole":
        task = training.session.objective.task
        return TrainingConsole(training.total_steps, training.step, self._console, shows=training.is_chief, task=task)


class TrainingConsole:
    """Shows a run of `total_steps` steps. A context manager: leaving it removes the bar."""

    def __init__(
        self,
        total_steps: int,
        first_step: int,
        console: RichConsole | None = None,
        *,
        shows: bool = True,
        task: Task = SINGLE_LABEL,
    ):
        """Shows nothing yet.

        Args:
          total_steps: length of the run.
          first_step: steps done before this start.
          console: where to print; None for standard output.
          shows: False for workers other than the chief, which print nothing.
          task: what the run predicts, which decides the metrics.
        """
        self._predicts = task
        # FORCE_COLOR, which rich takes for a terminal, colors lines; what moves needs a real one.
        draws = None if can_redraw(sys.stdout) else False
        self.console = console or RichConsole(
            file=cast("IO[str]", Terminal()), highlight=False, soft_wrap=True, quiet=not shows, force_interactive=draws
        )
        self._total_steps = total_steps
        self._first_step = first_step
        self._first_done: tuple[int, float] | None = None  # the first step of this start, and when it ended
        self._live: Live | None = None
        self._numbers = Text(no_wrap=True, overflow="ellipsis")
        self._train_score: float | None = None
        self._has_table = False

    def __enter__(self) -> "TrainingConsole":
        """Starts the bar if the output is a terminal that can draw one."""
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
        """Removes the bar."""
        if self._live:
            self._live.stop()

    def header(self, rows: Mapping[str, str]) -> None:
        """Prints the settings of the run, one row per setting."""
        width = max(map(len, rows))
        for name, value in rows.items():  # a table would break lines, so that a command could not be copied
            self.console.print(Text.assemble((f"{name:<{width}}", "bold"), f"  {escaped(value)}"))

    def step(self, step: int) -> None:
        """Advances the bar."""
        self._first_done = self._first_done or (step, time.perf_counter())
        if self._live:
            self._bar.update(self._task, completed=step)

    def progress(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Shows the training metrics of the last `log_every` steps, by tag."""
        self._train_score = score = values[f"quality/{self._predicts.score}"]
        is_input_bound = values["perf/input_wait_pct"] > INPUT_BOUND_PCT
        text = Text.assemble(
            f"loss {values['quality/loss']:.4f}  {self._predicts.score_title} {score:6.2%}  "
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
        """Shows the metrics of an evaluation (`metrics.summarize`) as a row."""
        if not self._live:
            mark = "  *best*" if is_best else ""
            self.say(f"step {step}/{self._total_steps}  epoch {epoch:.2f}  {quality_row(split, values)}{mark}")
            return
        row = self._predicts.row(values)
        train_title = f"train {self._predicts.score_title}"
        cells = {"step": str(step), "epoch": f"{epoch:.2f}", train_title: "", **row}
        if self._train_score is not None:
            cells[train_title] = f"{self._train_score:.2%}"
        widths = {name: _FIRST_COLUMNS.get(name) or max(8, len(name) + 2) for name in cells}
        if not self._has_table:
            self._has_table = True
            header = "".join(f"{name:>{width}}" for name, width in widths.items())
            self.console.print(Text(f"{header}  {split}", "bold"))
        line = "".join(f"{cell:>{width}}" for cell, width in zip(cells.values(), widths.values(), strict=True))
        self.console.print(Text(f"{line}  * best", "green") if is_best else line)

    def say(self, text: str) -> None:
        """Prints a line; on a terminal, warnings are colored and prose is wrapped at words."""
        is_prose = self._live and text.startswith(("Warning:", "Note:", "Limits:"))
        style = "yellow" if text.startswith("Warning:") else ""
        self.console.print(Text(escaped(text), style), soft_wrap=not is_prose)

    def finding(self, finding: Finding) -> None:
        """Prints a finding and its fix."""
        prefix = "Note" if finding.severity in (Severity.NOTE, Severity.OK) else "Warning"
        self.say(f"{prefix}: {finding.text} {finding.fix}".rstrip())

    def _eta(self, step: int) -> str:
        # Counts from the end of the first step, which compiles, with evaluations and checkpoints.
        first, since = self._first_done or (step, 0.0)
        if step <= first:
            return "?"
        return duration_text((time.perf_counter() - since) / (step - first) * (self._total_steps - step))


def quality_row(split: str, values: Mapping[str, float]) -> str:
    """Returns the metrics of an evaluation as one line of text."""
    return f"{split}: " + "  ".join(f"{name} {value}" for name, value in task_of_metrics(values).row(values).items())
