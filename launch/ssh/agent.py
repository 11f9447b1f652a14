"""What runs on each host at the end of an ssh connection: starts the host's workers, and leaves none behind.

    cd FOLDER && python -m convoy.launch.ssh.agent     # orders come on standard input, reports go to standard output

The workers live no longer than the word of the launcher: when standard input ends (the launcher, the ssh client or the
ssh server is gone), or nothing was heard for a while (the network is cut), they get SIGTERM, so that they save, and
after the grace time SIGKILL. When the agent itself is killed, the kernel kills them.

Orders: `hello` (who are you, and do you see this file), `start` (these workers), `signal` (to all workers), `kill`.
Reports: `hello`, `waits`, `ended`, `stopped`, `problem`. Both sides send `beat` when they have nothing else to say.
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
from convoy.core.errors import UsageError
from convoy.launch.devices import cores_by_worker, gpus_by_worker, visible_gpus
from convoy.launch.ports import reserved_ports
from convoy.launch.processes import WorkerExit, WorkerProcesses, WorkerProgram
from convoy.launch.ssh.messages import SILENT_SECONDS, Messages
from convoy.launch.trainer_command import OTHER_CLUSTERS, flag_value, trainer_environment, trains

_TICK_SECONDS = 0.05
_TO_SEE_SECONDS = 10.0  # what one host writes may take a while to show on another


class Agent:
    """One agent's life. `serve` returns when it is over; then no worker is left."""

    def __init__(self, messages: Messages):
        """Args: messages: with the launcher."""
        self._messages = messages
        self._is_terminated = False
        self._silent_seconds = SILENT_SECONDS
        self._grace_seconds = 60.0
        self._gang: WorkerProcesses | None = None
        self._ranks: list[int] = []  # by the gang's own count
        self._stopped: list[int] = []
        self._held = contextlib.ExitStack()  # ports, and this agent's turn
        self._ports = contextlib.ExitStack()
        self._cores: list[frozenset[int]] = []
        self._gpus: list[str] | None = None

    def terminate(self, *_: object) -> None:
        """Ends the workers as if the launcher were gone: the host shuts down, for example."""
        self._is_terminated = True

    def serve(self) -> None:
        """Obeys until the launcher is gone."""
        with self._held, self._ports:
            try:
                while not self._is_over():
                    for order in self._messages.receive():
                        self._obey(order)
                    self._report()
                    self._messages.wait(_TICK_SECONDS)
                self._say_why()
                self._end_workers()
            finally:
                if self._gang:
                    self._gang.kill()

    def _say_why(self) -> None:
        """Tells through ssh, where somebody still listens, why this agent ends of itself."""
        with contextlib.suppress(OSError):
            if self._is_terminated:
                print("its agent got SIGTERM", file=sys.stderr, flush=True)
            elif not self._messages.are_over:
                print(f"the agent heard nothing for {self._silent_seconds:.0f} s", file=sys.stderr, flush=True)

    def _is_over(self) -> bool:
        return self._is_terminated or self._messages.are_over or self._messages.silence > self._silent_seconds

    def _obey(self, order: Mapping[str, Any]) -> None:
        if "hello" in order:
            self._introduce(order["hello"])
        elif "start" in order:
            self._start(order["start"])
        elif self._gang and "signal" in order:
            self._gang.send(int(order["signal"]))
        elif self._gang and "kill" in order:
            self._tell(self._gang.kill())

    def _introduce(self, order: Mapping[str, Any]) -> None:
        if order.get("version") != __version__:  # and its orders may be others too
            self._messages.send({"hello": {"version": __version__}})
            return
        self._silent_seconds = float(order["silent_seconds"])
        self._grace_seconds = float(order["grace_seconds"])
        slots, command = int(order["slots"]), order["command"]
        facts = {"version": __version__, "hostname": socket.gethostname(), "sees_run": self._sees(order), "problem": ""}
        if facts["sees_run"] and not os.access(Path(order["token_file"]).parent, os.W_OK):
            facts["problem"] = (
                f"this user cannot write {order['run']}, where logs and checkpoints go. Give it the right to"
            )
        elif facts["sees_run"] and trains(command) and not self._gets_its_turn(order):
            if self._is_over():
                return
            facts["problem"] = (
                f"another launch still has workers of {order['run']} there. Wait for its end, or give another --workdir"
            )
        on_cpu = (flag_value(command, "devices") or "").startswith("cpu")
        gpus = [] if on_cpu else visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
        try:
            self._gpus = gpus_by_worker(slots, command, os.environ, asked_as=f"slots={slots}")
        except UsageError as error:
            facts["problem"] = str(error).rstrip(".")
        self._cores = cores_by_worker(slots)
        facts["gpus"] = gpus
        facts["ports"] = self._ports.enter_context(reserved_ports(slots, avoid=set(order["avoid_ports"])))
        self._messages.send({"hello": facts})

    def _sees(self, order: Mapping[str, Any]) -> bool:
        """Returns whether this host sees what the launcher has written into RUN."""
        deadline = time.monotonic() + _TO_SEE_SECONDS
        while True:
            with contextlib.suppress(OSError, UnicodeDecodeError):
                if Path(order["token_file"]).read_text(encoding="ascii") == order["token"]:
                    return True
            if time.monotonic() >= deadline or self._is_over():
                return False
            self._stay_in_touch()

    def _gets_its_turn(self, order: Mapping[str, Any]) -> bool:
        """Waits for an agent of an attempt before, whose workers may still save; returns whether it has ended."""
        if sys.platform != "linux":
            return True
        # A name that lives as long as this process, whatever ends it, and belongs to nobody else on this host.
        name = hashlib.sha256(f"{order['run']}\n{order['name']}".encode()).hexdigest()
        turn = self._held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        deadline, has_told = time.monotonic() + self._silent_seconds + self._grace_seconds, False
        while True:
            try:
                turn.bind(f"\0convoy-agent-{name}")
                return True
            except OSError:
                if time.monotonic() >= deadline or self._is_over():
                    return False
            if not has_told:
                self._messages.send({"waits": True})
                has_told = True
            self._stay_in_touch()

    def _stay_in_touch(self) -> None:
        self._messages.receive()
        self._messages.beat()
        self._messages.wait(_TICK_SECONDS)

    def _start(self, order: Mapping[str, Any]) -> None:
        environment = {**trainer_environment(), **order["variables"]}
        for name in OTHER_CLUSTERS:
            environment.pop(name, None)
        workers = order["workers"]
        if len(self._cores) > 1 and not self._cores[0]:
            environment = {"TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1", **environment}
        programs = [
            WorkerProgram(
                command=order["command"],
                environment={
                    **environment,
                    **({"CUDA_VISIBLE_DEVICES": self._gpus[slot]} if self._gpus else {}),
                    **worker["variables"],
                },
                log=Path(worker["log"]),
                cores=self._cores[slot],
            )
            for slot, worker in enumerate(workers)
        ]
        self._ports.close()
        self._ranks = [int(worker["rank"]) for worker in workers]
        try:
            self._gang = WorkerProcesses(programs)
        except OSError as error:
            self._messages.send({"problem": f"cannot start a worker ({error})"})

    def _report(self) -> None:
        self._messages.beat()
        if not self._gang:
            return
        self._tell(self._gang.poll())
        stopped = [self._ranks[rank] for rank in self._gang.stopped()]
        if stopped != self._stopped:
            self._stopped = stopped
            self._messages.send({"stopped": stopped})

    def _tell(self, ends: Sequence[WorkerExit]) -> None:
        for ended in ends:
            self._messages.send({"ended": [self._ranks[ended.rank], ended.returncode]})

    def _end_workers(self) -> None:
        """Ends what still runs: SIGTERM, the grace time, and SIGKILL by whoever called."""
        if not self._gang:
            return
        self._gang.send(signal.SIGTERM)
        deadline = time.monotonic() + self._grace_seconds
        while self._gang.running() and time.monotonic() < deadline:
            if any("kill" in order for order in self._messages.receive()):
                self._tell(self._gang.kill())
            self._report()
            self._messages.wait(_TICK_SECONDS)


def main() -> int:
    """Is the agent of this process's standard input and output."""
    with contextlib.suppress(PermissionError):  # it leads one already
        os.setsid()
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    os.write(1, b"\n")  # a login shell's greeting may have no end of line
    agent = Agent(Messages(0, 1))
    signal.signal(signal.SIGTERM, agent.terminate)
    agent.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
