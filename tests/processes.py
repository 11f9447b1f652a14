"""Processes that tests start, none of which outlives its test.

with started([sys.executable, "-m", "convoy", "train", ...], output=tmp_path / "output") as process:
    ...
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def command_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the environment for commands of this checkout, without GPUs; `extra` overrides variables."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "-1", **(extra or {})}


@contextlib.contextmanager
def started(
    command: Sequence[str | Path],
    *,
    output: Path,
    stdout: int | None = None,
    cwd: Path = REPOSITORY,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a command in its own session, and kills all processes of that session on leaving.

    Args:
      command: program and arguments.
      output: file for standard output and error.
      stdout: file descriptor for standard output instead.
      cwd: working directory.
      environment: variables in addition to `command_environment`.
    """
    with open(output, "wb") as file:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=file if stdout is None else stdout,
            stderr=file,
            env=command_environment(environment),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.stdin:
            process.stdin.close()
        process.wait()


def is_running(pid: int) -> bool:
    """Returns whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def command_line(pid: int) -> list[str]:
    """Returns the command line of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []
