"""What tests of whole commands share: a small data set, a finished run, and real processes of which none is left.

A command runs in a process (`convoy`, `convoy_started`), several in one (`convoy_together`), or one in several that
train together (`cluster`, `workers_started`).
"""

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from convoy.launch.ports import reserved_ports
from tests.network import Network, missing_for_networks

REPOSITORY = Path(__file__).parents[1]
CATEGORIES = ("-1", "007", "03", "1e3", "3", "NaN", "true")  # sorted; none of them is a number

# Runs each command that stands as JSON on a line of standard input, and answers with a line each: starting TensorFlow
# once for many short commands is what keeps the tests short.
_TOGETHER = """
import contextlib, io, json, sys, traceback
from convoy.cli import main
for line in sys.stdin:
    sys.argv = ["convoy", *json.loads(line)]
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            code = main(sys.argv)
        except BaseException:
            traceback.print_exc()
            code = 1
    print(json.dumps([code, output.getvalue()]), flush=True)
"""

# A shell that starts the tests in the background makes them ignore Ctrl-C, `nohup` a terminal that hangs up, and so
# would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@dataclass(frozen=True)
class Answer:
    """What one of several commands in a process answered; `output` holds standard output and error."""

    returncode: int
    output: str


@dataclass(frozen=True)
class SmallDataset:
    """Drawn images and what `convoy convert` made of them.

    Attributes:
      photos: `{train,test}/PRODUCT/*.jpg`, and `{train,test}.csv` with categories that are easily mistaken for numbers.
      data: the dataset directory: train, validation and test.
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
    """A run that nothing disturbed: its directory, its flags without --data and --workdir, and what it printed."""

    workdir: Path
    flags: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Workers:
    """Processes that train one run together, by rank; `addresses` are those of their TF_CONFIG."""

    processes: tuple[subprocess.Popen, ...]
    addresses: tuple[str, ...]
    outputs: tuple[Path, ...]

    def output(self, rank: int) -> str:
        """Returns what a worker has printed so far, standard output and error."""
        return self.outputs[rank].read_text()

    def wait(self, seconds: float = 240) -> list[int]:
        """Waits for all to end; returns their exit codes."""
        deadline = time.monotonic() + seconds
        try:
            return [process.wait(max(0.01, deadline - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired:
            told = "\n".join(f"worker {rank}:\n{self.output(rank)}" for rank in range(len(self.processes)))
            raise AssertionError(f"the workers did not end within {seconds} s:\n{told}") from None

    def error(self, rank: int) -> str:
        """Returns what Convoy said in the end; a traceback would be a failure of its own."""
        output = self.output(rank)
        assert "Traceback" not in output, output
        return next(line for line in reversed(output.splitlines()) if line.startswith("convoy: "))


@contextlib.contextmanager
def _started(
    command: list[str], *, output: Path, cwd: Path = REPOSITORY, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen]:
    """Starts a command in a session of its own, and ends that session's processes, whatever happens."""
    with open(output, "wb") as file:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env={**_environment(), **(environment or {})},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdin.close()
        process.wait()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "-1"}


def _run(command: list[str], *, cwd: Path = REPOSITORY, text: str = "", timeout: float = 300):
    process = subprocess.Popen(
        command,
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(text, timeout=timeout)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


@pytest.fixture(scope="session")
def python() -> Callable[..., subprocess.CompletedProcess]:
    """Runs `python *arguments`, by default in the repository's root."""
    return lambda *arguments, **options: _run([sys.executable, *map(str, arguments)], **options)


@pytest.fixture(scope="session")
def convoy(python) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `convoy *arguments` in a process of its own; `check=True` demands exit code 0."""

    def run(*arguments: object, check: bool = False, **options) -> subprocess.CompletedProcess:
        result = python("-m", "convoy", *arguments, **options)
        assert not check or result.returncode == 0, result.stdout + result.stderr
        return result

    return run


@pytest.fixture(scope="session")
def convoy_together(python) -> Callable[..., list[Answer]]:
    """Runs several commands, each a list of arguments, one after another in one process; they must share --devices."""

    def run(*commands: list[object], **options) -> list[Answer]:
        lines = "".join(json.dumps([str(argument) for argument in command]) + "\n" for command in commands)
        result = python("-c", _TOGETHER, text=lines, **options)
        answers = [Answer(*json.loads(line)) for line in result.stdout.splitlines()]
        assert len(answers) == len(commands), result.stdout + result.stderr
        return answers

    return run


@pytest.fixture(scope="session")
def convoy_started() -> Callable[..., contextlib.AbstractContextManager[subprocess.Popen]]:
    """Starts `convoy *arguments` as a context manager; on leaving it the process is gone. `output` is a file."""

    def start(
        *arguments: object, output: Path, prefix: tuple[str, ...] = ()
    ) -> contextlib.AbstractContextManager[subprocess.Popen]:
        return _started([*prefix, sys.executable, "-m", "convoy", *map(str, arguments)], output=output)

    return start


@pytest.fixture(scope="session")
def workers_started() -> Callable[..., contextlib.AbstractContextManager[Workers]]:
    """Starts `convoy *arguments` as several workers of one cluster; on leaving the context none is left.

    `output` is a folder. `only` adds arguments of one worker, by rank, and `environments` variables.
    """

    @contextlib.contextmanager
    def start(
        *arguments: object,
        output: Path,
        processes: int = 2,
        only: Mapping[int, tuple[object, ...]] | None = None,
        environments: Mapping[int, Mapping[str, str]] | None = None,
    ) -> Iterator[Workers]:
        output.mkdir(parents=True, exist_ok=True)
        outputs = tuple(output / f"worker-{rank}.log" for rank in range(processes))
        with contextlib.ExitStack() as stack:
            with reserved_ports(processes) as ports:
                addresses = tuple(f"127.0.0.1:{port}" for port in ports)
            started = []
            for rank in range(processes):
                task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
                command = [*arguments, *(only or {}).get(rank, ())]
                environment = {"TF_CONFIG": json.dumps(task), **(environments or {}).get(rank, {})}
                command = [sys.executable, "-m", "convoy", *map(str, command)]
                started.append(stack.enter_context(_started(command, output=outputs[rank], environment=environment)))
            yield Workers(tuple(started), addresses, outputs)

    return start


@pytest.fixture(scope="session")
def cluster(workers_started) -> Callable[..., Workers]:
    """Runs `convoy *arguments` as a cluster's workers till all have ended; `check=True` demands exit code 0 of each."""

    def run(*arguments: object, check: bool = False, seconds: float = 240, **options) -> Workers:
        with workers_started(*arguments, **options) as workers:
            codes = workers.wait(seconds)
        ranks = range(len(codes))
        assert not check or not any(codes), "\n".join(f"{codes[rank]}: {workers.output(rank)}" for rank in ranks)
        return workers

    return run


@pytest.fixture
def network(tmp_path) -> Callable[..., Network]:
    """Makes a network of hosts with these names, of which nothing is left after the test."""
    if reason := missing_for_networks():
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        yield lambda *hosts, **options: stack.enter_context(Network(tmp_path / "network", hosts, **options))


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Polls a condition until it holds."""

    def wait(condition: Callable[[], bool], what: str, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
            time.sleep(0.005)

    return wait


@pytest.fixture(scope="session")
def dataset(tmp_path_factory, convoy) -> SmallDataset:
    """Seven categories of 32x32 images. The test split's 259 images fill one evaluation batch and three of the next."""
    folder = tmp_path_factory.mktemp("dataset")
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
    return dataset


@pytest.fixture(scope="session")
def dataset_without_validation(tmp_path_factory, dataset, convoy) -> Path:
    """Every training image of `dataset` in its training split; its classes are the products' names."""
    data = tmp_path_factory.mktemp("without_validation") / "data"
    convoy(
        "convert",
        f"--images={dataset.photos / 'train'}",
        f"--output={data}",
        "--validation_fraction=0",
        "--workers=1",
        check=True,
    )
    return data


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, dataset, convoy) -> FinishedRun:
    """The smoke recipe on two devices, four virtual replicas, deterministic, in float32. Tests must not change it."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    flags = (
        "--config=smoke",
        "--deterministic",
        "--config.virtual_replicas=4",
        "--config.precision=float32",
        "--config.steps=40",
        "--config.eval_every_steps=8",
        "--config.checkpoint_every_steps=6",
        "--config.log_every_steps=2",
    )
    result = convoy("train", *flags, "--devices=cpu:2", f"--data={dataset.data}", f"--workdir={workdir}", check=True)
    return FinishedRun(workdir, flags, result.stdout + result.stderr)


@pytest.fixture(scope="session")
def reference_run(tmp_path_factory, dataset, convoy) -> FinishedRun:
    """What runs on two hosts must come to whatever befalls them: one process, 200 steps, a checkpoint every 10."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    flags = (
        "--config=smoke",
        "--deterministic",
        "--config.virtual_replicas=2",
        "--config.precision=float32",
        "--config.steps=200",
        "--config.eval_every_steps=1000",
        "--config.checkpoint_every_steps=10",
        "--config.log_every_steps=10",
    )
    result = convoy("train", *flags, "--devices=cpu:1", f"--data={dataset.data}", f"--workdir={workdir}", check=True)
    return FinishedRun(workdir, flags, result.stdout + result.stderr)


@pytest.fixture
def recovery(record_property) -> Callable[[str, Path, float], None]:
    """Notes how long a run took from a fault to the first new step; all of it is shown when the tests have ended."""

    def note(fault: str, run: Path, time_of_fault: float) -> None:
        """Args: fault: for people. run: its directory. time_of_fault: in seconds since 1970."""
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        times = [event["time"] for event in events if event["event"] == "first_step" and event["time"] > time_of_fault]
        assert times, f"no step was trained after {fault}"
        record_property("recovery", f"{min(times) - time_of_fault:6.1f} s  {fault}")

    return note


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take long first, so that in the end no process waits for the one that has such a file."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.name != "test_chaos.py", item.path not in long))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows what the fixture `recovery` has noted."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    noted = [
        text
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, text in report.user_properties
        if name == "recovery"
    ]
    if noted:
        terminalreporter.section("from a fault to the first new step")
        terminalreporter.write("".join(f"{line}\n" for line in noted))


@pytest.fixture
def copied_run(finished_run, tmp_path) -> Path:
    """A copy of the finished run that a test may damage."""
    return Path(shutil.copytree(finished_run.workdir, tmp_path / "run"))
