"""Runs the cases of a subject in another process, so that crashes and hangs are found and the next case goes on.

A subject is a module of this folder with a class `Subject`:

    subject = Subject(folder)                 # an empty folder of its own
    case = subject.make(rng, number)          # what is tried: the same seed and number give the same case
    subject.check(case)                       # an Outcome; an exception is a fault

`rng` is a `random.Random`.
"""

import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from convoy.core.streams import escaped

CASE_SECONDS = 60
UNHARMED, ANNOUNCED, REFUSED, FAULT = "unharmed", "announced", "refused", "fault"
_LONGEST_MESSAGE = 5_000  # characters


class Outcome(NamedTuple):
    """What became of a case.

    Attributes:
      kind: `UNHARMED`: accepted as it is written; `ANNOUNCED`: accepted in another meaning, with a message; `REFUSED`
        with a message; `FAULT`.
      text: the message, or the fault.
      detail: more about the kind, to be counted.
    """

    kind: str
    text: str = ""
    detail: str = ""


@dataclass
class Result:
    """The outcomes of a subject's cases; `faults` are texts by number of the case."""

    subject: str
    kinds: Counter[str] = field(default_factory=Counter)
    details: Counter[str] = field(default_factory=Counter)
    faults: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, 0)
    peak_megabytes: int = 0

    def add(self, number: int, outcome: Outcome, seconds: float) -> None:
        """Counts one case."""
        self.kinds[outcome.kind] += 1
        if outcome.detail:
            self.details[outcome.detail] += 1
        if outcome.kind == FAULT:
            self.faults[number] = outcome.text
        self.seconds += seconds
        self.slowest = max(self.slowest, (seconds, number))


def refused(message: str, *named: str, lines: int = 1) -> Outcome:
    """Returns the outcome of a refusal: a fault if its message, as printed, is long or of more than `lines`, or names
    none of `named`.
    """
    parts = escaped(message).strip("\n").split("\n")
    if not (0 < len(parts) <= lines and all(parts)) or "\r" in message or len(message) > _LONGEST_MESSAGE:
        return Outcome(FAULT, f"message {message!r}")
    if named and not any(name in message for name in named):
        return Outcome(FAULT, f"message names none of {named}: {message!r}")
    return Outcome(REFUSED, message)


def make(subject, seed: int, number: int):
    """Returns a case."""
    return subject.make(random.Random(f"{seed} {number}"), number)


def outcomes(subject, numbers: Iterable[int], seed: int) -> Iterator[tuple[int, Outcome, float]]:
    """Yields number, outcome and seconds of each case, in this process."""
    for number in numbers:
        started = time.monotonic()
        try:
            outcome = subject.check(make(subject, seed, number))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome = Outcome(FAULT, traceback.format_exc(limit=-3))
        yield number, outcome, time.monotonic() - started


def load(name: str, folder: Path):
    """Returns a subject by the name of its module."""
    return importlib.import_module(f"tests.fuzz.{name}").Subject(folder)


def run(name: str, cases: int, seed: int) -> Result:
    """Runs the cases of a subject in other processes: a new one after each that a case has ended."""
    result, context, first = Result(name), multiprocessing.get_context("fork"), 0
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as errors:
        while first < cases:
            receiving, sending = context.Pipe(duplex=False)
            arguments = (sending, errors.fileno(), name, Path(folder), range(first, cases), seed)
            process = context.Process(target=_work, args=arguments)
            process.start()
            sending.close()
            with contextlib.suppress(EOFError):
                while True:
                    number, outcome, seconds, kilobytes = receiving.recv()
                    result.add(number, outcome, seconds)
                    result.peak_megabytes = max(result.peak_megabytes, kilobytes // 1024)
                    first = number + 1
            process.join()
            if process.exitcode:
                errors.seek(0)
                said = errors.read().decode(errors="replace")[-1500:]
                end = signal.Signals(-process.exitcode).name if process.exitcode < 0 else f"exit {process.exitcode}"
                hang = process.exitcode == -signal.SIGALRM
                seconds = float(CASE_SECONDS) if hang else 0.0
                result.add(first, Outcome(FAULT, f"{'hangs' if hang else 'ends the process'} ({end}): {said}"), seconds)
                first += 1
    return result


def _work(results: Connection, errors: int, name: str, parent: Path, numbers: range, seed: int) -> None:
    os.ftruncate(errors, 0)
    os.dup2(errors, 2)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    faulthandler.register(signal.SIGALRM, file=2, all_threads=False, chain=True)  # shows where it hangs, then ends it
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        subject = load(name, Path(folder))
        signal.alarm(CASE_SECONDS)
        for number, outcome, seconds in outcomes(subject, numbers, seed):
            results.send((number, outcome, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
            signal.alarm(CASE_SECONDS)
        signal.alarm(0)
