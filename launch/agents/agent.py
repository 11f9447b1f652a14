"""The agent that the launcher starts on each host. It runs the host's workers and never leaves one behind.

    cd FOLDER && python -m convoy.launch.agents.agent     # orders on standard input, reports on standard output

The agent stops its workers when standard input ends (the launcher, or what connects it to the agent, is gone) or when
it has received nothing for a while (the network is down): SIGTERM, so that they save, and SIGKILL after the grace
period. If the agent itself is killed, the kernel kills the workers.

With `--detach` the agent is no child of the process that started it, which may kill its children when it ends.

Orders: `hello` (report this host's state), `start` (these workers), `signal` (to all workers), `kill`.
Reports: `hello`, `waits`, `ended`, `stopped`, `problem`. Both sides send `beat` as a heartbeat when idle.
"""

import contextlib
import hashlib
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convoy import __version__
from convoy.core.errors import ConvoyError, UsageError
from convoy.launch.agents.messages import SILENT_SECONDS, Messages
from convoy.launch.devices import cores_by_worker, gpus_by_worker, usable_gpus, worker_environments
from convoy.launch.ports import reserved_ports
from convoy.launch.processes import WorkerExit, WorkerProcesses, WorkerProgram
from convoy.launch.trainer_command import trainer_environment, trains

_TICK_SECONDS = 0.05
_SHARED_FOLDER_SECONDS = 10.0  # a file written on one host may take a while to appear on another


class Agent:
    """Executes the launcher's orders. When `serve` returns, no worker is left."""

    def __init__(self, messages: Messages):
        """Args: messages: the connection to the launcher."""
        self._messages = messages
        self._is_terminated = False
        self._silent_seconds = SILENT_SECONDS
        self._grace_seconds = 60.0
        self._workers: WorkerProcesses | None = None
        self._ranks: list[int] = []  # rank in the run, by index on this host
        self._stopped: list[int] = []
        self._locks = contextlib.ExitStack()
        self._ports = contextlib.ExitStack()
        self._cores: list[frozenset[int]] = []
        self._gpus: list[str] | None = None

    def terminate(self, *_: object) -> None:
        """Signal handler: stops the workers as if the launcher were gone, for example when the host shuts down."""
        self._is_terminated = True

    def serve(self) -> None:
        """Executes orders until the launcher is gone."""
        with self._locks, self._ports:
            try:
                while not self._is_over():
                    for order in self._messages.receive():
                        self._execute(order)
                    self._report()
                    self._messages.wait(_TICK_SECONDS)
                self._print_reason()
                self._stop_workers()
            finally:
                if self._workers:
                    self._workers.kill()

    def _print_reason(self) -> None:
        """Prints why this agent exits; ssh forwards it to the launcher if that is still there."""
        with contextlib.suppress(OSError):
            if self._is_terminated:
                print("the agent received SIGTERM", file=sys.stderr, flush=True)
            elif not self._messages.are_over:
                print(f"the agent received nothing for {self._silent_seconds:.0f} s", file=sys.stderr, flush=True)

    def _is_over(self) -> bool:
        return self._is_terminated or self._messages.are_over or self._messages.silence > self._silent_seconds

    def _execute(self, order: Mapping[str, Any]) -> None:
        if "hello" in order:
            self._report_host(order["hello"])
        elif "start" in order:
            self._start(order["start"])
        elif self._workers and "signal" in order:
            self._workers.send(int(order["signal"]))
        elif self._workers and "kill" in order:
            self._report_exits(self._workers.kill())

    def _report_host(self, order: Mapping[str, Any]) -> None:
        if order.get("version") != __version__:  # the order's fields may differ too
            self._messages.send({"hello": {"version": __version__, "python": sys.executable}})
            return
        self._silent_seconds = float(order["silent_seconds"])
        self._grace_seconds = float(order["grace_seconds"])
        slots, command = int(order["slots"]), order["command"]
        facts = {
            "version": __version__,
            "python": sys.executable,
            "hostname": socket.gethostname(),
            "sees_run": self._sees(order),
            "problem": "",
        }
        if facts["sees_run"] and not os.access(Path(order["token_file"]).parent, os.W_OK):
            facts["problem"] = f"this user cannot write to {order['run']}. Grant write access to it"
        elif facts["sees_run"] and trains(command) and not self._lock_run(order):
            if self._is_over():
                return
            facts["problem"] = (
                f"another launch still has workers of {order['run']} there. Wait for it to end, or pass another "
                "--workdir"
            )
        try:
            self._gpus = gpus_by_worker(slots, command, os.environ, asked_as=f"slots={slots}")
        except UsageError as error:
            facts["problem"] = str(error).rstrip(".")
        self._cores = cores_by_worker(slots)
        facts["gpus"] = usable_gpus(command, os.environ)
        facts["ports"] = self._ports.enter_context(reserved_ports(slots, avoid=set(order["avoid_ports"])))
        self._messages.send({"hello": facts})

    def _sees(self, order: Mapping[str, Any]) -> bool:
        """Returns whether this host sees the file that the launcher has written into RUN."""
        deadline = time.monotonic() + _SHARED_FOLDER_SECONDS
        while True:
            with contextlib.suppress(OSError, UnicodeDecodeError):
                if Path(order["token_file"]).read_text(encoding="ascii") == order["token"]:
                    return True
            if time.monotonic() >= deadline or self._is_over():
                return False
            self._exchange_heartbeats()

    def _lock_run(self, order: Mapping[str, Any]) -> bool:
        """Waits for the agent of an earlier attempt, whose workers may still save; returns whether it has ended."""
        if sys.platform != "linux":
            return True
        # An abstract Unix socket name is unique on this host, and the kernel frees it when this process ends.
        name = hashlib.sha256(f"{order['run']}\n{order['name']}".encode()).hexdigest()
        lock = self._locks.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        deadline, has_reported = time.monotonic() + self._silent_seconds + self._grace_seconds, False
        while True:
            try:
                lock.bind(f"\0convoy-agent-{name}")
                return True
            except OSError:
                if time.monotonic() >= deadline or self._is_over():
                    return False
            if not has_reported:
                self._messages.send({"waits": True})
                has_reported = True
            self._exchange_heartbeats()

    def _exchange_heartbeats(self) -> None:
        self._messages.receive()
        self._messages.beat()
        self._messages.wait(_TICK_SECONDS)

    def _start(self, order: Mapping[str, Any]) -> None:
        workers = order["workers"]
        environments = worker_environments(
            {**trainer_environment(), **order["variables"]},
            len(workers),
            gpus=self._gpus,
            one_thread=len(workers) > 1 and not self._cores[0],
        )
        programs = [
            WorkerProgram(order["command"], {**environment, **worker["variables"]}, Path(worker["log"]), cores)
            for worker, environment, cores in zip(workers, environments, self._cores, strict=True)
        ]
        self._ports.close()
        self._ranks = [int(worker["rank"]) for worker in workers]
        try:
            self._workers = WorkerProcesses(programs)
        except ConvoyError as error:
            self._messages.send({"problem": f"cannot start its workers: {error}"})

    def _report(self) -> None:
        self._messages.beat()
        if not self._workers:
            return
        self._report_exits(self._workers.poll())
        stopped = [self._ranks[index] for index in self._workers.stopped()]
        if stopped != self._stopped:
            self._stopped = stopped
            self._messages.send({"stopped": stopped})

    def _report_exits(self, exits: Sequence[WorkerExit]) -> None:
        for worker_exit in exits:
            self._messages.send(
                {"ended": [self._ranks[worker_exit.rank], worker_exit.returncode], "time": worker_exit.time}
            )

    def _stop_workers(self) -> None:
        """Sends SIGTERM and waits for the grace period; the caller then kills what still runs."""
        if not self._workers:
            return
        self._workers.send(signal.SIGTERM)
        deadline = time.monotonic() + self._grace_seconds
        while self._workers.running() and time.monotonic() < deadline:
            if any("kill" in order for order in self._messages.receive()):
                self._report_exits(self._workers.kill())
            self._report()
            self._messages.wait(_TICK_SECONDS)


def main(arguments: Sequence[str]) -> int:
    """Runs an agent on standard input and output; returns the exit code."""
    if "--detach" in arguments and os.fork():
        return 0
    with contextlib.suppress(PermissionError):  # already a session leader
        os.setsid()
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    os.write(1, b"\n")  # ends the line of a login shell's greeting
    agent = Agent(Messages(0, 1))
    signal.signal(signal.SIGTERM, agent.terminate)
    agent.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
