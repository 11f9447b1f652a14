"""Peers as worker processes: each is prepared once, times a round on request, and sleeps in between.

The thread pools, precision policy and devices of a peer are settings of its whole process, so each has its own process;
and the parent can measure one round of each in turn, so that only one computes at a time. A module of peers ends with

    if __name__ == "__main__":
        serve(prepare)

and the parent starts it by name:

    with running("benchmarks.step", ["fit-float32", "convoy-auto"], options) as workers:
        for worker in workers:
            worker.wait_until_ready()
        measured = [worker.measure() for worker in workers]

Workers exit with their parent, however it ends: each exits as soon as its standard input closes.

A peer may consist of several processes that run its rounds together (`Member`); to the parent they look like one
worker.
"""

import contextlib
import ctypes
import json
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from convoy.core.errors import ConvoyError
from convoy.core.processes import terminable

_ROOT = Path(__file__).parents[1]
_SHOWN_ERROR_LINES = 12
_STOP_SECONDS = 10.0
_ANSWER_SECONDS = 1800.0  # to prepare, or for a round
_BECOME_SUBREAPER = 36  # Linux: prctl(PR_SET_CHILD_SUBREAPER)
# The interpreter of the peers called `torch*`, whose CUDA libraries would replace those of TensorFlow.
TORCH_PYTHON_VARIABLE = "CONVOY_BENCH_TORCH"
_NO_GPUS = {"CUDA_VISIBLE_DEVICES": "-1"}  # most benchmarks measure the CPU, even if there is a GPU


class Round(NamedTuple):
    """One round of one peer.

    Attributes:
      seconds: wall-clock time.
      cpu_seconds: CPU time of all threads in that time.
      work: number of images or floating point operations.
    """

    seconds: float
    cpu_seconds: float
    work: float


def session_cpu_seconds() -> float:
    """Returns the CPU seconds of all processes in this session, including children that have been waited for.

    A peer has its own session, so these are all the processes it started. The resolution is usually 10 ms.
    """
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has exited
            # The fields after the command name in parentheses are: state, parent, group, session, ...
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == os.getsid(0):
                ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def adopt_orphans() -> None:
    """Makes orphaned descendants children of this process, so that `session_cpu_seconds` includes them."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_BECOME_SUBREAPER, 1, 0, 0, 0)


class Stopwatch:
    """Times a round, from its creation to `stop`."""

    def __init__(self, cpu_clock: Callable[[], float] = time.process_time):
        """Starts the stopwatch.

        Args:
          cpu_clock: returns CPU seconds: of this process, or `session_cpu_seconds` if a peer has several processes.
        """
        self._cpu_clock = cpu_clock
        self._cpu_seconds, self._seconds = cpu_clock(), time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall-clock time so far."""
        return time.perf_counter() - self._seconds

    def stop(self, work: float) -> Round:
        """Returns the round, in which `work` was done."""
        seconds = self.seconds
        return Round(seconds, self._cpu_clock() - self._cpu_seconds, work)


def timed(
    run: Callable[[], Any], work: float, *, times: int = 1, cpu_clock: Callable[[], float] = time.process_time
) -> Callable[[], Round]:
    """Returns a function that times one round: `times` calls of `run`, which do `work` in total."""

    def time_round() -> Round:
        watch = Stopwatch(cpu_clock)
        for _ in range(times):
            run()
        return watch.stop(work)

    return time_round


class Member(NamedTuple):
    """One process of a peer.

    Attributes:
      options: options of this process, which override the common ones.
      prefix: command prefix, for example `ip netns exec NAME`.
    """

    options: Mapping[str, Any]
    prefix: tuple[str, ...] = ()


class SkippedError(Exception):
    """A peer cannot run here, for example because a package is not installed."""


class PeerError(ConvoyError):
    """A peer failed. The message ends with the last lines of its output."""


@dataclass(frozen=True)
class Prepared:
    """A peer that is ready.

    Attributes:
      time_round: runs one round and returns it. The first calls are used for warm-up.
      facts: what the peer reports about itself, as JSON data.
    """

    time_round: Callable[[], Round]
    facts: Mapping[str, Any] = field(default_factory=dict)


def serve(prepare: Callable[[str, dict[str, Any]], Prepared]) -> None:
    """Runs the worker process: prepares the peer named on the command line, then answers each request with a round.

    Args:
      prepare: prepares a peer, given its name and the options; raises SkippedError if it cannot run here. If
        `options["threads"]` is above 0, the process is pinned to that many cores.
    """
    name, options = sys.argv[1], json.loads(sys.argv[2])
    # Output of libraries goes to standard error; standard output is reserved for the answers.
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)
        orders: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(orders,), daemon=True).start()
        if options["threads"]:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options["threads"]])
        try:
            prepared = prepare(name, options)
        except SkippedError as reason:
            print(json.dumps({"skipped": str(reason)}), file=answers)
            return
        print(json.dumps({"ready": prepared.facts}), file=answers)
        while True:
            orders.get()
            print(json.dumps({"round": prepared.time_round()}), file=answers)


def _listen(orders: "queue.SimpleQueue[str]") -> None:
    for line in sys.stdin:
        orders.put(line)
    os._exit(0)  # the parent is gone


class Worker:
    """The parent's side of one worker process."""

    def __init__(self, module: str, peer: str, options: Mapping[str, Any], scratch: str, *, prefix: Sequence[str] = ()):
        """Starts the process, which begins to prepare the peer.

        Args:
          module: module of the peer, run with `python -m`.
          peer: its name in that module.
          options: JSON values for its `prepare`, including `threads`; without `on_gpu`, GPUs are hidden from it.
          scratch: folder for temporary files, which a killed process cannot remove.
          prefix: command prefix. It must replace itself with the command, not start it as a child.
        """
        self.peer = peer
        self.facts: dict[str, Any] = {}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `stop`)
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {"TF_CPP_MIN_LOG_LEVEL": "2"} | ({} if options.get("on_gpu") else _NO_GPUS)
        python = (peer.startswith("torch") and os.environ.get(TORCH_PYTHON_VARIABLE)) or sys.executable
        process = subprocess.Popen(
            [*prefix, python, "-m", module, peer, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
            env=os.environ | variables | {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": scratch},
        )
        assert process.stdin and process.stdout
        self._process, self._requests, self._answers = process, process.stdin, process.stdout

    def wait_until_ready(self) -> None:
        """Waits until the peer is prepared, and stores its facts.

        Raises:
          SkippedError: it cannot run here.
          PeerError: it failed.
        """
        self.facts = self._answer("ready")

    def measure(self) -> Round:
        """Runs one round.

        Raises:
          PeerError: it failed.
        """
        self.order_round()
        return self.take_round()

    def order_round(self) -> None:
        """Requests a round."""
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either, and that error says more
            self._requests.write("go\n")
            self._requests.flush()

    def take_round(self) -> Round:
        """Returns the requested round.

        Raises:
          PeerError: it failed.
        """
        return Round(*self._answer("round"))

    def fileno(self) -> int:
        """Returns the descriptor that becomes readable when the peer has answered or exited."""
        return self._answers.fileno()

    def stop(self) -> None:
        """Kills the process and all processes it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(_STOP_SECONDS)
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        self._answers.close()
        self._errors.close()

    def _answer(self, kind: str) -> Any:  # noqa: ANN401
        if not select.select([self._answers], [], [], _ANSWER_SECONDS)[0]:
            raise PeerError(f"peer {self.peer} has not answered for {_ANSWER_SECONDS / 60:.0f} minutes.")
        line = self._answers.readline()
        answer = json.loads(line) if line else {}
        if "skipped" in answer:
            raise SkippedError(answer["skipped"])
        if kind not in answer:
            self._process.wait()
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").splitlines()[-_SHOWN_ERROR_LINES:]
            raise PeerError("\n  ".join([f"peer {self.peer} ended with exit code {self._process.returncode}:", *lines]))
        return answer[kind]


class WorkerProcesses:
    """The parent's side of a peer with several processes, which run each round together. Used like a `Worker`.

    Attributes:
      peer: its name.
      facts: what its first process reports about itself.
    """

    def __init__(self, workers: Sequence[Worker]):
        """Takes workers that have been started."""
        self.peer = workers[0].peer
        self.facts: dict[str, Any] = {}
        self._workers = workers

    def wait_until_ready(self) -> None:
        """Waits for all processes, as `Worker.wait_until_ready` does."""
        self._take_answers(Worker.wait_until_ready)
        self.facts = self._workers[0].facts

    def measure(self) -> Round:
        """Returns a round of all processes: time until the last one is done, and the sums of CPU time and work.

        Raises:
          PeerError: one of them failed.
        """
        watch = Stopwatch()
        for worker in self._workers:
            worker.order_round()
        rounds = self._take_answers(Worker.take_round)
        return Round(watch.seconds, sum(r.cpu_seconds for r in rounds), sum(r.work for r in rounds))

    def stop(self) -> None:
        """Kills all processes."""
        for worker in self._workers:
            worker.stop()

    def _take_answers(self, take: Callable[[Worker], Any]) -> list[Any]:
        # In the order of arrival: if one process fails, its error is the cause, and those of the others follow from it.
        waiting, answers = list(self._workers), []
        while waiting:
            for worker in select.select(waiting, [], [])[0]:
                answers.append(take(worker))
                waiting.remove(worker)
        return answers


Peer = Worker | WorkerProcesses


@contextlib.contextmanager
def running(
    module: str,
    peers: Sequence[str],
    options: Mapping[str, Any],
    members: Mapping[str, Sequence[Member]] | None = None,
) -> Iterator[list[Peer]]:
    """Starts a worker for each peer, and kills all of them on exit, also after an interrupt or SIGTERM.

    Args:
      module: module of the peers.
      peers: their names.
      options: options of all peers.
      members: processes of the peers that have several, or options of their own.
    """
    workers: list[Worker] = []

    def start(peer: str, member: Member) -> Worker:
        worker = Worker(module, peer, {**options, **member.options}, scratch, prefix=member.prefix)
        workers.append(worker)
        return worker

    with terminable(), tempfile.TemporaryDirectory(prefix="convoy-bench-", ignore_cleanup_errors=True) as scratch:
        try:
            started: list[Peer] = []
            for peer in peers:
                own = [start(peer, member) for member in (members or {}).get(peer, [Member({})])]
                started.append(own[0] if len(own) == 1 else WorkerProcesses(own))
            yield started
        finally:
            for worker in workers:
                worker.stop()
