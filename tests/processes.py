"""Runs real processes for tests: each in its own session, which is killed at the end whatever happens.

with started(["python", "-m", "convoy", "train"], output=tmp_path / "log") as process:
    ...
result = run(["python", "-m", "convoy", "--version"])
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def process_environment(**variables: str) -> dict[str, str]:
    """Returns the environment of a process under test: this checkout is importable and GPUs are hidden."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "-1", **variables}


@contextlib.contextmanager
def started(
    command: Sequence[str | Path],
    *,
    output: Path,
    stdout: int | None = None,
    cwd: Path = REPOSITORY,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a command in its own session and kills the session on exit. Standard input is an open pipe.

    Args:
      command: program and arguments.
      output: file for standard output and error.
      stdout: file descriptor for standard output, instead of the file.
      cwd: working directory.
      environment: variables in addition to `process_environment`.
    """
    with open(output, "wb") as file:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=file if stdout is None else stdout,
            stderr=file,
            env=process_environment(**(environment or {})),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        kill_session(process)


def run(
    command: list[str],
    *,
    cwd: Path = REPOSITORY,
    text: str = "",
    timeout: float = 300,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess:
    """Runs a command to its end and returns its output; `text` is its standard input."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=process_environment(**(environment or {})),
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(text, timeout=timeout)
    finally:
        kill_session(process)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def kill_session(process: subprocess.Popen) -> None:
    """Kills a process that leads its own session, with all its children that stayed in it, and reaps it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdin:
        with contextlib.suppress(OSError):
            process.stdin.close()
    process.wait()


def wait_until(condition: Callable[[], object], what: str, seconds: float = 240) -> None:
    """Polls a condition until it is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.005)


def is_gone(pid: int) -> bool:
    """Returns whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def children(pid: int) -> list[int]:
    """Returns the direct children of a process's main thread; none if it has ended."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def environment_of(pid: int) -> dict[str, str]:
    """Returns the environment a process was started with; empty if it has ended."""
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def is_running(pid: int) -> bool:
    """Returns whether a process exists and has not ended."""
    return not is_gone(pid)


def command_line(pid: int) -> list[str]:
    """Returns the command line of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def write_foreign_packages(folder: Path) -> str:
    """Writes packages with the names of Convoy's folders, which must never be imported.

    Returns:
      PYTHONPATH with that folder before this checkout.
    """
    for name in ("benchmarks", "configs", "input_pipeline", "launch", "tests", "trainer"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise SystemExit('imported the foreign package {name}')\n")
    return f"{folder}{os.pathsep}{REPOSITORY}"
