"""Fixtures for tests of whole commands: a small dataset, finished runs, and processes that never outlive a test.

`convoy` and `convoy_started` run one command in a process, `cluster` and `workers_started` one command as several
workers that train together.
"""

import contextlib
import csv
import fcntl
import gc
import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from convoy.core.files import write_whole
from convoy.launch.ports import reserved_ports
from tests import processes
from tests.forks import ForkedProcess, Forks, Result
from tests.network import Network, missing_for_networks
from tests.processes import REPOSITORY, run, started

_SMALL_MODEL = f"{REPOSITORY / 'tests/trainer/user_models.py'}:normalized"
CATEGORIES = ("-1", "007", "03", "1e3", "3", "NaN", "true")  # sorted; strings, although most look like numbers

# Background jobs of a shell ignore SIGINT, `nohup` ignores SIGHUP, and child processes would inherit both.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Garbage collection would search the half million objects of TensorFlow's modules again and again.
gc.disable()

# In this order before all others.
_LONGEST_FILES = ("test_chaos.py", "test_train.py", "test_same_run.py", "test_cluster.py", "test_bench.py")


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@dataclass(frozen=True)
class SmallDataset:
    """Drawn images and the shards that `convoy convert` made of them.

    Attributes:
      photos: `{train,test}/PRODUCT/*.jpg`, and `{train,test}.csv` with categories that look like numbers.
      data: dataset directory with train, validation and test.
      categories: sorted.
    """

    photos: Path
    data: Path
    categories: tuple[str, ...]

    def rows(self, split: str) -> list[tuple[str, str]]:
        """Returns the bare file name and the category of each image, in the CSV's order."""
        with open(self.photos / f"{split}.csv", encoding="utf-8", newline="") as file:
            return [(row["filename"], row["category"]) for row in csv.DictReader(file)]


@dataclass(frozen=True)
class FinishedRun:
    """A run without faults: its directory, its flags without --data and --workdir, and its output."""

    workdir: Path
    flags: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Workers:
    """Processes that train one run together, by rank; `addresses` are the ones in their TF_CONFIG."""

    processes: tuple[ForkedProcess, ...]
    addresses: tuple[str, ...]
    outputs: tuple[Path, ...]

    def output(self, rank: int) -> str:
        """Returns a worker's standard output and error so far."""
        return self.outputs[rank].read_text()

    def wait(self, seconds: float = 240) -> list[int]:
        """Waits for all workers to exit; returns their exit codes."""
        deadline = time.monotonic() + seconds
        try:
            return [process.wait(max(0.01, deadline - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired:
            outputs = "\n".join(f"worker {rank}:\n{self.output(rank)}" for rank in range(len(self.processes)))
            raise AssertionError(f"the workers did not exit within {seconds} s:\n{outputs}") from None

    def report(self, rank: int) -> Any:
        """Returns the last line of a worker's output, decoded from JSON; fails if the exit code is not 0."""
        assert self.processes[rank].returncode == 0, self.output(rank)
        return json.loads(self.output(rank).splitlines()[-1])

    def error(self, rank: int) -> str:
        """Returns a worker's last error message; fails if it printed a traceback."""
        output = self.output(rank)
        assert "Traceback" not in output, output
        return next(line for line in reversed(output.splitlines()) if line.startswith("convoy: "))


@pytest.fixture(autouse=True)
def library_logging() -> Iterator[None]:
    """Undoes what a command in this process did to Convoy's logger: `caplog` would get nothing more."""
    yield
    logger = logging.getLogger("convoy")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def python() -> Callable[..., subprocess.CompletedProcess]:
    """Runs `python *arguments`, by default in the repository's root."""
    return lambda *arguments, **options: run([sys.executable, *map(str, arguments)], **options)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Starts modules in processes that need not import TensorFlow."""
    with contextlib.closing(Forks()) as forks:
        yield forks


@pytest.fixture(scope="session")
def convoy(forks) -> Callable[..., Result]:
    """Runs `convoy *arguments` in its own process; `check=True` requires exit code 0."""

    def run_convoy(*arguments: object, check: bool = False, **options) -> Result:
        result = forks.run("convoy", *arguments, **options)
        assert not check or result.returncode == 0, result.output
        return result

    return run_convoy


@pytest.fixture(scope="session")
def convoy_started(forks) -> Callable[..., contextlib.AbstractContextManager[subprocess.Popen | ForkedProcess]]:
    """Starts `convoy *arguments` in a context manager that kills it on exit.

    `output` is a file. `prefix` is a command that starts Python, such as `ip netns exec`.
    """

    def start(
        *arguments: object, output: Path, prefix: tuple[str, ...] = ()
    ) -> contextlib.AbstractContextManager[subprocess.Popen | ForkedProcess]:
        if not prefix:
            return forks.started("convoy", *arguments, output=output)
        return started([*prefix, sys.executable, "-m", "convoy", *map(str, arguments)], output=output)

    return start


@pytest.fixture(scope="session")
def workers_started(forks) -> Callable[..., contextlib.AbstractContextManager[Workers]]:
    """Starts `convoy *arguments` as the workers of one cluster in a context manager that kills them on exit.

    `output` is a folder. `only` adds arguments and `environments` adds variables for single workers, by rank. `module`
    is started instead of `convoy`.
    """

    @contextlib.contextmanager
    def start(
        *arguments: object,
        output: Path,
        processes: int = 2,
        only: Mapping[int, tuple[object, ...]] | None = None,
        environments: Mapping[int, Mapping[str, str]] | None = None,
        module: str = "convoy",
    ) -> Iterator[Workers]:
        output.mkdir(parents=True, exist_ok=True)
        outputs = tuple(output / f"worker-{rank}.log" for rank in range(processes))
        with contextlib.ExitStack() as stack:
            with reserved_ports(processes) as ports:
                addresses = tuple(f"127.0.0.1:{port}" for port in ports)
            running = []
            for rank in range(processes):
                task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
                command = [*arguments, *(only or {}).get(rank, ())]
                environment = {"TF_CONFIG": json.dumps(task), **(environments or {}).get(rank, {})}
                worker = forks.started(module, *command, output=outputs[rank], environment=environment)
                running.append(stack.enter_context(worker))
            yield Workers(tuple(running), addresses, outputs)

    return start


@pytest.fixture(scope="session")
def cluster(workers_started) -> Callable[..., Workers]:
    """Runs `convoy *arguments` as the workers of one cluster to the end; `check=True` requires exit code 0 from all."""

    def run(*arguments: object, check: bool = False, seconds: float = 240, **options) -> Workers:
        with workers_started(*arguments, **options) as workers:
            codes = workers.wait(seconds)
        ranks = range(len(codes))
        assert not check or not any(codes), "\n".join(f"{codes[rank]}: {workers.output(rank)}" for rank in ranks)
        return workers

    return run


@pytest.fixture
def network(tmp_path) -> Callable[..., Network]:
    """Makes a network of hosts with the given names, removed after the test."""
    if reason := missing_for_networks():
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        yield lambda *hosts, **options: stack.enter_context(Network(tmp_path / "network", hosts, **options))


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Polls a condition until it is true."""
    return processes.wait_until


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, worker_id) -> Callable[[str, Callable[[Path], str]], tuple[Path, str]]:
    """Runs `make(folder)` once for all test processes; returns the folder `name` and what `make` returned.

    Tests must not change such a folder.
    """
    root = tmp_path_factory.getbasetemp()
    root = root if worker_id == "master" else root.parent  # the parent belongs to all processes of this session

    def once(name: str, make: Callable[[Path], str]) -> tuple[Path, str]:
        folder, result = root / name, root / f"{name}.txt"
        with open(root / f"{name}.lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not result.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
                folder.mkdir()
                write_whole(result, make(folder).encode())
        return folder, result.read_text()

    return once


@pytest.fixture(scope="session")
def dataset(made_once, convoy) -> SmallDataset:
    """Seven categories of 32x32 images. The test split's 259 images fill one evaluation batch and three of the next."""
    folder, _ = made_once("dataset", lambda folder: _make_dataset(folder, convoy))
    return SmallDataset(folder / "photos", folder / "data", CATEGORIES)


def _make_dataset(folder: Path, convoy) -> str:
    dataset = SmallDataset(folder / "photos", folder / "data", CATEGORIES)
    sizes = ("--categories=7", "--per_category=13", "--test_per_category=37", "--size=32")
    convoy("sample", f"--output={dataset.photos}", *sizes, check=True)
    for split in ("train", "test"):
        manifest = dataset.photos / f"{split}.csv"
        rows = dataset.rows(split)
        code_of = dict(zip(sorted({product for _, product in rows}), CATEGORIES, strict=True))
        manifest.write_text("filename,category\n" + "".join(f"{name},{code_of[product]}\n" for name, product in rows))
        images = (f"--images={dataset.photos / split}", f"--manifest={manifest}")
        convoy("convert", *images, f"--output={dataset.data}", f"--split={split}", "--workers=1", check=True)
    return ""


@pytest.fixture(scope="session")
def dataset_without_validation(made_once, dataset, convoy) -> Path:
    """All training images of `dataset` in a training split; the classes are the product names."""
    images = f"--images={dataset.photos / 'train'}"

    def make(folder: Path) -> str:
        flags = (f"--output={folder / 'data'}", "--validation_fraction=0", "--workers=1")
        return convoy("convert", images, *flags, check=True).stdout

    return made_once("without_validation", make)[0] / "data"


@pytest.fixture(scope="session")
def finished_run(made_once, dataset, convoy) -> FinishedRun:
    """The smoke recipe with a small model on two devices, four virtual replicas, deterministic, in float32."""
    flags = (
        "--config=smoke",
        f"--config.model.name={_SMALL_MODEL}",
        "--deterministic",
        "--config.virtual_replicas=4",
        "--config.precision=float32",
        "--config.steps=40",
        "--config.eval_every_steps=8",
        "--config.checkpoint_every_steps=6",
        "--config.log_every_steps=2",
    )
    return _run_once(made_once, convoy, "finished", dataset, flags, "--devices=cpu:2")


@pytest.fixture(scope="session")
def reference_run(made_once, dataset, convoy) -> FinishedRun:
    """The expected result of runs with faults on two hosts: one process, 400 steps, a checkpoint every 10."""
    flags = (
        "--config=smoke",
        f"--config.model.name={_SMALL_MODEL}",
        "--deterministic",
        "--config.virtual_replicas=2",
        "--config.precision=float32",
        "--config.steps=400",
        "--config.eval_every_steps=1000",
        "--config.checkpoint_every_steps=10",
        "--config.log_every_steps=10",
    )
    return _run_once(made_once, convoy, "reference", dataset, flags, "--devices=cpu:1")


def _run_once(made_once, convoy, name: str, dataset: SmallDataset, flags: tuple[str, ...], devices: str) -> FinishedRun:
    def make(folder: Path) -> str:
        where = (devices, f"--data={dataset.data}", f"--workdir={folder / 'run'}")
        result = convoy("train", *flags, *where, check=True)
        return result.stdout + result.stderr

    folder, output = made_once(name, make)
    return FinishedRun(folder / "run", flags, output)


@pytest.fixture
def recovery(record_property) -> Callable[[str, Path, float], None]:
    """Records the time from a fault to the next trained step; pytest's summary prints all of them."""

    def note(fault: str, run: Path, time_of_fault: float) -> None:
        """Args: fault: its description. run: run directory. time_of_fault: seconds since the epoch."""
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        times = [event["time"] for event in events if event["event"] == "first_step" and event["time"] > time_of_fault]
        assert times, f"no step was trained after {fault}"
        record_property("recovery", f"{min(times) - time_of_fault:6.1f} s  {fault}")

    return note


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs slow files first, so that no test process ends up with a slow file alone at the end."""
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    rank = {name: number for number, name in enumerate(reversed(_LONGEST_FILES), 1)}
    items.sort(key=lambda item: (-rank.get(item.path.name, 0), item.path not in slow_files))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the times recorded by the fixture `recovery`."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    recorded = [
        text
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, text in report.user_properties
        if name == "recovery"
    ]
    if recorded:
        terminalreporter.section("time from fault to next step")
        terminalreporter.write("".join(f"{line}\n" for line in recorded))


@pytest.fixture
def copied_run(finished_run, tmp_path) -> Path:
    """A copy of the finished run that a test may damage."""
    return Path(shutil.copytree(finished_run.workdir, tmp_path / "run"))
