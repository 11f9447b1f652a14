"""The worker processes of one attempt on this machine: started together, watched, signaled, and never left behind.

    workers = WorkerProcesses([WorkerProgram(command, environment, log), ...])
    while workers.running():
        for exited in workers.poll():
            ...
    workers.kill()

Each worker runs in its own session, so that Ctrl-C at a terminal reaches the launcher alone, and with default signal
handling, however the launcher was started. On Linux the kernel kills the workers when the launcher dies, even from
`kill -9`. Processes that a worker started and left running end with it.
"""

import contextlib
import ctypes
import errno
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from convoy.core.errors import ConvoyError, UsageError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class WorkerProgram:
    """How to start one worker.

    Attributes:
      command: program and arguments.
      environment: the complete environment.
      log: file for its standard output and error, interleaved.
      cores: cores that it may run on; empty for all.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    cores: frozenset[int] = frozenset()


class WorkerExit(NamedTuple):
    """A worker that has ended.

    Attributes:
      rank: rank of the worker.
      returncode: exit code, or minus the number of the signal that killed it.
      time: time at which the end was observed, in seconds since 1970, by the clock of the worker's host if possible.
      lost: why the outcome is unknown, if its host is gone: `host b does not answer`.
    """

    rank: int
    returncode: int
    time: float
    lost: str = ""


class WorkerProcesses:
    """Running worker processes; a worker's rank is its position in the list of programs."""

    def __init__(self, programs: Sequence[WorkerProgram]):
        """Starts all of them, or none. Call it in the main thread: workers die with the thread that started them.

        Raises:
          UsageError: a program is missing or is none.
          ConvoyError: the system starts no more processes.
        """
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        try:
            for rank, program in enumerate(programs):
                self._running[rank] = _start(program)
        except BaseException:
            self.kill()
            raise

    def running(self) -> list[int]:
        """Returns the ranks of workers that had not ended at the last `poll`."""
        return list(self._running)

    def poll(self) -> list[WorkerExit]:
        """Returns the workers that have ended since the last call."""
        ended = [rank for rank, process in self._running.items() if process.poll() is not None]
        return [self._ended(rank) for rank in ended]

    def send(self, number: int) -> None:
        """Sends a signal to every running worker, and wakes stopped workers to receive it."""
        for process in self._running.values():
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)

    def stopped(self) -> list[int]:
        """Returns the ranks of workers that are stopped (SIGSTOP) and so cannot exit by themselves."""
        return [rank for rank, process in self._running.items() if _state(process.pid) == "T"]

    def kill(self) -> list[WorkerExit]:
        """Kills every running worker, waits until they are gone, and returns them."""
        for process in self._running.values():
            process.kill()
        ended = []
        for rank, process in list(self._running.items()):
            process.wait()
            ended.append(self._ended(rank))
        return ended

    def _ended(self, rank: int) -> WorkerExit:
        process = self._running.pop(rank)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing else is left in its session
            os.killpg(process.pid, signal.SIGKILL)
        return WorkerExit(rank, process.returncode, time.time())


def _start(program: WorkerProgram) -> subprocess.Popen[bytes]:
    try:
        with open(program.log, "ab") as log:
            return subprocess.Popen(
                program.command,
                env=dict(program.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # Safe here: the launcher has one thread, and everything it needs is resolved before the fork.
                preexec_fn=_preparation(program.cores),
            )
    except (OSError, subprocess.SubprocessError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        is_missing = isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.EACCES, errno.ENOEXEC)
        name = program.log if isinstance(error, OSError) and error.filename == str(program.log) else program.command[0]
        raise (UsageError if is_missing else ConvoyError)(
            f"a worker cannot be started: {name}: {reason}. The command: {shlex.join(program.command)}"
        ) from None


def _preparation(cores: frozenset[int]) -> Callable[[], None]:
    """Returns the function that a new process runs before it executes the worker's program."""
    parent = os.getpid()
    prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None
    set_affinity = getattr(os, "sched_setaffinity", None) if cores else None
    signals = [number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)]

    def prepare() -> None:
        if prctl:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:  # the launcher died before the call took effect
                os._exit(1)
        for number in signals:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        if set_affinity:
            set_affinity(0, cores)

    return prepare


def _state(pid: int) -> str:
    """Returns the letter of a process's state in /proc; empty on systems without /proc."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return content.rpartition(")")[2].split()[0]
