"""Runs tasks in worker processes that share their imports, and reports what a dead worker was working on.

    warm_up("convoy.input_pipeline.verify.shard")
    reports = run(check_shard, tasks, workers=2, progress=print, place=lambda task, done: f"byte {done} of {task.name}")

The task function runs in a worker process and calls `report_progress` periodically.
"""

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
from collections.abc import Callable, MutableSequence, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import TypeVar

from convoy.core.errors import DataError
from convoy.core.processes import (
    follow_parent,
    helper_starting,
    interrupts_deferred,
    interrupts_ignored,
    main_module_hidden,
    usable_cores,
)

Task = TypeVar("Task")
Result = TypeVar("Result")

_POLL_SECONDS = 0.1
_KERNEL_COUNTERS = Path("/proc/vmstat")

# Shared by all processes, int64: 1 once all workers should stop, then each task's progress, then the process ID working
# on each task, or 0. The default is for a task run without a pool.
_board: MutableSequence[int] = [0, 0, 0]
_task_number = 0  # the task this process is working on


class StoppedError(Exception):
    """The work was cancelled; the result of this task is not needed."""


def warm_up(*modules: str) -> None:
    """Starts the fork server of the workers. It imports the modules in the background."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(modules))
    # Inherited by the server, so it ignores Ctrl-C from its start.
    with interrupts_ignored(), helper_starting(), main_module_hidden():
        multiprocessing.forkserver.ensure_running()


def report_progress(done: int) -> None:
    """Reports the progress of the current task, in a unit that the task defines.

    Raises:
      StoppedError: the work was cancelled.
    """
    _board[1 + _task_number] = done
    if _board[0]:
        raise StoppedError


def run(
    do: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    workers: int,
    progress: Callable[[int], None],
    place: Callable[[Task, int], str],
    check: Callable[[Sequence[Result]], None] = lambda finished: None,
    rerun_note: str = "",
) -> list[Result]:
    """Runs tasks in worker processes.

    Args:
      do: runs one task in a worker; a function at module level.
      tasks: arguments of `do`.
      workers: number of processes; 0 for one per core.
      progress: called ten times per second with the sum of the reported progress.
      place: returns a description of a task's position, given the task and its reported progress.
      check: called with the results so far whenever a task finishes; may raise.
      rerun_note: appended to the message about a dead worker: what a rerun of the command does.

    Returns:
      The results, in the order of the tasks.

    Raises:
      DataError: a worker process died.
      ConvoyError: none can start.
      Exception: whatever `do` raises.
    """
    workers = max(1, min(workers or usable_cores(), len(tasks)))
    context = multiprocessing.get_context("forkserver")
    with helper_starting(workers):
        board = RawArray("q", 1 + 2 * len(tasks))
        pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(board,))
    processes: list[BaseProcess] = []
    kills = _memory_kills()
    try:
        # A worker interrupted during its start would print a traceback.
        with interrupts_deferred(), helper_starting(), main_module_hidden():
            futures = [pool.submit(_do, do, task, number) for number, task in enumerate(tasks)]
        processes = multiprocessing.active_children()
        pending: set[Future] = set(futures)
        while pending:
            done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            finished = [future.result() for future in futures if future.done()]
            if done:
                check(finished)
            progress(sum(board[1 : 1 + len(tasks)]))
        return [future.result() for future in futures]
    except BrokenProcessPool:
        # The pool's thread collects the exit codes. Reading them at the same time could return wrong values.
        pool.shutdown(wait=True)
        reported, at_work = board[1 : 1 + len(tasks)], board[1 + len(tasks) :]
        places = {
            process: place(task, done)
            for process, task, done in zip(at_work, tasks, reported, strict=True)
            if process  # 0: the task is finished or has not started
        }
        death = _death(processes, places, _memory_kills() - kills)
        fix = "Give it more memory"
        if workers > 1:
            fix = f"The same command with --workers={workers // 2} needs less memory"
        raise DataError(f"a worker process {death}. {fix}{rerun_note}") from None
    finally:
        board[0] = 1
        pool.shutdown(wait=True, cancel_futures=True)


def _start(board: MutableSequence[int]) -> None:
    """Prepares a worker process."""
    global _board
    _board = board
    follow_parent()  # on Ctrl-C the parent sets the stop flag in the board


def _do(do: Callable[[Task], Result], task: Task, number: int) -> Result:
    global _task_number
    _task_number = number
    at_work = len(_board) // 2 + 1 + number
    _board[at_work] = os.getpid()
    result = do(task)
    _board[at_work] = 0
    return result


def _death(processes: Sequence[BaseProcess], places: dict[int, str], memory_kills: int) -> str:
    """Returns how the first dead worker ended, and what it was working on."""
    # The pool ends the other workers with SIGTERM.
    dead = [process for process in processes if process.exitcode not in (None, 0, -signal.SIGTERM)]
    codes = [process.exitcode for process in dead or processes if process.exitcode]
    number = max(0, -codes[0]) if codes else 0  # the signal
    ended = f"was killed ({signal.Signals(number).name})" if number else "died"
    # If the kernel killed the fork server, the workers' exit codes are unknown.
    if memory_kills > 0 and number in (0, signal.SIGKILL):
        ended = "was killed (SIGKILL) by the kernel, which was out of memory,"
    return ended + (f" at or soon after {places[dead[0].pid]}" if dead and dead[0].pid in places else "")


def _memory_kills() -> int:
    """Returns the number of processes killed by the kernel's out-of-memory killer; 0 if unknown."""
    with contextlib.suppress(OSError, ValueError):
        for line in _KERNEL_COUNTERS.read_text().splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return 0
