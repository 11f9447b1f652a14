"""Chaos test: a run whose workers receive N signals at random moments must end like a run without faults.

    python -m tests.chaos 20 --seed=1

Trains a small reference run on one device, then the same run under `convoy launch local` on two workers, and sends a
fatal or stopping signal to a worker N times. In the end the weights, the training metrics and the images of every step
must be those of the reference run, and no process may be left. Prints the faults and the result; exit code 0 or 1. The
temporary folder with all files is kept if the test fails.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.reading.order import positions_to_images
from tests.processes import children, started
from tests.trainer import user_models

_WORKERS = 2
_MARK = "CONVOY_CHAOS_FOLDER"  # in the environment of all processes of this test, including indirect children

_HEARTBEAT_SECONDS = 5
_MIN_STARTUP_TIMEOUT = 10
_STEPS_PER_CHECKPOINT = 5
_PILOT_STEPS = 60
_MIN_STEPS = 100
_END = 0.85  # fraction of the steps after which faults come before training begins, so that the run outlasts all faults
_STARTUP_FRACTION = 0.4  # of the faults; the others come during training
_MAX_TRAINING_SECONDS = 4.0  # between the first step and a fault
_MAX_TRAINING_STEPS = 20  # likewise, so that the run outlasts the faults on a fast machine too
_NEAR_THE_END = 0.6  # fraction of a start-up: latest moment of a fault that must prevent any step
_FAULTS_PER_SIGUSR1 = 10  # of ten faults one is SIGUSR1; the others are SIGKILL, SIGSTOP and SIGTERM in equal shares
_COMMON_SIGNALS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)
_CHECKPOINTS_AFTER_FAULT = 3  # after this many the workers have survived the fault
_DEADLINE_SECONDS = 180.0
_END_SECONDS = 900.0  # for the rest of the run after the last fault
_POLL_SECONDS = 0.01


class ChaosError(Exception):
    """The test failed or could not be carried out."""


@dataclass(frozen=True)
class Fault:
    """One signal to one worker.

    Attributes:
      kind: the signal.
      worker: index of the worker.
      in_startup: whether it is due during start-up, or in the first seconds after the first step.
      moment: relative moment in that period, 0 to 1.
      time: when it was sent, in seconds since the epoch.
      phase: actual phase at that time: `start-up` before the first step, then `training`.
    """

    kind: signal.Signals
    worker: int
    in_startup: bool
    moment: float
    time: float = 0.0
    phase: str = ""


@dataclass(frozen=True)
class Speed:
    """Speed of two workers without faults: seconds to the first step, then steps per second."""

    start_seconds: float
    steps_per_second: float


@dataclass(frozen=True)
class ChaosFolder:
    """The temporary folder, and the commands that run in it."""

    folder: Path

    def run(self, name: str) -> "RunFolder":
        """Returns a run directory."""
        return RunFolder(self.folder / name)

    def convoy(self, *arguments: object, output: str) -> None:
        """Runs a command with its output in a file.

        Raises:
          ChaosError: it failed.
        """
        with self.started(*arguments, output=output) as process:
            if process.wait() != 0:
                raise ChaosError(f"convoy {arguments[0]} failed with exit code {process.returncode}: see {output}")

    def started(self, *arguments: object, output: str) -> contextlib.AbstractContextManager[subprocess.Popen]:
        """Starts a command in a context manager that kills it on exit."""
        command = [sys.executable, "-m", "convoy", *map(str, arguments)]
        return started(command, output=self.folder / output, environment={_MARK: str(self.folder)})

    def processes_left(self) -> list[int]:
        """Returns all running processes of this test, including indirect children."""
        mark, left = f"{_MARK}={self.folder}".encode(), []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    left.append(int(entry.name))
        return left


@dataclass(frozen=True)
class RunFolder:
    """Files of the trainer and the launcher in a run directory."""

    path: Path

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Returns a file's JSON lines, without truncated ones."""
        lines = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.path / name).read_bytes().splitlines():
                with contextlib.suppress(ValueError):
                    lines.append(json.loads(line))
        return lines

    def events(self, name: str, since: float = 0.0) -> list[dict[str, Any]]:
        """Returns the events with a name since a time, in seconds since the epoch."""
        return [event for event in self.lines("events.jsonl") if event["event"] == name and event["time"] >= since]

    def json(self, name: str) -> Any:
        """Returns the content of a JSON file."""
        return json.loads((self.path / name).read_text())

    def checkpoint_step(self) -> int:
        """Returns the step of the latest checkpoint; 0 without one."""
        return max((int(path.stem.split("-")[1]) for path in (self.path / "checkpoints").glob("step-*.npz")), default=0)

    def train_metrics(self) -> list[dict[str, Any]]:
        """Returns the training metrics without the performance ones."""
        lines = [line for line in self.lines("metrics.jsonl") if line["split"] == "train"]
        return [{tag: value for tag, value in line.items() if not tag.startswith("perf/")} for line in lines]


def plan_faults(count: int, randomness: random.Random) -> list[Fault]:
    """Returns faults with signals in equal shares and random order, random workers and moments."""
    kinds = [signal.SIGUSR1] * -(-count // _FAULTS_PER_SIGUSR1)
    common = list(_COMMON_SIGNALS)
    randomness.shuffle(common)
    kinds += itertools.islice(itertools.cycle(common), count - len(kinds))
    randomness.shuffle(kinds)
    return [
        Fault(kind, randomness.randrange(_WORKERS), randomness.random() < _STARTUP_FRACTION, randomness.random())
        for kind in kinds
    ]


def steps_for(faults: Sequence[Fault]) -> int:
    """Returns the number of steps of a run that is hit by faults nearly until its end."""
    steps = sum(_MAX_TRAINING_STEPS * fault.moment + _STEPS_PER_CHECKPOINT for fault in faults if not fault.in_startup)
    steps /= _END
    return max(_MIN_STEPS, -(-int(steps) // _STEPS_PER_CHECKPOINT) * _STEPS_PER_CHECKPOINT)


def make_dataset(files: ChaosFolder) -> Path:
    """Draws images and converts them; returns the dataset directory."""
    photos, data = files.folder / "photos", files.folder / "data"
    sizes = ("--categories=5", "--per_category=23", "--size=32")
    files.convoy("sample", f"--output={photos}", *sizes, output="sample.log")
    files.convoy("convert", f"--images={photos / 'train'}", f"--output={data}", "--workers=1", output="convert.log")
    return data


def train_flags(data: Path, run: RunFolder, steps: int) -> list[str]:
    """Returns the trainer flags that all runs share."""
    return [
        "--config=smoke",
        f"--config.model.name={user_models.__file__}:normalized",
        "--deterministic",
        f"--data={data}",
        f"--workdir={run.path}",
        "--devices=cpu:1",
        f"--config.virtual_replicas={_WORKERS}",
        f"--config.steps={steps}",
        f"--config.checkpoint_every_steps={_STEPS_PER_CHECKPOINT}",
        "--config.eval_every_steps=50",
    ]


def launch_flags(speed: Speed | None) -> tuple[list[str], list[str]]:
    """Returns the launcher command, and the trainer command with its additional flags."""
    trainer = ["--record_order", f"--heartbeat_timeout={_HEARTBEAT_SECONDS}"]
    if speed:  # the cost of a worker that is stopped during start-up
        trainer.append(f"--startup_timeout={max(_MIN_STARTUP_TIMEOUT, 2 * speed.start_seconds):.0f}")
    return ["launch", "local", f"--processes={_WORKERS}", "--max_restarts=1000000", "--"], ["train", *trainer]


def measure_speed(files: ChaosFolder, data: Path) -> Speed:
    """Trains a few steps on two workers."""
    run, start_time = files.run("pilot"), time.time()
    launcher, trainer = launch_flags(None)
    files.convoy(*launcher, *trainer, *train_flags(data, run, _PILOT_STEPS), output="pilot.log")
    (first,), checkpoints = run.events("first_step"), run.events("checkpoint")
    seconds = checkpoints[-1]["time"] - checkpoints[0]["time"]
    return Speed(first["time"] - start_time, (checkpoints[-1]["step"] - checkpoints[0]["step"]) / seconds)


class Chaos:
    """A running launch into which faults are injected."""

    def __init__(self, launcher: subprocess.Popen, run: RunFolder, steps: int, speed: Speed):
        self._launcher = launcher
        self._run = run
        self._last_training_step = int(_END * steps)
        self._start_seconds = speed.start_seconds
        self._workers: list[int] = []
        self._started = 0.0

    def inject(self, faults: Sequence[Fault]) -> list[Fault]:
        """Sends the signals at their moments; returns the faults with time and phase.

        Raises:
          ChaosError: the launcher exited or did not restart its workers.
        """
        done: list[Fault] = []
        self._await_workers()
        for fault in faults:
            self._wait(lambda fault=fault: self._is_due(fault), "the moment of the next fault")
            first_step = self._first_step()
            phase = "training" if first_step else "start-up"
            if first_step:  # the load of the machine changes
                self._start_seconds = min(self._start_seconds, first_step["time"] - self._started)
            done.append(replace(fault, time=time.time(), phase=phase))
            os.kill(self._workers[fault.worker], fault.kind)
            print(f"{len(done):>4} {_describe(done[-1])}, step {self._run.checkpoint_step()}", flush=True)
            self._await_workers(done[-1])
        return done

    def _is_due(self, fault: Fault) -> bool:
        is_near_its_end = self._run.checkpoint_step() >= self._last_training_step
        first_step = self._first_step()
        if fault.in_startup or is_near_its_end:
            share = _NEAR_THE_END if is_near_its_end else 1.0
            # Not after training begins: the machine may be faster now, and the run must outlast all faults.
            return bool(first_step) or time.time() >= self._started + share * fault.moment * self._start_seconds
        if first_step is None:
            return False
        steps = self._run.checkpoint_step() - first_step["step"]
        seconds = time.time() - first_step["time"]
        return seconds >= fault.moment * _MAX_TRAINING_SECONDS or steps >= fault.moment * _MAX_TRAINING_STEPS

    def _first_step(self) -> dict[str, Any] | None:
        events = self._run.events("first_step", since=self._started)
        return events[-1] if events else None

    def _await_workers(self, fault: Fault | None = None) -> None:
        """Waits until new workers have been started, or the old ones have survived the fault."""

        def have_continued() -> bool:
            current = children(self._launcher.pid)
            if len(current) == _WORKERS and not set(current) & set(self._workers):
                self._workers, self._started = current, time.time()
                return True
            if not fault or fault.kind in (signal.SIGKILL, signal.SIGSTOP):
                return False
            return len(self._run.events("checkpoint", since=fault.time)) >= _CHECKPOINTS_AFTER_FAULT

        self._wait(have_continued, "new workers" + (f" after {_describe(fault)}" if fault else ""))

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while not condition():
            if self._launcher.poll() is not None:
                raise ChaosError(f"the launcher exited with {self._launcher.returncode} while waiting for {what}")
            if time.monotonic() > deadline:
                raise ChaosError(f"{what}: nothing within {_DEADLINE_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)


def problems(reference: RunFolder, run: RunFolder, data: Path) -> list[str]:
    """Returns the differences between the run with faults and the reference run."""
    found = []
    expected, result = reference.json("result.json"), run.json("result.json")
    print(f"weights_sha256 {result['weights_sha256']}, reference {expected['weights_sha256']}")
    if result["weights_sha256"] != expected["weights_sha256"]:
        found.append("the weights differ")
    before, after = reference.train_metrics(), run.train_metrics()
    if before != after:
        different = [a for b, a in zip(before, after, strict=False) if a != b]
        found.append(
            f"metrics.jsonl differs: {len(before)} and {len(after)} training lines; first: {different[:1] or 'missing'}"
        )
    return found + order_problems(run, data, expected["step"])


def order_problems(run: RunFolder, data: Path, steps: int) -> list[str]:
    """Returns the differences between the recorded images and the sample order; prints how often each was seen."""
    config, num_images = run.json("config.json"), open_dataset(data).split("train").num_images
    batch_size = config["batch_size"]
    recorded = [run.lines(f"order/worker-{rank}.jsonl") for rank in range(_WORKERS)]
    for rank, lines in enumerate(recorded):
        if [line["step"] for line in lines] != list(range(1, steps + 1)):
            counts = Counter(line["step"] for line in lines)
            wrong = [step for step in range(1, steps + 1) if counts[step] != 1]
            return [f"worker {rank} recorded {len(lines)} lines for {steps} steps; missing or repeated: {wrong[:10]}"]
    seen = np.array([sum((line["images"] for line in lines), []) for lines in zip(*recorded, strict=True)])
    positions = np.arange(steps * batch_size)
    expected, _ = positions_to_images(positions, num_images=num_images, seed=config["seed"])
    times = np.bincount(seen.ravel(), minlength=num_images)
    print(
        f"{seen.size} images of {num_images} in {steps} steps, {seen.size / num_images:.2f} epochs: "
        f"each seen {times.min()} to {times.max()} times"
    )
    wrong_steps = np.flatnonzero((seen != expected.reshape(steps, batch_size)).any(axis=1)) + 1
    found = [f"wrong images in steps {wrong_steps[:10].tolist()}"] if len(wrong_steps) else []
    if times.max() - times.min() > 1:
        found.append(f"images were seen {times.min()} to {times.max()} times")
    return found


def print_summary(faults: Sequence[Fault], run: RunFolder, wall_seconds: float) -> None:
    """Prints the faults, their causes according to the launcher, and the recovery times."""
    print(f"{len(faults)} faults:")
    for phase in ("start-up", "training"):
        counts = Counter(fault.kind.name for fault in faults if fault.phase == phase)
        print(
            f"  {phase:<9} {sum(counts.values()):>3}  " + ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
        )
    launch = run.json("launch.json")
    causes = Counter(attempt["cause"].split(": ")[0] for attempt in launch["attempts"])
    print(f"{len(launch['attempts'])} attempts, goodput {launch['goodput']:.0%}, {wall_seconds:.0f} s in total")
    for cause, number in causes.most_common(12):
        print(f"  {number:>3}  {cause}")
    first_steps = [event["time"] for event in run.events("first_step")]
    nexts = [*(fault.time for fault in faults[1:]), float("inf")]
    seconds: dict[tuple[str, str], list[float]] = {}
    for fault, following in zip(faults, nexts, strict=True):
        after = [step - fault.time for step in first_steps if fault.time < step <= following]
        for key in ((fault.phase, fault.kind.name), ("", "")):
            seconds.setdefault(key, []).extend(after[:1])
    print("median seconds from a fault to the next first step, if no other fault came between:")
    for (phase, kind), values in sorted(seconds.items()):
        if values:
            print(f"  {phase or 'all':<9} {kind:<8} {statistics.median(values):5.1f}  of {len(values)}")


def run_chaos(files: ChaosFolder, count: int, seed: int) -> list[str]:
    """Runs the test; returns the problems.

    Raises:
      ChaosError: it could not be carried out.
    """
    start_time = time.monotonic()
    data = make_dataset(files)
    speed = measure_speed(files, data)
    plan = plan_faults(count, random.Random(seed))
    steps = steps_for(plan)
    print(
        f"{count} faults, seed {seed}: {steps} steps; a start takes {speed.start_seconds:.1f} s, "
        f"then {speed.steps_per_second:.0f} steps per second",
        flush=True,
    )
    reference, run = files.run("reference"), files.run("faults")
    files.convoy("train", *train_flags(data, reference, steps), output="reference.log")
    launcher_flags, trainer = launch_flags(speed)
    command = (*launcher_flags, *trainer, *train_flags(data, run, steps))
    with files.started(*command, output="faults.log") as launcher:
        faults = Chaos(launcher, run, steps, speed).inject(plan)
        try:
            exit_code = launcher.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            raise ChaosError(f"the run did not end within {_END_SECONDS:.0f} s after the last fault") from None
        left = files.processes_left()
    print_summary(faults, run, time.monotonic() - start_time)
    if exit_code != 0:
        return [f"the launcher exited with {exit_code}: see {files.folder}/faults.log"]
    return [f"processes are left: {left}"] * bool(left) + problems(reference, run, data)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="tests/chaos.sh", description=__doc__.split("\n")[0])
    parser.add_argument("faults", type=int, help="number of faults")
    parser.add_argument("--seed", type=int, default=0, help="seed for signals, workers and moments")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    files = ChaosFolder(Path(tempfile.mkdtemp(prefix="convoy-chaos-")))
    try:
        found = run_chaos(files, arguments.faults, arguments.seed)
    except ChaosError as error:
        found = [str(error)]
    except KeyboardInterrupt:
        found = ["interrupted"]
    for process in files.processes_left():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    if found:
        print("FAILED: " + "; ".join(found) + f". Files are in {files.folder}.")
        return 1
    shutil.rmtree(files.folder)
    print("Passed: the result is that of the reference run.")
    return 0


def _describe(fault: Fault) -> str:
    return f"{fault.kind.name} to worker {fault.worker} in {fault.phase}"


if __name__ == "__main__":
    sys.exit(main())
