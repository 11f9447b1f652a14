"""Faults of the chaos test: their kinds, the plan, and how they are injected into a running launch."""

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from tests.chaos_files import ChaosError, ChaosFolder, RunFolder
from tests.processes import children, environment_of

WORKERS = 2
STEPS_PER_CHECKPOINT = 5

_MIN_STEPS = 100
_END = 0.85  # fraction of the steps after which faults come before training begins, so that the run outlasts all faults
_STARTUP_FRACTION = 0.4  # of the faults; the others come during training
_MAX_TRAINING_SECONDS = 4.0  # between the first step and a fault
_MAX_TRAINING_STEPS = 20  # likewise, so that the run outlasts the faults on a fast machine too
_NEAR_THE_END = 0.6  # fraction of a start-up: latest moment of a fault that must prevent any step
_DEADLINE_SECONDS = 180.0
_END_SECONDS = 900.0  # for the rest of the run after the last fault
_POLL_SECONDS = 0.01
_PREEMPTED = (138, 143)  # exit codes of a launcher that was asked to end


class Kind(Enum):
    """Kind of fault. With a set-back clock, a taken port and a refused fsync, a worker receives SIGKILL.

    A launcher whose output is no longer read goes on through the next faults. Before the pipe is closed again, that
    launcher is ended by SIGTERM and started again, with a new pipe.
    """

    SIGKILL = "SIGKILL"
    SIGSTOP = "SIGSTOP"
    SIGTERM = "SIGTERM"
    SIGUSR1 = "SIGUSR1"
    SIGHUP = "SIGHUP"
    PIPE_CLOSED = "pipe closed"  # that of the launcher's output, by its reader
    CLOCK_SET_BACK = "clock set back"  # by an hour, for the launcher and all workers
    PORT_TAKEN = "port taken"  # that of a restarted worker, before it listens
    FSYNC_REFUSED = "fsync refused"  # EINVAL for directories, until a fault after the first time that happens

    @property
    def signal_to_worker(self) -> signal.Signals:
        """The signal that a worker receives."""
        return signal.Signals.__members__.get(self.name, signal.SIGKILL)


# After this many the workers have survived the fault, if they can.
_CHECKPOINTS_AFTER = {Kind.SIGTERM: 3, Kind.SIGUSR1: 3, Kind.SIGHUP: 3, Kind.PIPE_CLOSED: 1}


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
      kind: kind of fault.
      worker: index of the worker.
      in_startup: whether it is due during start-up, or in the first seconds after the first step.
      moment: relative moment in that period, 0 to 1.
      phase: actual phase at that time: `start-up` before the first step, then `training`.
      time: when it was injected, on the monotonic clock.
      seconds: from then to the next first step, or to the next checkpoint of workers that went on; None if another
        fault came before.
    """

    kind: Kind
    worker: int
    in_startup: bool
    moment: float
    phase: str = ""
    time: float = 0.0
    seconds: float | None = None

    def __str__(self) -> str:
        """Returns a line for the log."""
        target = "" if self.kind is Kind.PIPE_CLOSED else f", worker {self.worker}"
        return f"{self.kind.value}{target}, in {self.phase}"


def plan_faults(count: int, randomness: random.Random, among: Sequence[Kind] = tuple(Kind)) -> list[Fault]:
    """Returns faults of these kinds in equal shares and random order, with random workers and moments."""
    kinds = list(itertools.islice(itertools.cycle(randomness.sample(among, len(among))), count))
    randomness.shuffle(kinds)
    return [
        Fault(kind, randomness.randrange(WORKERS), randomness.random() < _STARTUP_FRACTION, randomness.random())
        for kind in kinds
    ]


def steps_for(faults: Sequence[Fault]) -> int:
    """Returns the number of steps of a run that is hit by faults nearly until its end."""
    steps = sum(_MAX_TRAINING_STEPS * fault.moment + STEPS_PER_CHECKPOINT for fault in faults if not fault.in_startup)
    steps += STEPS_PER_CHECKPOINT * sum(fault.kind is Kind.PIPE_CLOSED for fault in faults)
    steps /= _END
    return max(_MIN_STEPS, -(-int(steps) // STEPS_PER_CHECKPOINT) * STEPS_PER_CHECKPOINT)


class Launch:
    """A launcher that can be ended and started again. `cat` reads its output from a pipe and writes it to a file.

    Attributes:
      attempts: the attempts in launch.json of all launchers that have ended.
      seconds: how long these launchers ran.
    """

    def __init__(self, files: ChaosFolder, run: RunFolder, command: Sequence[object]):
        """Starts nothing yet."""
        self.attempts: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._number = 0
        self._files = files
        self._run = run
        self._command = command
        self._running = contextlib.ExitStack()

    def __enter__(self) -> "Launch":
        """Starts the launcher."""
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        """Kills what is running."""
        self._running.close()

    @property
    def exit_code(self) -> int | None:
        """Exit code of the launcher; None while it is running."""
        return self._launcher.poll()

    @property
    def workers(self) -> list[int]:
        """The running workers by rank."""
        return children(self._launcher.pid)

    @property
    def has_reader(self) -> bool:
        """Whether the output is read."""
        return self._reader.poll() is None

    def close_pipe(self) -> None:
        """Ends the reader."""
        self._reader.kill()
        self._reader.wait()

    def restart(self) -> None:
        """Ends the launcher by SIGTERM and starts it again, with a new reader.

        Raises:
          ChaosError: it did not end, or with another exit code than that of a preempted run.
        """
        self._launcher.terminate()
        if self.wait() not in _PREEMPTED:
            raise ChaosError(f"the launcher exited with {self.exit_code} after SIGTERM")
        self._running.close()
        self._start()

    def wait(self) -> int:
        """Waits until the launcher has ended, and returns its exit code.

        Raises:
          ChaosError: it does not end.
        """
        try:
            exit_code = self._launcher.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            raise ChaosError(f"the launcher did not end within {_END_SECONDS:.0f} s") from None
        history = self._run.json("launch.json")
        self.attempts += history["attempts"]
        self.seconds += history["seconds"]
        return exit_code

    def _start(self) -> None:
        self._number += 1
        name = f"launch-{self._number}"
        from_launcher, output = os.pipe()
        with open(self._files.folder / f"{name}.log", "wb") as log:
            self._reader = self._running.enter_context(subprocess.Popen(["cat"], stdin=from_launcher, stdout=log))
        os.close(from_launcher)
        starting = self._files.started(*self._command, output=f"{name}.stderr", stdout=output)
        self._launcher = self._running.enter_context(starting)
        os.close(output)


class Chaos:
    """A running launch into which faults are injected."""

    def __init__(self, files: ChaosFolder, launch: Launch, run: RunFolder, steps: int, start_seconds: float):
        """Injects nothing yet. Args: start_seconds: how long it takes to the first step."""
        self._files = files
        self._launch = launch
        self._run = run
        self._last_training_step = int(_END * steps)
        self._start_seconds = start_seconds
        self._done: list[Fault] = []
        # Of the current attempt:
        self._workers: list[int] = []
        self._started = 0.0
        self._events_before = 0
        self._first_step: tuple[int, float] | None = None  # step, and when it was seen

    def inject(self, faults: Sequence[Fault]) -> list[Fault]:
        """Injects the faults at their moments; returns them with what happened.

        Raises:
          ChaosError: the launcher exited or did not restart its workers.
        """
        self._await_workers("the first workers")
        for fault in faults:
            if fault.kind is Kind.PIPE_CLOSED and not self._launch.has_reader:
                self._wait(lambda: self._first_step, "the first step before the launcher is ended")
                self._launch.restart()
                self._await_workers("workers of the next launcher")
            self._wait(lambda fault=fault: self._is_due(fault), "the moment of the next fault")
            self._files.allow_folder_fsync()
            phase = "training" if self._first_step else "start-up"
            self._done.append(replace(fault, phase=phase, time=time.monotonic()))
            print(f"{len(self._done):>4} {self._done[-1]}, step {self._run.checkpoint_step()}", flush=True)
            self._inject(self._done[-1])
        self._wait(lambda: self._first_step, "the first step after the last fault")
        return self._done

    def _inject(self, fault: Fault) -> None:
        num_events = self._run.num_events()
        if fault.kind is Kind.PIPE_CLOSED:
            self._launch.close_pipe()
        else:
            if fault.kind is Kind.CLOCK_SET_BACK:
                self._files.set_clock_back()
            if fault.kind is Kind.FSYNC_REFUSED:
                self._files.refuse_folder_fsync()
            os.kill(self._workers[fault.worker], fault.kind.signal_to_worker)
        if not self._await_workers(f"workers after {fault}", num_events, _CHECKPOINTS_AFTER.get(fault.kind)):
            self._recovered()
        elif fault.kind is Kind.PORT_TAKEN:
            with self._port_taken(self._workers[fault.worker]):
                self._await_workers(f"workers with other ports after {fault}")

    @contextlib.contextmanager
    def _port_taken(self, worker: int) -> Iterator[None]:
        """Listens on the port of a worker that has just been started."""
        self._wait(lambda: "TF_CONFIG" in environment_of(worker), "the environment of a new worker")
        config = json.loads(environment_of(worker)["TF_CONFIG"])
        port = int(config["cluster"]["worker"][config["task"]["index"]].rpartition(":")[2])
        try:
            listener = socket.create_server(("", port))
        except OSError as error:
            raise ChaosError(f"port {port} of a new worker cannot be taken ({error.strerror})") from None
        with listener:
            yield

    def _is_due(self, fault: Fault) -> bool:
        is_near_its_end = self._run.checkpoint_step() >= self._last_training_step
        if fault.in_startup or is_near_its_end:
            share = _NEAR_THE_END if is_near_its_end else 1.0
            # Not after training begins: the machine may be faster now, and the run must outlast all faults.
            seconds = time.monotonic() - self._started
            return bool(self._first_step) or seconds >= share * fault.moment * self._start_seconds
        if not self._first_step:
            return False
        step, since = self._first_step
        steps, seconds = self._run.checkpoint_step() - step, time.monotonic() - since
        return seconds >= fault.moment * _MAX_TRAINING_SECONDS or steps >= fault.moment * _MAX_TRAINING_STEPS

    def _await_workers(self, what: str, since: int = 0, checkpoints: int | None = None) -> bool:
        """Waits until new workers have been started, or the old ones have saved `checkpoints` since an event.

        Returns:
          Whether there are new workers.
        """

        def are_new() -> bool:
            current = self._launch.workers
            return len(current) == WORKERS and not set(current) & set(self._workers)

        def have_survived() -> bool:
            return checkpoints is not None and len(self._run.events("checkpoint", since)) >= checkpoints

        self._wait(lambda: are_new() or have_survived(), what)
        if not are_new():
            return False
        self._workers, self._started = self._launch.workers, time.monotonic()
        self._events_before, self._first_step = self._run.num_events(), None
        return True

    def _observe(self) -> None:
        """Notes the first step of the current attempt."""
        first_steps = () if self._first_step else self._run.events("first_step", self._events_before)
        if first_steps:
            self._first_step = first_steps[0]["step"], time.monotonic()
            # The load of the machine changes.
            self._start_seconds = min(self._start_seconds, time.monotonic() - self._started)
            if self._done and self._done[-1].time < self._started:
                self._recovered()

    def _recovered(self) -> None:
        fault = self._done[-1]
        if fault.seconds is None:
            self._done[-1] = replace(fault, seconds=time.monotonic() - fault.time)

    def _wait(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while not condition():
            if self._launch.exit_code is not None:
                raise ChaosError(f"the launcher exited with {self._launch.exit_code} while waiting for {what}")
            if time.monotonic() > deadline:
                raise ChaosError(f"{what}: nothing within {_DEADLINE_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)
            self._observe()
