"""Chaos test: a run into which N faults are injected at random moments must end like a run without faults.

    python -m tests.chaos 20 --seed=1

Trains a small reference run on one device, then the same run under `convoy launch local` on two workers, with faults
of the kinds in `tests/chaos_injection.py`. It reads its images from an object store that fails in 5 % of the requests,
and keeps them in a cache on the disk. In the end the weights, the training metrics, the steps in TensorBoard and
the images of every step must be those of the reference run, and no process may be left. Prints the faults and the
result; exit code 0 or 1. The temporary folder with all files is kept if the test fails.
"""

import argparse
import contextlib
import random
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from convoy.core.remote import RemotePath
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.reading.order import positions_to_images
from tests.chaos_files import SET_BACK_SECONDS, ChaosError, ChaosFolder, RunFolder
from tests.chaos_injection import STEPS_PER_CHECKPOINT, WORKERS, Chaos, Fault, Kind, Launch, plan_faults, steps_for
from tests.object_stores import FaultyProxy, environment, make_bucket, s3_server, s3_variables, upload_folder
from tests.trainer import user_models
from tests.trainer.run_files import measured

_HEARTBEAT_SECONDS = 5
_MIN_STARTUP_TIMEOUT = 10
_PILOT_STEPS = 60
_STORED = "s3://bucket/data"
_FAILING_REQUESTS = 0.05  # share of all


@dataclass(frozen=True)
class Speed:
    """Speed of two workers without faults: seconds to the first step, then steps per second."""

    start_seconds: float
    steps_per_second: float


def make_dataset(files: ChaosFolder) -> Path:
    """Draws images and converts them; returns the dataset directory."""
    photos, data = files.folder / "photos", files.folder / "data"
    sizes = ("--categories=5", "--per_category=23", "--size=32")
    files.convoy("sample", f"--output={photos}", *sizes, output="sample.log")
    files.convoy("convert", f"--images={photos / 'train'}", f"--output={data}", "--workers=1", output="convert.log")
    return data


@contextlib.contextmanager
def failing_store(files: ChaosFolder, data: Path) -> Iterator[FaultyProxy]:
    """Copies the dataset to `_STORED` in an S3 server, some of whose answers to this process's children are faults."""
    with s3_server(files.folder) as url, environment(s3_variables(url)):
        make_bucket(_STORED.rpartition("/")[0])
        upload_folder(data, RemotePath(_STORED))
        with FaultyProxy(url, failing=_FAILING_REQUESTS) as proxy, environment(s3_variables(proxy.url)):
            yield proxy


def train_flags(data: object, run: RunFolder, steps: int) -> list[str]:
    """Returns the trainer flags that all runs share."""
    return [
        "--config=smoke",
        f"--config.model.name={user_models.__file__}:normalized",
        "--deterministic",
        f"--data={data}",
        f"--workdir={run.path}",
        "--devices=cpu:1",
        f"--config.virtual_replicas={WORKERS}",
        f"--config.steps={steps}",
        f"--config.checkpoint_every_steps={STEPS_PER_CHECKPOINT}",
        "--config.eval_every_steps=50",
    ]


def launch_flags(speed: Speed | None) -> tuple[list[str], list[str]]:
    """Returns the launcher command, and the trainer command with its additional flags."""
    trainer = ["--record_order", f"--heartbeat_timeout={_HEARTBEAT_SECONDS}"]
    if speed:  # the cost of a worker that is stopped during start-up
        trainer.append(f"--startup_timeout={max(_MIN_STARTUP_TIMEOUT, 2 * speed.start_seconds):.0f}")
    return ["launch", "local", f"--processes={WORKERS}", "--max_restarts=1000000", "--"], ["train", *trainer]


def measure_speed(files: ChaosFolder, data: Path) -> Speed:
    """Trains a few steps on two workers."""
    run, start_time = files.run("pilot"), time.time()
    launcher, trainer = launch_flags(None)
    files.convoy(*launcher, *trainer, *train_flags(data, run, _PILOT_STEPS), output="pilot.log")
    (first,), checkpoints = run.events("first_step"), run.events("checkpoint")
    seconds = checkpoints[-1]["time"] - checkpoints[0]["time"]
    return Speed(first["time"] - start_time, (checkpoints[-1]["step"] - checkpoints[0]["step"]) / seconds)


def problems(reference: RunFolder, run: RunFolder, data: Path) -> list[str]:
    """Returns the differences between the run with faults and the reference run."""
    found = []
    expected, result = reference.json("result.json"), run.json("result.json")
    print(f"weights_sha256 {result['weights_sha256']}, reference {expected['weights_sha256']}")
    if result["weights_sha256"] != expected["weights_sha256"]:
        found.append("the weights differ")
    before, after = measured(reference.path, "train"), measured(run.path, "train")
    if before != after:
        different = [a for b, a in zip(before, after, strict=False) if a != b]
        found.append(
            f"metrics.jsonl differs: {len(before)} and {len(after)} training lines; first: {different[:1] or 'missing'}"
        )
    shown = steps_in_tensorboard(run)
    if shown != [line["step"] for line in before]:
        found.append(f"TensorBoard shows {len(shown)} training steps, not {len(before)}")
    return found + order_problems(run, data, expected["step"])


def steps_in_tensorboard(run: RunFolder) -> list[int]:
    """Returns the training steps that TensorBoard shows."""
    events = EventAccumulator(str(run.path / "tensorboard" / "train"), {"tensors": 0}).Reload()
    return [event.step for event in events.Tensors("quality/loss")]


def injection_problems(files: ChaosFolder, faults: Sequence[Fault], run: RunFolder, causes: Sequence[str]) -> list[str]:
    """Returns which faults had no effect, so that nothing was tested, or were not reported as the cause."""
    kinds, found = {fault.kind for fault in faults}, []
    if Kind.CLOCK_SET_BACK in kinds and time.time() - run.lines("events.jsonl")[-1]["time"] < SET_BACK_SECONDS:
        found.append("the times in events.jsonl do not show that the clock was set back")
    if Kind.PORT_TAKEN in kinds and not any(" is in use by " in cause for cause in causes):
        found.append("a taken port was not reported as the cause of a restart")
    if files.is_refusal_pending():
        found.append("no fsync of a directory was refused")
    return found


def order_problems(run: RunFolder, data: Path, steps: int) -> list[str]:
    """Returns the differences between the recorded images and the sample order; prints how often each was seen."""
    config, num_images = run.json("config.json"), open_dataset(data).split("train").num_images
    batch_size = config["batch_size"]
    recorded = [run.lines(f"order/worker-{rank}.jsonl") for rank in range(WORKERS)]
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


def print_summary(faults: Sequence[Fault], launch: Launch, wall_seconds: float) -> None:
    """Prints the faults, the recovery times, and the causes of restarts according to the launcher."""
    print(f"{len(faults)} faults, with median seconds to the next first step (to the next checkpoint without restart):")
    phases = ("start-up", "training")
    print(" ".join(f"{title:>16}" for title in ("", *phases, "both")))
    for kind in (*Kind, None):
        cells = []
        for chosen in (*((phase,) for phase in phases), phases):
            hit = [fault for fault in faults if kind in (fault.kind, None) and fault.phase in chosen]
            seconds = [fault.seconds for fault in hit if fault.seconds is not None]
            cells.append(f"{len(hit)}" + (f"  {statistics.median(seconds):5.1f} s" if seconds else " " * 9))
        print(" ".join(f"{cell:>16}" for cell in (kind.value if kind else "all", *cells)))
    goodput = sum(attempt["seconds_that_count"] for attempt in launch.attempts) / launch.seconds
    print(f"{len(launch.attempts)} attempts, goodput {goodput:.0%}, {wall_seconds:.0f} s in total")
    causes = Counter(re.sub(r"\b[0-9]+\b", "N", attempt["cause"]) for attempt in launch.attempts)
    for cause, number in causes.most_common(20):
        print(f"  {number:>3}  {cause:.110}")


def run_chaos(files: ChaosFolder, plan: Sequence[Fault]) -> list[str]:
    """Runs the test; returns the problems.

    Raises:
      ChaosError: it could not be carried out.
    """
    start_time = time.monotonic()
    data = make_dataset(files)
    speed = measure_speed(files, data)
    steps = steps_for(plan)
    print(
        f"{len(plan)} faults in {steps} steps; a start takes {speed.start_seconds:.1f} s, "
        f"then {speed.steps_per_second:.0f} steps per second",
        flush=True,
    )
    reference, run = files.run("reference"), files.run("faults")
    files.convoy("train", *train_flags(data, reference, steps), output="reference.log")
    launcher_flags, trainer = launch_flags(speed)
    trainer += ["--config.cache=disk", f"--cache_dir={files.folder / 'decoded'}"]  # its writers are killed too
    command = [*launcher_flags, *trainer, *train_flags(_STORED, run, steps)]
    with failing_store(files, data) as store, Launch(files, run, command) as launch:
        faults = Chaos(files, launch, run, steps, speed.start_seconds).inject(plan)
        exit_code = launch.wait()
        left = files.processes_left()
    print_summary(faults, launch, time.monotonic() - start_time)
    if exit_code != 0:
        return [f"the launcher exited with {exit_code}"]
    found = [f"processes are left: {left}"] if left else []
    if not store.faults:
        found.append(f"none of {len(store.requests)} requests to the object store failed")
    print(f"{store.faults.total()} of {len(store.requests)} requests to the object store failed")
    causes = [attempt["cause"] for attempt in launch.attempts]
    return found + injection_problems(files, faults, run, causes) + problems(reference, run, data)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="tests/chaos.sh", description=__doc__.split("\n")[0])
    parser.add_argument("faults", type=int, help="number of faults")
    parser.add_argument("--seed", type=int, default=0, help="seed for order, workers and moments")
    parser.add_argument("--kinds", nargs="+", choices=[kind.name for kind in Kind], help="only these kinds of fault")
    arguments = parser.parse_args()
    kinds = [Kind[name] for name in arguments.kinds or Kind.__members__]
    plan = plan_faults(arguments.faults, random.Random(arguments.seed), kinds)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    files = ChaosFolder(Path(tempfile.mkdtemp(prefix="convoy-chaos-")))
    try:
        found = run_chaos(files, plan)
    except ChaosError as error:
        found = [str(error)]
    except KeyboardInterrupt:
        found = ["interrupted"]
    files.kill_processes()
    if found:
        print("FAILED: " + "; ".join(found) + f". Files are in {files.folder}.")
        return 1
    shutil.rmtree(files.folder)
    print("Passed: the result is that of the reference run.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
