"""The chaos proof: a run whose workers are killed, stopped and asked to go N times ends as if nothing had happened.

    python -m tests.chaos 20 --seed=1

Trains a small run undisturbed on one device, then the same run under `convoy launch local` on two workers, and injures
a worker of that N times, at random moments. In the end weights, training metrics and the images of every step must be
those of the undisturbed run, and no process may be left. Prints what it did and found; exit code 0 or 1. Everything
lies in a temporary folder, which stays where the proof fails.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.reading.order import positions_to_images

_REPOSITORY = Path(__file__).parents[1]
_WORKERS = 2
_MARK = "CONVOY_CHAOS_FOLDER"  # in the environment of all that is started here, and so of all that those start

_HEARTBEAT_SECONDS = 5
_SHORTEST_STARTUP_TIMEOUT = 10
_STEPS_A_CHECKPOINT = 5
_PILOT_STEPS = 60
_LEAST_STEPS = 100
_END = 0.85  # of the steps: from there on injuries come before training begins, so that the run outlives them all
_SHARE_IN_STARTUP = 0.4  # of the injuries; the others come when training has begun
_LONGEST_TRAINING_SECONDS = 4.0  # before an injury,
_MOST_TRAINING_STEPS = 20  # and so many steps, so that the run lasts however fast the machine becomes
_NEAR_THE_END = 0.6  # of a start: the latest moment of an injury that must let no step be trained
_USER_SIGNALS = 10  # one injury of so many is SIGUSR1; the others are SIGKILL, SIGSTOP and SIGTERM in equal shares
_SHARED = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)
_CHECKPOINTS_AFTER_ALL = 3  # after so many a gang has passed over its injury
_DEADLINE_SECONDS = 180.0
_END_SECONDS = 900.0  # for the rest of the run after the last injury
_POLL_SECONDS = 0.01


class ChaosError(Exception):
    """The proof failed, or could not be carried out."""


@dataclass(frozen=True)
class Fault:
    """One signal to one worker.

    Attributes:
      kind: the signal.
      worker: which one.
      in_startup: whether it is due while the gang starts, or in the first seconds after its first step.
      moment: when, 0 to 1 of that time.
      time: when it was sent, in seconds since 1970.
      phase: what it met: `start-up` until the gang's first step is done, then `training`.
    """

    kind: signal.Signals
    worker: int
    in_startup: bool
    moment: float
    time: float = 0.0
    phase: str = ""


@dataclass(frozen=True)
class Speed:
    """What an undisturbed start of two workers takes: seconds to the first step, then steps a second."""

    start_seconds: float
    steps_per_second: float


@dataclass(frozen=True)
class Workplace:
    """The temporary folder and the runs in it."""

    folder: Path

    def run(self, name: str) -> "RunFolder":
        """Returns a run directory."""
        return RunFolder(self.folder / name)

    def convoy(self, *arguments: object, output: str) -> None:
        """Runs a command to its end; its output goes to a file.

        Raises:
          ChaosError: it failed.
        """
        with self.started(*arguments, output=output) as process:
            if process.wait() != 0:
                raise ChaosError(f"convoy {arguments[0]} ended with exit code {process.returncode}: see {output}")

    @contextlib.contextmanager
    def started(self, *arguments: object, output: str) -> Iterator[subprocess.Popen]:
        """Starts a command; in the end it is gone."""
        with open(self.folder / output, "wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "convoy", *map(str, arguments)],
                cwd=_REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, "PYTHONPATH": str(_REPOSITORY), _MARK: str(self.folder)},
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def processes_left(self) -> list[int]:
        """Returns what was started here, by whatever way, and still runs."""
        mark, left = f"{_MARK}={self.folder}".encode(), []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    left.append(int(entry.name))
        return left


@dataclass(frozen=True)
class RunFolder:
    """What the trainer and the launcher leave in a run directory."""

    path: Path

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Returns a file's JSON lines, without one that a kill cut short."""
        lines = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.path / name).read_bytes().splitlines():
                with contextlib.suppress(ValueError):
                    lines.append(json.loads(line))
        return lines

    def events(self, name: str, since: float = 0.0) -> list[dict[str, Any]]:
        """Returns the events of a name since a time, in seconds since 1970."""
        return [event for event in self.lines("events.jsonl") if event["event"] == name and event["time"] >= since]

    def json(self, name: str) -> Any:
        """Returns the content of a JSON file."""
        return json.loads((self.path / name).read_text())

    def checkpoint_step(self) -> int:
        """Returns the step of the newest checkpoint, 0 where there is none."""
        return max((int(path.stem.split("-")[1]) for path in (self.path / "checkpoints").glob("step-*.npz")), default=0)

    def train_metrics(self) -> list[dict[str, Any]]:
        """Returns what was measured in training, without how fast it was."""
        lines = [line for line in self.lines("metrics.jsonl") if line["split"] == "train"]
        return [{tag: value for tag, value in line.items() if not tag.startswith("perf/")} for line in lines]


def planned_injuries(count: int, randomness: random.Random) -> list[Fault]:
    """Returns kinds in equal shares and in random order, with random workers and moments."""
    kinds = [signal.SIGUSR1] * (count // _USER_SIGNALS)
    shared = list(_SHARED)
    randomness.shuffle(shared)
    kinds += itertools.islice(itertools.cycle(shared), count - len(kinds))
    randomness.shuffle(kinds)
    return [
        Fault(kind, randomness.randrange(_WORKERS), randomness.random() < _SHARE_IN_STARTUP, randomness.random())
        for kind in kinds
    ]


def steps_for(injuries: Sequence[Fault]) -> int:
    """Returns how long a run is of which its injuries leave nearly nothing to train in peace."""
    steps = sum(
        _MOST_TRAINING_STEPS * injury.moment + _STEPS_A_CHECKPOINT for injury in injuries if not injury.in_startup
    )
    steps /= _END
    return max(_LEAST_STEPS, -(-int(steps) // _STEPS_A_CHECKPOINT) * _STEPS_A_CHECKPOINT)


def make_dataset(workplace: Workplace) -> Path:
    """Draws images and converts them; returns the dataset directory."""
    photos, data = workplace.folder / "photos", workplace.folder / "data"
    sizes = ("--categories=5", "--per_category=23", "--size=32")
    workplace.convoy("sample", f"--output={photos}", *sizes, output="sample.log")
    workplace.convoy("convert", f"--images={photos / 'train'}", f"--output={data}", "--workers=1", output="convert.log")
    return data


def train_flags(data: Path, run: RunFolder, steps: int) -> list[str]:
    """Returns the trainer's flags that all runs share."""
    return [
        "--config=smoke",
        "--deterministic",
        f"--data={data}",
        f"--workdir={run.path}",
        "--devices=cpu:1",
        f"--config.virtual_replicas={_WORKERS}",
        f"--config.steps={steps}",
        f"--config.checkpoint_every_steps={_STEPS_A_CHECKPOINT}",
        "--config.eval_every_steps=50",
    ]


def launch_flags(speed: Speed | None) -> tuple[list[str], list[str]]:
    """Returns the flags of the launcher and what the trainer gets under it."""
    trainer = ["--record_order", f"--heartbeat_timeout={_HEARTBEAT_SECONDS}"]
    if speed:  # a worker that is stopped before it has met the others costs this
        trainer.append(f"--startup_timeout={max(_SHORTEST_STARTUP_TIMEOUT, 2 * speed.start_seconds):.0f}")
    return ["launch", "local", f"--processes={_WORKERS}", "--max_restarts=1000000", "--"], ["train", *trainer]


def measure_speed(workplace: Workplace, data: Path) -> Speed:
    """Trains a few steps on two workers."""
    run, started = workplace.run("pilot"), time.time()
    launcher, trainer = launch_flags(None)
    workplace.convoy(*launcher, *trainer, *train_flags(data, run, _PILOT_STEPS), output="pilot.log")
    (first,), checkpoints = run.events("first_step"), run.events("checkpoint")
    seconds = checkpoints[-1]["time"] - checkpoints[0]["time"]
    return Speed(first["time"] - started, (checkpoints[-1]["step"] - checkpoints[0]["step"]) / seconds)


class Chaos:
    """A launch that is being injured."""

    def __init__(self, launcher: subprocess.Popen, run: RunFolder, steps: int, speed: Speed):
        self._launcher = launcher
        self._run = run
        self._last_step_to_train_undisturbed = int(_END * steps)
        self._start_seconds = speed.start_seconds
        self._gang: list[int] = []
        self._gang_started = 0.0

    def injure(self, injuries: Sequence[Fault]) -> list[Fault]:
        """Injures a worker at each moment; returns the injuries as they were done.

        Raises:
          ChaosError: the launch ended meanwhile, or did not start its workers again.
        """
        done: list[Fault] = []
        self._await_gang()
        for injury in injuries:
            self._wait(lambda injury=injury: self._is_due(injury), "the next injury's moment")
            first_step = self._first_step()
            phase = "training" if first_step else "start-up"
            if first_step:  # what a start takes by now, as other programs come and go
                self._start_seconds = min(self._start_seconds, first_step["time"] - self._gang_started)
            done.append(replace(injury, time=time.time(), phase=phase))
            os.kill(self._gang[injury.worker], injury.kind)
            print(f"{len(done):>4} {_told(done[-1])}, step {self._run.checkpoint_step()}", flush=True)
            self._await_gang(done[-1])
        return done

    def _is_due(self, injury: Fault) -> bool:
        is_near_its_end = self._run.checkpoint_step() >= self._last_step_to_train_undisturbed
        first_step = self._first_step()
        if injury.in_startup or is_near_its_end:
            share = _NEAR_THE_END if is_near_its_end else 1.0
            # At the latest when training begins: the machine may have become faster, and the run must outlive them all.
            return bool(first_step) or time.time() >= self._gang_started + share * injury.moment * self._start_seconds
        if first_step is None:
            return False
        steps = self._run.checkpoint_step() - first_step["step"]
        seconds = time.time() - first_step["time"]
        return seconds >= injury.moment * _LONGEST_TRAINING_SECONDS or steps >= injury.moment * _MOST_TRAINING_STEPS

    def _first_step(self) -> dict[str, Any] | None:
        events = self._run.events("first_step", since=self._gang_started)
        return events[-1] if events else None

    def _await_gang(self, injury: Fault | None = None) -> None:
        """Waits until new workers have been started, or the old ones have gone on as if nothing had happened."""

        def is_there() -> bool:
            children = _children(self._launcher.pid)
            if len(children) == _WORKERS and not set(children) & set(self._gang):
                self._gang, self._gang_started = children, time.time()
                return True
            if not injury or injury.kind in (signal.SIGKILL, signal.SIGSTOP):
                return False
            return len(self._run.events("checkpoint", since=injury.time)) >= _CHECKPOINTS_AFTER_ALL

        self._wait(is_there, "a new gang" + (f" after {_told(injury)}" if injury else ""))

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while not condition():
            if self._launcher.poll() is not None:
                raise ChaosError(f"the launcher ended with {self._launcher.returncode} while waiting for {what}")
            if time.monotonic() > deadline:
                raise ChaosError(f"{what} did not come within {_DEADLINE_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)


def problems(reference: RunFolder, run: RunFolder, data: Path) -> list[str]:
    """Returns in what the injured run differs from the undisturbed one; prints what every image came to."""
    found = []
    expected, result = reference.json("result.json"), run.json("result.json")
    print(f"weights_sha256 {result['weights_sha256']}, undisturbed {expected['weights_sha256']}")
    if result["weights_sha256"] != expected["weights_sha256"]:
        found.append("the weights differ")
    before, after = reference.train_metrics(), run.train_metrics()
    if before != after:
        different = [a for b, a in zip(before, after, strict=False) if a != b]
        found.append(
            f"metrics.jsonl differs: {len(before)} and {len(after)} training lines; first: {different[:1] or 'missing'}"
        )
    return found + problems_of_order(run, data, expected["step"])


def problems_of_order(run: RunFolder, data: Path, steps: int) -> list[str]:
    """Returns where the images that were trained on are not those of the order."""
    config, num_images = run.json("config.json"), open_dataset(data).split("train").num_images
    batch_size = config["batch_size"]
    recorded = [run.lines(f"order/worker-{rank}.jsonl") for rank in range(_WORKERS)]
    for rank, lines in enumerate(recorded):
        if [line["step"] for line in lines] != list(range(1, steps + 1)):
            counts = Counter(line["step"] for line in lines)
            wrong = [step for step in range(1, steps + 1) if counts[step] != 1]
            return [f"worker {rank} wrote {len(lines)} lines for {steps} steps; not once: {wrong[:10]}"]
    seen = np.array([sum((line["images"] for line in lines), []) for lines in zip(*recorded, strict=True)])
    positions = np.arange(steps * batch_size)
    expected, _ = positions_to_images(positions, num_images=num_images, seed=config["seed"])
    times = np.bincount(seen.ravel(), minlength=num_images)
    print(
        f"{seen.size} images of {num_images} in {steps} steps, {seen.size / num_images:.2f} epochs: "
        f"each seen {times.min()} to {times.max()} times"
    )
    wrong_steps = np.flatnonzero((seen != expected.reshape(steps, batch_size)).any(axis=1)) + 1
    found = [f"other images than the order's in steps {wrong_steps[:10].tolist()}"] if len(wrong_steps) else []
    if times.max() - times.min() > 1:
        found.append(f"images were seen {times.min()} to {times.max()} times")
    return found


def print_summary(injuries: Sequence[Fault], run: RunFolder, wall_seconds: float) -> None:
    """Prints what was done to the run and what that cost."""
    print(f"{len(injuries)} injuries:")
    for phase in ("start-up", "training"):
        counts = Counter(injury.kind.name for injury in injuries if injury.phase == phase)
        print(
            f"  {phase:<9} {sum(counts.values()):>3}  " + ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
        )
    launch = run.json("launch.json")
    causes = Counter(attempt["cause"].split(": ")[0] for attempt in launch["attempts"])
    print(f"{len(launch['attempts'])} attempts, goodput {launch['goodput']:.0%}, {wall_seconds:.0f} s in all")
    for cause, number in causes.most_common(12):
        print(f"  {number:>3}  {cause}")
    first_steps = [event["time"] for event in run.events("first_step")]
    nexts = [*(injury.time for injury in injuries[1:]), float("inf")]
    seconds: dict[tuple[str, str], list[float]] = {}
    for injury, following in zip(injuries, nexts, strict=True):
        after = [step - injury.time for step in first_steps if injury.time < step <= following]
        for key in ((injury.phase, injury.kind.name), ("", "")):
            seconds.setdefault(key, []).extend(after[:1])
    print("median seconds from an injury to the next first step, where no other injury came between:")
    for (phase, kind), values in sorted(seconds.items()):
        if values:
            print(f"  {phase or 'all':<9} {kind:<8} {statistics.median(values):5.1f}  of {len(values)}")


def prove(workplace: Workplace, count: int, seed: int) -> list[str]:
    """Does it all; returns what is wrong.

    Raises:
      ChaosError: it could not be carried out.
    """
    started = time.monotonic()
    data = make_dataset(workplace)
    speed = measure_speed(workplace, data)
    plan = planned_injuries(count, random.Random(seed))
    steps = steps_for(plan)
    print(
        f"{count} injuries, seed {seed}: {steps} steps; a start takes {speed.start_seconds:.1f} s, "
        f"then {speed.steps_per_second:.0f} steps a second",
        flush=True,
    )
    reference, run = workplace.run("undisturbed"), workplace.run("injured")
    workplace.convoy("train", *train_flags(data, reference, steps), output="undisturbed.log")
    launcher_flags, trainer = launch_flags(speed)
    command = (*launcher_flags, *trainer, *train_flags(data, run, steps))
    with workplace.started(*command, output="injured.log") as launcher:
        injuries = Chaos(launcher, run, steps, speed).injure(plan)
        try:
            exit_code = launcher.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            raise ChaosError(f"the run did not end within {_END_SECONDS:.0f} s after its last injury") from None
        left = workplace.processes_left()
    print_summary(injuries, run, time.monotonic() - started)
    if exit_code != 0:
        return [f"the launcher ended with exit code {exit_code}: see {workplace.folder}/injured.log"]
    return [f"processes are left: {left}"] * bool(left) + problems(reference, run, data)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="tests/chaos.sh", description=__doc__.split("\n")[0])
    parser.add_argument("injuries", type=int, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of kinds, workers and moments")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    workplace = Workplace(Path(tempfile.mkdtemp(prefix="convoy-chaos-")))
    try:
        found = prove(workplace, arguments.injuries, arguments.seed)
    except ChaosError as error:
        found = [str(error)]
    except KeyboardInterrupt:
        found = ["interrupted"]
    for process in workplace.processes_left():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    if found:
        print("FAILED: " + "; ".join(found) + f". Everything is in {workplace.folder}.")
        return 1
    shutil.rmtree(workplace.folder)
    print("Proven: as if nothing had happened.")
    return 0


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _told(injury: Fault) -> str:
    return f"{injury.kind.name} to worker {injury.worker} in {injury.phase}"


if __name__ == "__main__":
    sys.exit(main())
