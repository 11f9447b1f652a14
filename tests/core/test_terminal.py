import io
import os
import pty

import pytest

from convoy.cli.progress import progress_display
from convoy.core.terminal import can_redraw

# What Jupyter's kernel passes to `!convoy ...`, which it runs in a pseudo-terminal.
KERNEL = {"TERM": "xterm-color", "CLICOLOR": "1", "CLICOLOR_FORCE": "1", "FORCE_COLOR": "1", "GIT_PAGER": "cat"}


@pytest.fixture
def terminal(monkeypatch):
    for name in (*KERNEL, "JPY_PARENT_PID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    primary, secondary = pty.openpty()
    with open(secondary, "w") as file:
        yield file
    os.close(primary)


def test_terminal_can_redraw_but_a_file_cannot(terminal, monkeypatch):
    assert can_redraw(terminal)
    monkeypatch.setenv("PAGER", "cat")  # as some people set it
    monkeypatch.setenv("GIT_PAGER", "cat")
    assert can_redraw(terminal)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not can_redraw(io.StringIO())
    assert not can_redraw(None)


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"JPY_PARENT_PID": "7"}, KERNEL])
def test_commands_in_notebooks_and_dumb_terminals_print_plain_lines(terminal, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert not can_redraw(terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    with progress_display("converting", "images") as progress:
        assert type(progress).__name__ == "_PlainProgress"
