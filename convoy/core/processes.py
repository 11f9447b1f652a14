"""What processes that do work in parallel have in common."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator


def usable_cores() -> int:
    """Returns how many cores this process may run on: a scheduler or container often grants fewer than there are."""
    return len(processor_numbers())


def processor_numbers() -> list[int]:
    """Returns the numbers of the cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def follow_parent() -> None:
    """Makes a worker process leave Ctrl-C to its parent, and end when that ends, however it does."""
    # The parent's message would be buried under a traceback from each worker.
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
    """Lets SIGTERM unwind the stack, as Ctrl-C does, so that nothing half-written stays. Exit code 143."""

    def terminate(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    with _handling(terminate, signal.SIGTERM):
        yield


@contextlib.contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Ignores Ctrl-C inside, and in every process that is started inside."""
    with _handling(signal.SIG_IGN, signal.SIGINT):
        yield


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM take effect only on leaving."""
    received: list[int] = []
    try:
        with _handling(lambda number, _: received.append(number), signal.SIGINT, signal.SIGTERM):
            yield
    finally:
        if received:
            signal.raise_signal(received[0])


@contextlib.contextmanager
def _handling(handler: Callable[[int, object], None] | signal.Handlers, *numbers: signal.Signals) -> Iterator[None]:
    try:
        before = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:  # only the main thread may; a caller in another answers signals itself
        before = {}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
