"""Runs tasks in worker processes that share one TensorFlow import, and reports what a dead worker was working on.

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
from convoy.core.processes import follow_parent, interrupts_deferred, interrupts_ignored, usable_cores

Task = TypeVar("Task")
Result = TypeVar("Result")

_POLL_SECONDS = 0.1
_KERNEL_COUNTERS = Path("/proc/vmstat")

# Shared by all processes, int64: 1 once everybody should stop, then how far each task is, then which process is at each
# task, or 0. This one is for a task that is done without a pool.
_board: MutableSequence[int] = [0, 0, 0]
_task_number = 0  # that this process is at


class StoppedError(Exception):
    """The work was cancelled; the result of this task is not needed."""


def warm_up(module: str) -> None:
    """Starts the server that workers are forked from, which imports TensorFlow and a module while others go on."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["convoy.input_pipeline.images.decoder", module])
    with interrupts_ignored():  # by the server, from its first moment on
        multiprocessing.forkserver.ensure_running()


def report_progress(done: int) -> None:
    """Notes how far the task is that this process is at, in a unit of the task's own.

    Raises:
      StoppedError: the work was given up.
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
    besides: str = "",
) -> list[Result]:
    """Runs tasks in worker processes.

    Args:
      do: does a task, in a worker; a module's function.
      tasks: to do.
      workers: how many processes; 0 is one a core.
      progress: called ten times a second with the sum of what was reported.
      place: says where a task was that had last reported so much.
      check: called with the results so far, whenever there are more; may raise.
      besides: what else the same command does after a worker has died, as the end of a sentence.

    Returns:
      The results, in the order of the tasks.

    Raises:
      DataError: a worker process died.
      Exception: whatever `do` raises.
    """
    workers = max(1, min(workers or usable_cores(), len(tasks)))
    board = RawArray("q", 1 + 2 * len(tasks))
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(board,))
    processes: list[BaseProcess] = []
    kills = _memory_kills()
    try:
        with interrupts_deferred():  # a worker that is left half-started would complain on the screen
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
        # Its thread learns how processes ended. Whoever asks beside it may take that away from it, or be told nonsense.
        pool.shutdown(wait=True)
        reported, at_work = board[1 : 1 + len(tasks)], board[1 + len(tasks) :]
        places = {
            process: place(task, done)
            for process, task, done in zip(at_work, tasks, reported, strict=True)
            if process  # is none where the task is done, or not begun
        }
        death = _death(processes, places, _memory_kills() - kills)
        fix = "Give it more memory"
        if workers > 1:
            fix = f"The same command with --workers={workers // 2} needs less memory"
        raise DataError(f"a worker process {death}. {fix}{besides}") from None
    finally:
        board[0] = 1
        pool.shutdown(wait=True, cancel_futures=True)


def _start(board: MutableSequence[int]) -> None:
    """Prepares a worker process."""
    global _board
    _board = board
    follow_parent()  # which answers Ctrl-C by the board
    from convoy.input_pipeline.images import decoder

    decoder.warm_up()


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
    # The pool itself ends the others with SIGTERM.
    dead = [process for process in processes if process.exitcode not in (None, 0, -signal.SIGTERM)]
    codes = [process.exitcode for process in dead or processes if process.exitcode]
    number = max(0, -codes[0]) if codes else 0  # of the signal
    ended = f"was killed ({signal.Signals(number).name})" if number else "died"
    # Where the kernel killed the server that workers are forked from, nobody learns what they ended of.
    if memory_kills > 0 and number in (0, signal.SIGKILL):
        ended = "was killed (SIGKILL) by the kernel, which was out of memory,"
    return ended + (f" at or soon after {places[dead[0].pid]}" if dead and dead[0].pid in places else "")


def _memory_kills() -> int:
    """Returns the number of processes that the kernel has killed (out of memory); 0 if unknown."""
    with contextlib.suppress(OSError, ValueError):
        for line in _KERNEL_COUNTERS.read_text().splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return 0
