"""The workers of one attempt in a SLURM job: one step of `srun`, in which `launch worker` runs each of them.

    workers = StepWorkers(files, command, environment, hosts=["n1", "n2"], job="17", name="convoy-attempt-1")

srun tells little of how its tasks ended, and nothing while others run. So each `launch worker` notes how its worker
ended in the attempt's folder, and a rank of which there is no such note when srun has ended is lost. Signals go by
scancel: srun itself would answer SIGTERM by killing what it started.
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
from convoy.launch.slurm.client import SlurmError, nodes_that_do_not_answer, slurm

_LOOK_SECONDS = 0.5  # between looks into the attempt's folder, which a file server keeps
_LATE_NOTE_SECONDS = 5.0  # that a note may take to be seen from here after srun has ended
_LAST_STEPS_SECONDS = 15.0  # that srun may take to end after its tasks
_NEXT_TRY_SECONDS = 5.0  # between tries to send a signal while SLURM does not answer
_TICK_SECONDS = 0.05
# Why srun could not begin, where another try gives the same.
_REFUSED_FOR_GOOD = re.compile(
    r"More processors requested|Requested node configuration is not available|Invalid generic resource|"
    r"Memory required by task|unrecognized option|Invalid .* specification"
)
_EXIT_CODE = re.compile(r"Exited with exit code (\d+)")
# What people can do something about: srun's words, and ours.
_WORTH_SAYING = (
    (
        re.compile("Requested nodes are busy"),
        "the workers wait for cores of the job that another step of it has (`squeue --me --steps`).",
    ),
    (
        re.compile(r"oom.kill|Out Of Memory", re.IGNORECASE),
        "SLURM says that the job ran out of memory on a node and a process was killed. Ask for more: --sbatch=--mem=0 "
        "is all that a node has.",
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
        say: Callable[[str], None],
    ):
        """Starts srun.

        Args:
          files: of the attempt.
          command: srun and all its arguments, --job-name=NAME among them.
          environment: of srun, and so of the workers.
          hosts: node of each worker, by rank.
          job: SLURM's number of the job.
          name: of the step, which no other of the job has.
          say: shows a line to people.

        Raises:
          OSError: srun cannot be started.
        """
        self._files = files
        self._job = job
        self._name = name
        self._step = ""
        self._left = set(range(len(hosts)))
        self._hosts = hosts
        self._next_look = 0.0
        self._say = say
        self._said: set[str] = set()
        self._log_size = 0
        self._unsent: int | None = None
        self._next_try = 0.0
        self._log = files.folder / "srun.log"
        self._log.write_text(f"{shlex.join(command)}\n", encoding="utf-8")
        self._gang = WorkerProcesses([WorkerProgram(command, environment, self._log)])
        self._srun: WorkerExit | None = None
        self._srun_ended_at = 0.0

    def running(self) -> list[int]:
        """Returns the ranks of workers that had not ended at the last `poll`."""
        return sorted(self._left)

    def poll(self) -> list[WorkerExit]:
        """Returns the workers that have ended since the last call."""
        self._poll_srun()
        if time.monotonic() < self._next_look:
            return []
        self._next_look = time.monotonic() + _LOOK_SECONDS
        self._pass_on_what_srun_says()
        if self._unsent is not None and time.monotonic() > self._next_try:
            self.send(self._unsent)
        ended = self._noted()
        left = sorted(self._left)
        if self._srun and self._srun.returncode == 0:
            ended += [WorkerExit(rank, 0, self._srun.time) for rank in left]
            self._left.clear()
        elif self._srun and time.monotonic() > self._srun_ended_at + _LATE_NOTE_SECONDS:
            ended += [self._lost(rank) for rank in left]
            self._left.clear()
        return ended

    def send(self, number: int) -> None:
        """Sends a signal to every worker that runs; later, where SLURM does not answer now."""
        self._unsent = None
        try:
            if step := self._find_step():
                slurm("scancel", f"--signal={number}", step)
            else:
                self._gang.send(signal.SIGTERM)  # srun still waits for the nodes
        except SlurmError:  # the step is ending by itself, or SLURM does not answer; srun reaches the nodes without it
            if number == signal.SIGUSR1:
                self._gang.send(number)
            elif number == signal.SIGKILL:
                self._gang.send(signal.SIGTERM)
            else:
                self._unsent, self._next_try = number, time.monotonic() + _NEXT_TRY_SECONDS

    def stopped(self) -> list[int]:
        """Returns nothing: from here a worker that is stopped looks like one that works."""
        return []

    def kill(self) -> list[WorkerExit]:
        """Kills every worker that runs and returns them when they are gone, or cannot be reached."""
        if self._left:
            self.send(signal.SIGKILL)
        self._wait_for_srun()
        if not self._srun:  # it hangs on tasks that nobody reaches
            self.send(signal.SIGKILL)
            self._wait_for_srun()
            self._gang.kill()
        ended = self._noted()
        left = sorted(self._left)
        self._left.clear()
        silent = {}
        if left:
            with contextlib.suppress(SlurmError):
                silent = nodes_that_do_not_answer(",".join(dict.fromkeys(self._hosts[rank] for rank in left)))
        for rank in left:
            state = silent.get(self._hosts[rank])
            lost = f"its node {self._hosts[rank]} does not answer (SLURM: {state})" if state else ""
            ended.append(WorkerExit(rank, -signal.SIGKILL, time.time(), lost))
        return ended

    def _poll_srun(self) -> None:
        for end in self._gang.poll():
            self._srun, self._srun_ended_at = end, time.monotonic()

    def _wait_for_srun(self) -> None:
        deadline = time.monotonic() + _LAST_STEPS_SECONDS
        while not self._srun and time.monotonic() < deadline:
            self._poll_srun()
            time.sleep(_TICK_SECONDS)

    def _find_step(self) -> str:
        """Returns `JOB.STEP`; nothing where srun has not got it yet, or not any more."""
        if not self._step:
            steps = slurm("squeue", "--noheader", "--steps", f"--jobs={self._job}", "--format=%i %j")
            ids = [line.split()[0] for line in steps.splitlines() if line.split()[1:] == [self._name]]
            self._step = ids[0] if ids else ""
        return self._step

    def _noted(self) -> list[WorkerExit]:
        """Returns the workers whose end has been noted since the last look; they run no longer."""
        try:
            names = set(os.listdir(self._files.folder))
        except OSError:
            return []
        here = [rank for rank in sorted(self._left) if self._files.end_file(rank).name in names]
        ended = [end for rank in here if (end := self._files.end(rank))]
        self._left -= {end.rank for end in ended}
        return ended

    def _lost(self, rank: int) -> WorkerExit:
        """Returns the end of a worker that has left no note, with what srun says of it."""
        output = self._srun_output()
        said = [line.removeprefix("srun: ").removeprefix("error: ") for line in output if line.startswith("srun: ")]
        of_rank = [line for line in said if _names_task(line, rank)]
        if refused := [line for line in said if _REFUSED_FOR_GOOD.search(line)]:
            self._files.write_error(rank, WorkerError(self._srun.time, None, 1, f"srun: {refused[-1]}"))
            return WorkerExit(rank, 1, self._srun.time)
        if not self._files.log(rank).exists():  # `launch worker` never began: what was written went to srun
            own = [line.partition(": ")[2] for line in output if re.match(rf" *{rank}: ", line)]
            with contextlib.suppress(OSError):
                self._files.log(rank).write_text("".join(f"{line}\n" for line in own or output), encoding="utf-8")
            if own and any(map(_EXIT_CODE.search, of_rank)):  # and nor would it a third time
                self._files.write_error(rank, WorkerError(self._srun.time, None, 1, own[-1]))
                return WorkerExit(rank, 1, self._srun.time)
        if code := next((int(match[1]) for line in of_rank if (match := _EXIT_CODE.search(line))), 0):
            # It could not leave its note: the disk is full.
            return WorkerExit(rank, code if code < 128 or code == RETRYABLE else 128 - code, self._srun.time)
        words = of_rank or [line for line in said if "task" not in line] or ["nothing"]
        return WorkerExit(rank, 1, self._srun.time, lost=f"it left no word of its end (srun: {words[-1]})")

    def _pass_on_what_srun_says(self) -> None:
        """Shows what people can do something about, once."""
        if self._log.stat().st_size == self._log_size:
            return
        self._log_size = self._log.stat().st_size
        for sign, words in _WORTH_SAYING:
            if words not in self._said and any(sign.search(line) for line in self._srun_output()):
                self._said.add(words)
                self._say(f"convoy: {words}")

    def _srun_output(self) -> list[str]:
        try:
            return self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []


def _names_task(line: str, rank: int) -> bool:
    """Returns whether a line of srun's, such as `n2: tasks 1-3,7: Killed`, is about a rank."""
    match = re.search(r"\btasks? ([\d,-]+):", line)
    for part in match[1].split(",") if match else ():
        first, _, last = part.partition("-")
        if first and int(first) <= rank <= int(last or first):
            return True
    return False
