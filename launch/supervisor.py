"""Starts the gang, watches it, starts it again: the same for every engine, which says only how workers are started.

    supervisor = Supervisor(run, start, max_restarts=3, grace_seconds=60, screen=Screen.of_standard_output())
    exit_code = supervisor.run()

`start(files)` returns the running `Workers` of an attempt whose logs and error files lie where `files` says.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from convoy.core.errors import ConvoyError, UsageError
from convoy.core.exit_codes import RETRYABLE
from convoy.launch import history
from convoy.launch.history import Attempt
from convoy.launch.policy import (
    Cause,
    Kind,
    RestartPolicy,
    WorkerOutcome,
    cause_of,
    exit_code_after_signal,
    signal_name,
)
from convoy.launch.processes import WorkerExit
from convoy.launch.run_files import AttemptFiles, RunFiles
from convoy.launch.screen import Follower, Screen
from convoy.launch.shutdown import ShutdownPolicy, Signals

_TICK_SECONDS = 0.05
_START_AGAIN_SECONDS = 3.0
_SHOWN_LINES = 15
_QUIET = (Kind.PREEMPTED, Kind.STOPPED, Kind.INTERRUPTED)  # a worker's last lines say nothing more about these


class StartError(Exception):
    """An attempt cannot be started now, and perhaps later. The message says why: which host does not answer."""


class Workers(Protocol):
    """A started gang, whatever engine started it. See `convoy.launch.processes.WorkerProcesses`."""

    def running(self) -> list[int]:
        """Returns the ranks of workers that had not ended at the last `poll`."""

    def poll(self) -> list[WorkerExit]:
        """Returns the workers that have ended since the last call."""

    def send(self, number: int) -> None:
        """Sends a signal to every worker that runs."""

    def stopped(self) -> list[int]:
        """Returns the ranks of workers that are stopped and so cannot end by themselves."""

    def kill(self) -> list[WorkerExit]:
        """Kills every worker that runs and returns them when they are gone."""


class Supervisor:
    """One launch: attempt after attempt until the run is done or the policy gives up."""

    def __init__(
        self,
        run: RunFiles,
        start: Callable[[AttemptFiles], Workers],
        *,
        max_restarts: int,
        grace_seconds: float,
        screen: Screen,
        start_seconds: float = 300.0,
        trains: bool = True,
        facts: Mapping[str, Any] | None = None,
    ):
        """Starts nothing yet.

        Args:
          run: the run directory.
          start: starts the workers of an attempt, or raises StartError where that may go well later.
          max_restarts: how many restarts may follow one another without a new checkpoint.
          grace_seconds: that a worker has between SIGTERM and SIGKILL.
          screen: where the chief's output and the launcher's own words go.
          start_seconds: for how long a start that fails is tried again.
          trains: False for a command that only looks: it is started once, and leaves nothing in RUN.
          facts: more for launch.json.
        """
        self._run = run
        self._start = start
        self._policy = RestartPolicy(max_restarts if trains else 0)
        self._start_seconds = start_seconds
        self._trains = trains
        self._grace_seconds = grace_seconds
        self._screen = screen
        self._facts = dict(facts or {})
        self._signals = Signals()
        self._attempts: list[Attempt] = []
        self._furthest_checkpoint = run.checkpoint_step()
        self._started = time.monotonic()
        self.ended_by: int | None = None  # the signal that ended the launch, where one did

    @property
    def is_asked_to_end(self) -> bool:
        """Whether a signal waits: a start that takes long had better give up."""
        return self._signals.are_waiting

    def run(self) -> int:
        """Launches, and returns the exit code.

        Raises:
          UsageError, DataError: RUN cannot be used.
          OSError: a worker cannot be started.
        """
        try:
            with self._signals:
                exit_code = None
                while exit_code is None:
                    exit_code = self._attempt()
        except ConvoyError as error:
            if self._attempts and self._trains:
                self._write_summary(error.exit_code)
            raise
        finally:
            self._screen.drain()
        return exit_code

    def _attempt(self) -> int | None:
        """Lives one attempt; returns the launch's exit code, or None where another follows."""
        files, ending = self._run.new_attempt(), ShutdownPolicy(self._grace_seconds)
        workers = self._started_workers(files)
        if workers is None:
            return self._not_started()
        # What was written till now came from the attempt before: a start may have waited for its end.
        first_event, started = self._run.events_end(), time.monotonic()
        log = Follower(files.log(0), prefix="[0] ")
        try:
            ends = self._watch(workers, ending, files, log, first_event)
        finally:
            workers.kill()
        self._screen.write(log.rest())
        events = self._run.events(first_event)
        if all(end.succeeded for end in ends):
            self._keep(files, ends, events, started, "done")
            return self._finish(0)
        cause = cause_of(ends, events)
        step = history.end_step(events, cause.step, self._run.logged_step(), *_steps_of_errors(ends))
        last_lines = self._last_lines(files, cause)
        log_name = os.path.relpath(files.log(cause.rank), self._run.path) if last_lines else ""
        if ending.signals:
            self._keep(files, ends, events, started, f"ended by {signal_name(ending.signals[-1])}", step)
            return self._after_signal(ends, ending, step)
        if not self._trains:
            return self._after_failed_look(files, ends, cause)
        self._keep(files, ends, events, started, cause.text, step, log_name)
        if cause.rank and last_lines:  # the chief's are on the screen already
            self._screen.say(f"convoy: the last lines of worker {cause.rank} ({log_name}):")
            self._screen.say("\n".join(f"[{cause.rank}] {line}" for line in last_lines))
        return self._after_failure(files, cause, step)

    def _started_workers(self, files: AttemptFiles) -> Workers | None:
        """Starts an attempt, again and again while that cannot be done; None where it comes to nothing."""
        deadline, said = time.monotonic() + self._start_seconds, ""
        while not self._signals.are_waiting:
            try:
                return self._start(files)
            except StartError as error:
                if self._signals.are_waiting:
                    break
                left = deadline - time.monotonic()
                if left <= 0 or not self._trains:
                    ending = f" Given up. {self._where_it_goes_on()}" if self._trains else ""
                    self._screen.say(f"convoy: {error}{ending}")
                    return None
                if said != (said := str(error)):
                    self._screen.say(f"convoy: {error} Trying again for {left:.0f} s.")
            again = time.monotonic() + _START_AGAIN_SECONDS
            while time.monotonic() < again and not self._signals.are_waiting:
                self._screen.pump()
                time.sleep(_TICK_SECONDS)
        return None

    def _not_started(self) -> int:
        numbers = self._signals.take()
        if numbers:
            self.ended_by = numbers[-1]
            self._screen.say(f"convoy: ended by {signal_name(numbers[-1])}. {self._where_it_goes_on()}")
        if numbers:
            return self._finish(128 + numbers[-1])
        return self._finish(RETRYABLE if self._trains else UsageError.exit_code)

    def _watch(
        self, workers: Workers, ending: ShutdownPolicy, files: AttemptFiles, log: Follower, first_event: int
    ) -> list[WorkerOutcome]:
        """Waits for the end of all workers, and sees to it where that is needed."""
        ends: list[WorkerOutcome] = []
        ended_as: dict[int, Kind] = {}

        def note(ended: Sequence[WorkerExit]) -> None:
            for rank, returncode, seen, lost in ended:
                ends.append(WorkerOutcome(rank, returncode, seen, files.error(rank), ended_as.get(rank), lost))
                if not ends[-1].succeeded and self._trains:  # who only looks ends in its own time
                    # A worker that waits for others to come does not know of those that never will.
                    ending.worker_failed(in_startup=history.start_step(self._run.events(first_event)) is None)

        while workers.running():
            note(workers.poll())
            self._pass_on_signals(workers, ending)
            stopped = set(workers.stopped()) if ending.in_progress else set()
            if stopped and stopped == set(workers.running()):
                ended_as |= dict.fromkeys(stopped, Kind.STOPPED)
                note(workers.kill())
            elif ending.kill_is_due():
                if ending.signals:
                    self._screen.say(f"convoy: killing {_workers(workers.running())} that did not end.")
                ended_as |= {rank: ended_as.get(rank, Kind.UNRESPONSIVE) for rank in workers.running()}
                note(workers.kill())
            elif ending.term_is_due():
                ended_as |= {rank: Kind.STOPPED if rank in stopped else Kind.UNRESPONSIVE for rank in workers.running()}
                workers.send(signal.SIGTERM)
            self._screen.follow(log)
            if workers.running():
                time.sleep(_TICK_SECONDS)
        return ends

    def _pass_on_signals(self, workers: Workers, ending: ShutdownPolicy) -> None:
        for number in self._signals.take():
            if ending.signal_received(number):
                continue
            if not ending.kill_is_due() and workers.running():
                workers.send(number)
                self._screen.say(
                    f"convoy: {signal_name(number)}, passed on to {_workers(workers.running())}. "
                    f"What has not ended in {self._grace_seconds:g} s is killed; a second signal does it at once."
                )

    def _after_signal(self, ends: Sequence[WorkerOutcome], ending: ShutdownPolicy, step: int | None) -> int:
        self.ended_by = number = ending.signals[-1]
        exit_code = exit_code_after_signal(ends, number, had_to_kill=any(end.ended_as for end in ends))
        self._screen.say(f"convoy: ended by {signal_name(number)}{_at(step)}. {self._where_it_goes_on()}")
        return self._finish(exit_code)

    def _after_failure(self, files: AttemptFiles, cause: Cause, step: int | None) -> int | None:
        checkpoint = self._run.checkpoint_step()
        is_new = checkpoint is not None and (
            self._furthest_checkpoint is None or checkpoint > self._furthest_checkpoint
        )
        if is_new:
            self._furthest_checkpoint = checkpoint
        decision = self._policy.after(cause, new_checkpoint=is_new)
        if cause.kind is Kind.REFUSED and all(attempt.start_step is None for attempt in self._attempts):
            # The worker's own message is the last on the screen, and there is nothing to sum up.
            self._write_summary(decision.exit_code)
            self._run.remove_traces()
            return decision.exit_code
        what = f"convoy: attempt {files.number} ended{_at(step)}: {cause.text.rstrip('.')}."
        if not decision.restart:
            self._screen.say(f"{what} {decision.reason}.")
            return self._finish(decision.exit_code)
        place = "the start" if checkpoint is None else f"step {checkpoint}"
        self._screen.say(f"{what} Restarting from {place} ({decision.reason}).")
        self._run.append_restart(files.number + 1, cause.text)
        with contextlib.suppress(IndexError):
            self.ended_by = number = self._signals.take()[-1]  # while nobody was there to pass it on to
            self._screen.say(f"convoy: ended by {signal_name(number)}. {self._where_it_goes_on()}")
            return self._finish(128 + number)
        self._write_summary(None)
        return None

    def _after_failed_look(self, files: AttemptFiles, ends: Sequence[WorkerOutcome], cause: Cause) -> int:
        """Shows what the others wrote beside the chief: they write where they cannot tell it the chief."""
        for rank in sorted(end.rank for end in ends if end.rank):
            self._screen.write(Follower(files.log(rank), prefix=f"[{rank}] ").rest())
        if cause.kind is not Kind.REFUSED:
            self._screen.say(f"convoy: {cause.text.rstrip('.')}.")
        return self._finish(cause.exit_code)

    def _where_it_goes_on(self) -> str:
        step = self._run.checkpoint_step()
        return f"The same command goes on from {'the start' if step is None else f'step {step}'}."

    @staticmethod
    def _last_lines(files: AttemptFiles, cause: Cause) -> list[str]:
        if cause.rank is None or cause.kind in _QUIET:
            return []
        return files.last_lines(cause.rank, _SHOWN_LINES)

    def _keep(
        self,
        files: AttemptFiles,
        ends: Sequence[WorkerOutcome],
        events: Sequence[history.Event],
        started: float,
        cause: str,
        step: int | None = None,
        log: str = "",
    ) -> None:
        self._attempts.append(
            Attempt(
                files.number,
                time.monotonic() - started,
                cause,
                tuple(end.exit_code for end in sorted(ends, key=lambda end: end.rank)),
                events,
                history.end_step(events) if step is None else step,
                log,
            )
        )

    def _finish(self, exit_code: int) -> int:
        if not self._trains or not self._attempts:
            self._run.remove_attempts()
            return exit_code
        self._write_summary(exit_code)
        self._screen.say(history.summary(self._attempts, time.monotonic() - self._started, self._run.checkpoint_step()))
        return exit_code

    def _write_summary(self, exit_code: int | None) -> None:
        content = history.as_json(self._attempts, time.monotonic() - self._started, self._run.checkpoint_step())
        self._run.write_summary({**self._facts, "exit_code": exit_code, **content})


def _steps_of_errors(ends: Sequence[WorkerOutcome]) -> list[int | None]:
    return [end.error.step for end in ends if end.error]


def _at(step: int | None) -> str:
    return " before its first step" if step is None else f" at step {step}"


def _workers(ranks: Sequence[int]) -> str:
    return f"worker {ranks[0]}" if len(ranks) == 1 else f"{len(ranks)} workers"
