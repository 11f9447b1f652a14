"""The workers of one attempt in a SLURM job: one step of `srun`, in which `launch worker` runs each of them.

    workers = StepWorkers(files, command, environment, hosts=["n1", "n2"], job="17", name="attempt-1", show=print)

srun reports little about how its tasks ended, and nothing while others are running. So each `launch worker` records
how its worker ended in the attempt's folder, and a rank without such a record after the end of srun is lost. Signals
are sent with scancel: on SIGTERM srun itself would kill its tasks.
"""

import contextlib
import os
import re
import shlex
import signal
import time
from collections.abc import Callable, Mapping, Sequence

from convoy.core.exit_codes import RETRYABLE
from convoy.launch.policy import WorkerError
from convoy.launch.processes import WorkerExit, WorkerProcesses, WorkerProgram
from convoy.launch.run_files import AttemptFiles
from convoy.launch.shutdown import TICK_SECONDS
from convoy.launch.slurm.client import SlurmError, slurm, unreachable_nodes

_POLL_SECONDS = 0.5  # between reads of the attempt's folder, which is on a shared file system
_LATE_RECORD_SECONDS = 5.0  # that a record may take to become visible here after the end of srun
_SRUN_EXIT_SECONDS = 15.0  # that srun may take to exit after its tasks
_RESEND_SECONDS = 5.0  # between attempts to send a signal while SLURM does not answer
# srun's messages about steps that can never start.
_REFUSED_FOR_GOOD = re.compile(
    r"More processors requested|Requested node configuration is not available|Invalid generic resource|"
    r"Memory required by task|unrecognized option|Invalid .* specification"
)
_EXIT_CODE = re.compile(r"Exited with exit code (\d+)")
# Messages of srun that the user can act on, and the log line for each.
_HINTS = (
    (
        re.compile("Requested nodes are busy"),
        "waiting for cores of the job: another step is using them (`squeue --me --steps`).",
    ),
    (
        re.compile(r"oom.kill|Out Of Memory", re.IGNORECASE),
        "SLURM: out of memory on a node, a process was killed. Request more memory: `--mem=0` requests all memory "
        "of a node.",
    ),
)


class StepWorkers:
    """A running step. See `convoy.launch.supervisor.Workers`."""

    def __init__(
        self,
        files: AttemptFiles,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        hosts: Sequence[str],
        job: str,
        name: str,
        show: Callable[[str], None],
    ):
        """Starts srun.

        Args:
          files: files of the attempt.
          command: srun and its arguments, with --job-name=NAME.
          environment: environment of srun and of the workers.
          hosts: node of each worker, by rank.
          job: number of the job.
          name: name of the step, unique in the job.
          show: prints a log line.

        Raises:
          OSError: srun cannot be started.
        """
        self._files = files
        self._job = job
        self._name = name
        self._step = ""
        self._left = set(range(len(hosts)))
        self._hosts = hosts
        self._next_poll = 0.0
        self._show = show
        self._shown: set[str] = set()
        self._log_size = 0
        self._unsent: int | None = None
        self._next_resend = 0.0
        self._log = files.folder / "srun.log"
        self._log.write_text(f"{shlex.join(command)}\n", encoding="utf-8")
        self._srun = WorkerProcesses([WorkerProgram(command, environment, self._log)])
        self._srun_exit: WorkerExit | None = None
        self._srun_exited_at = 0.0

    def running(self) -> list[int]:
        """Returns the ranks of workers that had not ended at the last `poll`."""
        return sorted(self._left)

    def poll(self) -> list[WorkerExit]:
        """Returns the workers that have ended since the last call."""
        self._poll_srun()
        if time.monotonic() < self._next_poll:
            return []
        self._next_poll = time.monotonic() + _POLL_SECONDS
        self._show_hints()
        if self._unsent is not None and time.monotonic() > self._next_resend:
            self.send(self._unsent)
        ended = self._recorded()
        left = sorted(self._left)
        if self._srun_exit and self._srun_exit.returncode == 0:
            ended += [WorkerExit(rank, 0, self._srun_exit.time) for rank in left]
            self._left.clear()
        elif self._srun_exit and time.monotonic() > self._srun_exited_at + _LATE_RECORD_SECONDS:
            ended += [self._unrecorded(rank, self._srun_exit.time) for rank in left]
            self._left.clear()
        return ended

    def send(self, number: int) -> None:
        """Sends a signal to every running worker; later, if SLURM does not answer now."""
        self._unsent = None
        try:
            if step := self._find_step():
                slurm("scancel", f"--signal={number}", step)
            else:
                self._srun.send(signal.SIGTERM)  # srun is still waiting for the nodes
        except SlurmError:  # the step is ending, or SLURM does not answer; srun reaches the nodes without it
            if number == signal.SIGUSR1:
                self._srun.send(number)
            elif number == signal.SIGKILL:
                self._srun.send(signal.SIGTERM)
            else:
                self._unsent, self._next_resend = number, time.monotonic() + _RESEND_SECONDS

    def stopped(self) -> list[int]:
        """Returns nothing: the launcher cannot distinguish a stopped worker from a running one."""
        return []

    def kill(self) -> list[WorkerExit]:
        """Kills every running worker, waits until they are gone or unreachable, and returns them."""
        if self._left:
            self.send(signal.SIGKILL)
        self._wait_for_srun()
        if not self._srun_exit:  # it is waiting for unreachable tasks
            self.send(signal.SIGKILL)
            self._wait_for_srun()
            self._srun.kill()
        ended = self._recorded()
        left = sorted(self._left)
        self._left.clear()
        unreachable: dict[str, str] = {}
        if left:
            with contextlib.suppress(SlurmError):
                unreachable = unreachable_nodes(",".join(dict.fromkeys(self._hosts[rank] for rank in left)))
        for rank in left:
            state = unreachable.get(self._hosts[rank])
            lost = f"node {self._hosts[rank]} does not answer (SLURM: {state})" if state else ""
            ended.append(WorkerExit(rank, -signal.SIGKILL, time.time(), lost))
        return ended

    def _poll_srun(self) -> None:
        for end in self._srun.poll():
            self._srun_exit, self._srun_exited_at = end, time.monotonic()

    def _wait_for_srun(self) -> None:
        deadline = time.monotonic() + _SRUN_EXIT_SECONDS
        while not self._srun_exit and time.monotonic() < deadline:
            self._poll_srun()
            time.sleep(TICK_SECONDS)

    def _find_step(self) -> str:
        """Returns `JOB.STEP`; empty if srun does not have the step yet, or no longer."""
        if not self._step:
            steps = slurm("squeue", "--noheader", "--steps", f"--jobs={self._job}", "--format=%i %j")
            ids = [line.split()[0] for line in steps.splitlines() if line.split()[1:] == [self._name]]
            self._step = ids[0] if ids else ""
        return self._step

    def _recorded(self) -> list[WorkerExit]:
        """Returns the workers whose end was recorded since the last call, and removes them from those left."""
        try:
            names = set(os.listdir(self._files.folder))
        except OSError:
            return []
        ranks = [rank for rank in sorted(self._left) if self._files.end_file(rank).name in names]
        ended = [end for rank in ranks if (end := self._files.end(rank))]
        self._left -= {end.rank for end in ended}
        return ended

    def _unrecorded(self, rank: int, ended_at: float) -> WorkerExit:
        """Returns the end of a worker without a record, as far as the output of srun explains it."""
        output = self._srun_output()
        messages = [line.removeprefix("srun: ").removeprefix("error: ") for line in output if line.startswith("srun: ")]
        about_rank = [line for line in messages if _names_task(line, rank)]
        if refusals := [line for line in messages if _REFUSED_FOR_GOOD.search(line)]:
            self._files.write_error(rank, WorkerError(ended_at, None, 1, f"srun: {refusals[-1]}"))
            return WorkerExit(rank, 1, ended_at)
        if not self._files.log(rank).exists():  # `launch worker` never started: the task's output went to srun
            own_output = [line.partition(": ")[2] for line in output if re.match(rf" *{rank}: ", line)]
            with contextlib.suppress(OSError):
                text = "".join(f"{line}\n" for line in own_output or output)
                self._files.log(rank).write_text(text, encoding="utf-8")
            if own_output and any(map(_EXIT_CODE.search, about_rank)):  # an error that a restart may not fix
                self._files.write_error(rank, WorkerError(ended_at, None, 1, own_output[-1]))
                return WorkerExit(rank, 1, ended_at)
        if code := next((int(match[1]) for line in about_rank if (match := _EXIT_CODE.search(line))), 0):
            # It could not write its record: the disk is full.
            return WorkerExit(rank, code if code < 128 or code == RETRYABLE else 128 - code, ended_at)
        reasons = about_rank or [line for line in messages if "task" not in line] or ["no message"]
        return WorkerExit(rank, 1, ended_at, lost=f"no exit record (srun: {reasons[-1]})")

    def _show_hints(self) -> None:
        """Prints each message that the user can act on, once."""
        if self._log.stat().st_size == self._log_size:
            return
        self._log_size = self._log.stat().st_size
        for pattern, hint in _HINTS:
            if hint not in self._shown and any(pattern.search(line) for line in self._srun_output()):
                self._shown.add(hint)
                self._show(f"convoy: {hint}")

    def _srun_output(self) -> list[str]:
        try:
            return self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []


def _names_task(line: str, rank: int) -> bool:
    """Returns whether a message of srun, such as `n2: tasks 1-3,7: Killed`, is about a rank."""
    match = re.search(r"\btasks? ([\d,-]+):", line)
    for part in match[1].split(",") if match else ():
        first, _, last = part.partition("-")
        if first and int(first) <= rank <= int(last or first):
            return True
    return False
