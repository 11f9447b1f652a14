"""Standard streams of real processes: closed, without a reader or a terminal, full, and non-blocking."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import REPOSITORY, process_environment

COMMAND = [sys.executable, "-m", "convoy", "--help"]
LONG = (
    "from convoy.core import streams; streams.protect_standard_streams(); print('x' * 300_000); streams.lost_output()"
)


def run(command, **options):
    """Runs a command to its end; returns its exit code and what it wrote to the pipes in `options`."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    done = subprocess.run(command, cwd=REPOSITORY, env=process_environment(), timeout=60, check=False, **options)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("stream", "argument", "expected"), [("stdout", "--help", 0), ("stderr", "unknown", 2)])
def test_closed_pipe_does_not_change_the_exit_code(stream, argument, expected):
    reader, writer = os.pipe()
    os.close(reader)
    code, output, errors = run([*COMMAND[:-1], argument], **{stream: writer})
    os.close(writer)
    assert code == expected
    assert not output and not errors


def test_terminal_that_is_gone_does_not_change_the_exit_code():
    primary, secondary = pty.openpty()
    os.close(primary)
    assert run(COMMAND, stdout=secondary) == (0, None, b"")
    os.close(secondary)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_is_drawn_reaches_the_terminal_and_names_are_escaped(stream):
    """While rich draws, `sys.stdout` and `sys.stderr` are its own: they take prints of others."""
    program = (
        "import sys; from convoy.core.streams import Terminal, escaped, protect_standard_streams; "
        "protect_standard_streams(); from rich.console import Console; from rich.progress import Progress\n"
        f"console = Console(file=Terminal({stream!r}))\n"
        "with Progress(console=console) as progress:\n"
        "    progress.add_task('drawn', total=2, completed=1)\n"
        "    print('printed')\n"
        "    console.print(escaped('a\\x1bname'))\n"
        f"print('later\\x1b', file=sys.{stream})\n"
    )
    primary, secondary = pty.openpty()
    command = ["env", "TERM=xterm", sys.executable, "-c", program]
    code, _, _ = run(command, **{"stdout": secondary, "stderr": secondary})
    os.close(secondary)
    output = os.read(primary, 1 << 16).decode()
    os.close(primary)
    assert code == 0, output
    expected = ("\x1b[2K", "drawn", "printed", "a\\x1bname", "later\\x1b")
    assert [text for text in expected if text not in output] == [], output
    assert "\\x1b[" not in output, output


def test_closed_streams_are_not_given_to_other_files(tmp_path):
    program = (
        "import os, sys; from convoy.core import streams; streams.protect_standard_streams(); "
        f"file = open({str(tmp_path / 'file')!r}, 'w'); file.write('own'); file.flush(); "
        "print('output'); print('error', file=sys.stderr); assert sys.stdin.read() == ''; "
        "assert os.system('echo from a child process') == 0; streams.lost_output(); os._exit(5)"
    )
    command = ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, program]
    assert run(command) == (5, b"", b"")
    assert Path(tmp_path / "file").read_text() == "own"


def test_full_disk_is_an_error_of_a_command_that_prints():
    with open("/dev/full", "wb") as full:
        code, _, errors = run(COMMAND, stdout=full)
    assert code == 1
    assert b"No space left" in errors and b"Traceback" not in errors


def test_output_to_a_non_blocking_pipe_is_complete():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = subprocess.Popen([sys.executable, "-c", LONG], stdout=writer, cwd=REPOSITORY, env=process_environment())
    os.close(writer)
    with open(reader, "rb") as output:
        assert output.read() == b"x" * 300_000 + b"\n"
    assert process.wait(60) == 0


@pytest.mark.parametrize("is_terminal", [False, True])
def test_names_are_printed_without_control_sequences(is_terminal):
    program = (
        "import sys; from convoy.core import streams; from convoy.cli.tables import print_table; "
        "streams.protect_standard_streams(); name = 'a\\x1b]0;title\\x07\\x9b31mb'; "
        "print(name); print(name, file=sys.stderr); "
        "print_table(('n',), (), [(name,)]); sys.stdout.flush()"
    )
    expected = rb"a\x1b]0;title\x07\x9b31mb"
    command = [sys.executable, "-c", program]
    if not is_terminal:
        code, output, errors = run(command)
    else:
        primary, secondary = pty.openpty()
        code, _, errors = run(command, stdout=secondary)
        os.close(secondary)
        output = os.read(primary, 10_000)
        os.close(primary)
    assert (code, errors.strip(), output.count(expected)) == (0, expected, 2)
    assert not {b"\x1b]", b"\x07", b"\x9b", b"\xc2\x9b"} & {
        output[k : k + n] for k in range(len(output)) for n in (1, 2)
    }
