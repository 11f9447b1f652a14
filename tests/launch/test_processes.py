"""Starts of worker processes that fail."""

import os

import pytest

from convoy.core.errors import ConvoyError
from convoy.launch.processes import WorkerProcesses, WorkerProgram


def not_executable(folder):
    (folder / "program").write_text("no program")
    return folder / "program"


@pytest.mark.parametrize(
    ("program", "environment", "exit_code", "named"),
    [
        (lambda folder: folder / "missing", {}, 2, "missing"),
        (not_executable, {}, 2, "program"),
        (
            lambda folder: "/bin/true",
            {"LARGE": "x" * 2**22},
            1,
            "/bin/true",
        ),  # E2BIG: the system starts no such process
    ],
)
def test_worker_that_cannot_be_started_is_named_with_the_reason(tmp_path, program, environment, exit_code, named):
    command = [str(program(tmp_path)), "--flag"]
    with pytest.raises(ConvoyError, match=named) as caught:
        WorkerProcesses([WorkerProgram(command, {**os.environ, **environment}, tmp_path / "log")])
    assert caught.value.exit_code == exit_code and "\n" not in str(caught.value) and "--flag" in str(caught.value)
