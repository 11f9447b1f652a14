"""Runs the fenced blocks of a page, from top to bottom, in one folder.

| block | what is done |
|---|---|
| ```sh | run with `bash -euo pipefail`; folder and exported variables are those the block before left |
| ```python | run; the names of the page's earlier blocks are there, as in a notebook |
| ```LANGUAGE title="FILE" | written to FILE |
| of `SHOWN` languages | not run: output and files that are shown |

`<!-- not tested: REASON -->` leaves out the next block. `<!-- in CI: train --config.steps=20 -->` adds flags to every
`convoy train` from there on, until another such comment, also if a launcher starts it: readers want longer runs.
`convoy` does not import TensorFlow again (see `tests.docs.convoy_command`), `python` is the interpreter of the tests.
"""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.forks import ForkedProcess, Forks
from tests.processes import REPOSITORY, kill_session, process_environment

RUN = ("sh", "python")
SHOWN = ("text", "json", "yaml", "csv", "toml", "html", "diff")
_FENCE = re.compile(r"^(?P<indent>[ ]*)(?P<fence>`{3,}|~{3,})[ ]*(?P<language>[\w+.#-]*)(?P<rest>[^`]*)$")
_TITLE = re.compile(r"""title=(["'])(.+?)\1""")
_NOT_TESTED = re.compile(r"^\s*<!--\s*not tested:(.*)-->\s*$")
_IN_CI = re.compile(r"^\s*<!--\s*in CI:\s*([a-z]+)((?:\s+--\S+)*)\s*-->\s*$")
_SHELL = """\
set -E
trap 'echo $((LINENO - PAGE_LINE)) >"$PAGE_FAILURE"' ERR; PAGE_LINE=$LINENO
"""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
      page: its file.
      line: line of its fence.
      language: of its text.
      title: file that it is written to, or "".
      text: without the fence's indentation.
      skipped: why it is not tested, "" if it is.
      flags: added by command.
    """

    page: Path
    line: int
    language: str
    title: str
    text: str
    skipped: str
    flags: dict[str, list[str]]

    @property
    def is_run(self) -> bool:
        """Whether it is a program, and no file."""
        return self.language in RUN and not self.title and not self.skipped


@dataclass(frozen=True)
class Page:
    """The blocks of a page; `mistakes` are comments that have no effect."""

    blocks: list[Block] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)


def read_page(path: Path) -> Page:
    """Returns the blocks of a Markdown file."""
    page = Page()
    flags: dict[str, list[str]] = {}
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    reason: tuple[int, str] | None = None
    for number, line in lines:
        if match := _NOT_TESTED.match(line):
            reason = number, match[1].strip()
            if not reason[1]:
                page.mistakes.append(f"{path}:{number}: no reason")
        elif match := _IN_CI.match(line):
            flags = {**flags, match[1]: match[2].split()}
        elif match := _FENCE.match(line):
            closing = re.compile(rf"^\s*{match['fence'][0]}{{{len(match['fence'])},}}\s*$")
            content = []
            for _, inner in lines:
                if closing.match(inner):
                    break
                content.append(inner)
            text = textwrap.dedent("\n".join(content)) + "\n"
            title = _TITLE.search(match["rest"])
            skipped = reason[1] if reason else ""
            file = title[2] if title else ""
            page.blocks.append(Block(path, number, match["language"], file, text, skipped, flags))
            reason = None
        elif re.search(r"<!--\s*(not tested|in CI)", line):
            page.mistakes.append(f"{path}:{number}: not understood: {line}")
        elif reason and line.startswith("#"):
            page.mistakes.append(f"{path}:{reason[0]}: no block follows")
            reason = None
    if reason:
        page.mistakes.append(f"{path}:{reason[0]}: no block follows")
    return page


class BlockError(AssertionError):
    """A block that failed: where, the command, and its output."""


class Runner:
    """Runs blocks of a page in a folder. A context manager that kills what they have started in the background."""

    def __init__(self, folder: Path, forks: Forks):
        """Args: folder: new folder. forks: for `convoy`."""
        self.folder = folder / "page"
        self._state = folder / "state"
        self._forks = forks
        self._shells: list[subprocess.Popen] = []
        self._cells: ForkedProcess | None = None

    def __enter__(self) -> "Runner":
        """Makes the folders, and the commands that come before those of the system."""
        self.folder.mkdir(parents=True)
        commands = self._state / "commands"
        commands.mkdir(parents=True)
        python = shlex.quote(sys.executable)
        convoy = f"exec {python} {shlex.quote(str(Path(__file__).with_name('convoy_command.py')))}"
        for name, text in (
            ("convoy", f'{convoy} "$@"'),
            ("python", f'[ "${{1-}} ${{2-}}" = "-m convoy" ] && shift 2 && {convoy} "$@"\nexec {python} "$@"'),
        ):
            (commands / name).write_text(f"#!/bin/sh\n{text}\n")
            (commands / name).chmod(0o755)
        (commands / "python3").symlink_to("python")
        self._environment = process_environment(
            PATH=os.pathsep.join((str(commands), str(Path(sys.executable).parent), os.environ["PATH"])),
            PAGE_FAILURE=str(self._state / "failure"),
            PAGE_FLAGS="{}",
            PAGE_FORKS=str(self._forks.inheritable_socket()),
            PAGE_PROCESSES=str(self._state / "processes"),
            PAGE_VARIABLES=str(self._state / "variables"),
        )
        return self

    def __exit__(self, *_: object) -> None:
        """Kills all processes."""
        processes = self._state / "processes"
        for pid in processes.read_text().split() if processes.exists() else ():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(pid), 9)
        for process in (*self._shells, *filter(None, [self._cells])):
            kill_session(process)

    def run(self, block: Block) -> None:
        """Does what the block's language and title ask for.

        Raises:
          BlockError: it failed.
        """
        if block.skipped:
            return
        if block.title:
            file = self.folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        elif block.language == "sh":
            self._run_shell(block)
        elif block.language == "python":
            self._run_cell(block)

    def _run_shell(self, block: Block) -> None:
        variables, failure = self._state / "variables", self._state / "failure"
        script, output = self._state / "script", self._state / "output"
        before = f". {shlex.quote(str(variables))}\n" if variables.exists() else ""
        before += f"export PAGE_FLAGS={shlex.quote(json.dumps(block.flags))}\n"
        after = '\n{ export -p; printf "cd %q\\n" "$PWD"; } >"$PAGE_VARIABLES"\n'
        script.write_text(f"{before}{_SHELL}{block.text}{after}", encoding="utf-8")
        failure.unlink(missing_ok=True)
        with open(output, "wb") as file:
            shell = subprocess.Popen(
                ["bash", "-euo", "pipefail", str(script)],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=self._environment,
                pass_fds=[self._forks.inheritable_socket()],
                start_new_session=True,
            )
        self._shells.append(shell)
        if code := shell.wait():
            first, command = 0, block.text
            if failure.exists():
                first, command = _command_at(block.text.splitlines(), int(failure.read_text()) - 1)
            printed = output.read_text(errors="replace")
            raise BlockError(f"{block.page}:{block.line + first}: exit code {code}: {command}\n{printed}")

    def _run_cell(self, block: Block) -> None:
        output = self._state / "cells"
        if self._cells is None:
            command = [sys.executable, "-m", "tests.docs.cells", str(self.folder)]
            with open(output, "wb") as file:
                self._cells = self._forks.popen(command, stderr=file, env=self._environment)
        assert self._cells.stdin and self._cells.stdout
        begin = output.stat().st_size
        cell = {"file": str(block.page), "line": block.line, "code": block.text}
        print(json.dumps(cell), file=self._cells.stdin, flush=True)
        reply = self._cells.stdout.readline()
        if failure := json.loads(reply) if reply else f"exit code {self._cells.wait()}":
            printed = output.read_bytes()[begin:].decode(errors="replace")
            raise BlockError(f"{block.page}:{block.line}: {failure}\n{block.text}\n{printed}")


def _command_at(lines: list[str], last: int) -> tuple[int, str]:
    """Returns a line with those that a backslash joins to it, and the number of the first, from 1."""
    first = last
    while first and lines[first - 1].endswith("\\"):
        first -= 1
    while last + 1 < len(lines) and lines[last].endswith("\\"):
        last += 1
    return first + 1, "\n".join(lines[first : last + 1])


def pages_with_tested_blocks() -> Iterator[Path]:
    """Yields README and tutorials."""
    yield REPOSITORY / "README.md"
    yield from sorted((REPOSITORY / "docs" / "tutorials").glob("*.md"))
