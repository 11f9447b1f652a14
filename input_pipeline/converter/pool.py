"""The worker processes of a conversion: started, watched, and named where one dies.

shards = write_shards(tasks, context, workers=2, progress=print, check=lambda bad: None)
"""

import contextlib
import multiprocessing
import multiprocessing.forkserver
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import ForkServerContext
from multiprocessing.sharedctypes import RawArray
from pathlib import Path

from input_pipeline.converter import worker
from input_pipeline.converter.marks import Shard
from input_pipeline.converter.worker import ShardTask
from input_pipeline.errors import DataError
from input_pipeline.processes import interrupts_deferred, interrupts_ignored

_POLL_SECONDS = 0.1
_KERNEL_COUNTERS = Path("/proc/vmstat")


def warm_context() -> ForkServerContext:
    """Returns how to start worker processes; the server that they are forked from imports TensorFlow meanwhile."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["input_pipeline.converter.decoder", "input_pipeline.converter.worker"])
    with interrupts_ignored():  # by the server, from its first moment on
        multiprocessing.forkserver.ensure_running()
    return context


def write_shards(
    tasks: Sequence[ShardTask],
    context: ForkServerContext,
    *,
    workers: int,
    progress: Callable[[int], None],
    check: Callable[[Sequence[Shard]], None],
) -> list[Shard]:
    """Has shards written by worker processes.

    Args:
      tasks: the shards.
      context: as `warm_context` gives it.
      workers: how many processes.
      progress: called ten times a second with the number of images done.
      check: called with the shards done so far, whenever there are more; may raise.

    Returns:
      The shards, in the order of the tasks.

    Raises:
      DataError: a worker process died.
      OSError: a shard cannot be written.
    """
    board = RawArray("q", 1 + 2 * len(tasks))
    pool = ProcessPoolExecutor(max(1, min(workers, len(tasks))), context, initializer=worker.start, initargs=(board,))
    processes: dict[int, multiprocessing.Process] = {}
    kills = _memory_kills()
    numbered = [task._replace(number=number) for number, task in enumerate(tasks)]
    try:
        with interrupts_deferred():  # a worker that is left half-started would complain on the screen
            futures = [pool.submit(worker.write_shard, task) for task in numbered]
        pending: set[Future] = set(futures)
        while pending:
            processes |= {process.pid: process for process in multiprocessing.active_children()}
            done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            finished = [future.result() for future in futures if future.done()]
            if done:
                check(finished)
            progress(sum(board[1 : 1 + len(tasks)]))
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise DataError(_death(board, numbered, processes, workers, _memory_kills() - kills)) from None
    finally:
        board[0] = 1
        pool.shutdown(wait=True, cancel_futures=True)


def _death(
    board: Sequence[int],
    tasks: Sequence[ShardTask],
    processes: dict[int, multiprocessing.Process],
    workers: int,
    memory_kills: int,
) -> str:
    """Returns which worker died, of what, and at which image or which that begins its group."""
    done, writers = board[1 : 1 + len(tasks)], board[1 + len(tasks) :]
    at = {
        writer: task.images[number].name
        for task, number, writer in zip(tasks, done, writers, strict=True)
        if writer and number < len(task.images)
    }
    for process in processes.values():
        process.join(1)
    # The pool itself ends the others with SIGTERM.
    dead = [p for p in processes.values() if p.exitcode not in (None, 0, -signal.SIGTERM)] or list(processes.values())
    first = dead[0] if dead else None
    ended = "died"
    if memory_kills > 0:
        ended = "was killed (SIGKILL) by the kernel, which was out of memory,"
    elif first is not None and first.exitcode and first.exitcode < 0:
        ended = f"was killed ({signal.Signals(-first.exitcode).name})"
    place = f" at or soon after {at[first.pid]}" if first is not None and first.pid in at else ""
    fewer = max(1, workers // 2)
    mend = f"The same command with --workers={fewer} needs less memory" if fewer < workers else "Give it more memory"
    return f"a worker process {ended}{place}. {mend}, and goes on from the shards that are done"


def _memory_kills() -> int:
    """Returns how many processes the kernel has killed for want of memory; 0 where it does not tell."""
    with contextlib.suppress(OSError, ValueError):
        for line in _KERNEL_COUNTERS.read_text().splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return 0
