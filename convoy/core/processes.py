"""Helpers for worker processes: usable CPU cores and signal handling."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType

from convoy.core.errors import ConvoyError
from convoy.core.exit_codes import SIGNAL_BASE
from convoy.core.terminal import can_redraw

_FILES, _FILES_PER_PROCESS = 12, 2  # of a pool while it starts


def usable_cores() -> int:
    """Returns the number of cores that this process may use, which a scheduler or container may limit."""
    return len(processor_numbers())


def processor_numbers() -> list[int]:
    """Returns the sorted numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


@contextlib.contextmanager
def helper_starting(processes: int = 1) -> Iterator[None]:
    """Names the failure of helper processes that cannot start inside.

    Args:
      processes: their number.

    Raises:
      ConvoyError: one cannot start.
    """
    try:
        _check_open_files(_FILES + processes * _FILES_PER_PROCESS)
        yield
    except (OSError, EOFError, RuntimeError) as error:
        is_thread = "start new thread" in str(error)  # which is how a limit of processes shows in Python's pools
        if isinstance(error, RuntimeError) and not is_thread:
            raise
        reason = "it ended at once" if isinstance(error, EOFError) else getattr(error, "strerror", None) or error
        raise ConvoyError(
            f"a helper process cannot start ({reason}). Free memory, or raise the limits of processes and open files "
            "(ulimit -u, ulimit -n, those of the container)"
        ) from None


def _check_open_files(number: int) -> None:
    """Raises an OSError unless so many more files can be opened: a fork server whose client fails prints its own."""
    with contextlib.ExitStack() as opened:
        for _ in range(number):
            opened.enter_context(open(os.devnull, "rb", buffering=0))


@contextlib.contextmanager
def main_module_hidden() -> Iterator[None]:
    """Keeps worker processes that are started inside from running the program's main module.

    In a script without `if __name__ == "__main__":` each of them would otherwise start all of it again.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")  # no file and no name, from which multiprocessing would import it
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def follow_parent() -> None:
    """Makes a worker process ignore Ctrl-C and exit when its parent exits, for whatever reason."""
    # Without this, every worker prints a traceback at Ctrl-C and buries the parent's message.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP raise SystemExit (exit code 143, 129) inside: partial output is removed as at Ctrl-C."""

    def terminate(number: int, _: object) -> None:
        raise SystemExit(SIGNAL_BASE + number)

    with _handling(terminate, signal.SIGTERM, *_unless_ignored(signal.SIGHUP)):
        yield


@contextlib.contextmanager
def ending_on_interrupt() -> Iterator[None]:
    """Makes Ctrl-C end the process at once inside, with a line and exit code 130.

    A KeyboardInterrupt in TensorFlow's C++ code would end in pages of its own messages. Everything that is written
    whole or not at all stays so.
    """

    def end(number: int, _: object) -> None:
        with contextlib.suppress(OSError):  # nobody reads it
            if can_redraw(sys.stdout):
                os.write(1, b"\x1b[?25h")  # shows the cursor, which progress bars hide
            os.write(2, b"convoy: interrupted\n")
        os._exit(SIGNAL_BASE + number)

    with _handling(end, *_unless_ignored(signal.SIGINT)):
        yield


@contextlib.contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Ignores Ctrl-C inside, also in processes that are started inside."""
    with _handling(signal.SIG_IGN, signal.SIGINT):
        yield


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Defers Ctrl-C, SIGTERM and SIGHUP until the end of the block."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, *_unless_ignored(signal.SIGHUP))
    try:
        with _handling(lambda number, _: received.append(number), *numbers):
            yield
    finally:
        if received:
            signal.raise_signal(received[0])


def _unless_ignored(number: signal.Signals) -> list[signal.Signals]:
    """Returns the signal, or nothing if this process was started with it ignored, as by nohup or in the background."""
    return [] if signal.getsignal(number) is signal.SIG_IGN else [number]


@contextlib.contextmanager
def _handling(handler: Callable[[int, object], None] | signal.Handlers, *numbers: signal.Signals) -> Iterator[None]:
    try:
        before = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:  # not the main thread, which alone may set handlers
        before = {}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
