"""The launcher's standard output, written without blocking the launcher.

    screen = Screen.of_standard_output()
    log = Follower(path, prefix="[0] ")
    screen.follow(log)     # periodically: copies new lines, as fast as the reader takes them
    screen.say("done")
    screen.drain()         # at the end: waits until everything is written

Workers write to their log files, not to the launcher, so a slow reader of the launcher's output blocks nobody: lines
that the reader is not ready for stay in the log file. Once the output is closed (`| head`), the rest is dropped.
"""

import contextlib
import os
import select
import sys
from pathlib import Path

_LONGEST_LINE = 2**16  # bytes; longer lines are shown in pieces
_MOST_PENDING = 2**16  # bytes waiting to be written at which logs are not followed further
_LONGEST_REST = 2**18  # bytes of a log that are shown at its end


class Follower:
    """Reads a growing file line by line."""

    def __init__(self, path: Path, prefix: str, *, at_end: bool = False):
        """Reads nothing yet.

        Args:
          path: the file, which need not exist yet.
          prefix: prefix of each line.
          at_end: whether to skip the current content of the file.
        """
        self._path = path
        self._prefix = prefix.encode()
        self._position = path.stat().st_size if at_end and path.exists() else 0

    def lines(self, most: int) -> bytes:
        """Returns about `most` bytes of new complete lines, each with the prefix."""
        content = self._read(most)
        end = content.rfind(b"\n") + 1
        if not end and len(content) >= _LONGEST_LINE:
            end = len(content)
        self._position += end
        return self._with_prefix(content[:end])

    def rest(self) -> bytes:
        """Returns everything new, including an incomplete last line; only the last part if it is very long."""
        with contextlib.suppress(OSError):
            skipped = self._path.stat().st_size - self._position - _LONGEST_REST
            if skipped > 0:
                self._position += skipped
                note = self._with_prefix(f"... {skipped} bytes skipped, see {self._path}".encode())
                return note + self.rest()
        content = self._read(_LONGEST_REST + _LONGEST_LINE)
        self._position += len(content)
        return self._with_prefix(content)

    def _read(self, most: int) -> bytes:
        try:
            with open(self._path, "rb") as file:
                file.seek(self._position)
                return file.read(max(most, _LONGEST_LINE))
        except OSError:
            return b""

    def _with_prefix(self, content: bytes) -> bytes:
        lines = content.split(b"\n")
        if not lines[-1]:
            lines.pop()
        return b"".join(self._prefix + line + b"\n" for line in lines)


class Screen:
    """Writes what its reader is ready for, and keeps the rest."""

    def __init__(self, descriptor: int | None):
        """Args: descriptor: an open file descriptor; None drops all output."""
        self._descriptor = descriptor
        self._waiting = bytearray()

    @classmethod
    def of_standard_output(cls) -> "Screen":
        """Returns the screen on this process's standard output."""
        try:
            sys.stdout.flush()
            return cls(sys.stdout.fileno())
        except (AttributeError, OSError, ValueError):  # started with its output closed
            return cls(None)

    def say(self, text: str) -> None:
        """Writes lines of text."""
        self.write(text.encode(errors="replace") + b"\n")

    def write(self, content: bytes) -> None:
        """Writes bytes, now or when the reader is ready."""
        if self._descriptor is not None:
            self._waiting += content
        self.pump()

    def follow(self, log: Follower) -> None:
        """Writes new lines of a log, unless the reader is behind."""
        self.pump()
        if len(self._waiting) < _MOST_PENDING:
            self.write(log.lines(_MOST_PENDING))

    def pump(self) -> None:
        """Writes as much as possible without blocking."""
        while self._write(wait_ms=0):
            pass

    def drain(self) -> None:
        """Writes everything, however long the reader takes."""
        while self._waiting:
            self._write(wait_ms=None)

    def _write(self, wait_ms: int | None) -> bool:
        """Writes the next part if the reader becomes ready in time. Returns whether it did."""
        if self._descriptor is None or not self._waiting:
            return False
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        if not poll.poll(wait_ms):
            return False
        try:
            # A ready pipe takes PIPE_BUF bytes without blocking, but not always more.
            written = os.write(self._descriptor, self._waiting[: select.PIPE_BUF])
        except BlockingIOError:
            return False
        except OSError:  # the reader is gone
            self._descriptor = None
            self._waiting.clear()
            return False
        del self._waiting[:written]
        return True
