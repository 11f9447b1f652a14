"""The launcher's standard output, which may be slow or closed without holding anything up.

    screen = Screen.of_standard_output()
    log = Follower(path, prefix="[0] ")
    screen.follow(log)     # now and then: takes over new lines, as far as the reader keeps up
    screen.say("done")
    screen.drain()         # in the end: waits until all is written

Workers write into their log files, never to the launcher, so nobody waits for whoever reads the launcher's output: a
line that the reader is not ready for stays in its file. Once the output is closed (`| head`), what follows is dropped.
"""

import contextlib
import os
import select
import sys
from pathlib import Path

_LONGEST_LINE = 2**16  # bytes; of a longer one the pieces are shown as lines
_MOST_BEHIND = 2**16  # bytes that wait to be written while a log is still followed
_LONGEST_REST = 2**18  # bytes of a log that are taken over at its end


class Follower:
    """Reads a growing file line by line."""

    def __init__(self, path: Path, prefix: str, *, at_end: bool = False):
        """Reads nothing yet.

        Args:
          path: need not be there yet.
          prefix: put before each line.
          at_end: whether to leave out what the file holds now.
        """
        self._path = path
        self._prefix = prefix.encode()
        self._position = path.stat().st_size if at_end and path.exists() else 0

    def lines(self, most: int) -> bytes:
        """Returns whole lines that are new, about `most` bytes of them, each with the prefix."""
        content = self._read(most)
        end = content.rfind(b"\n") + 1
        if not end and len(content) >= _LONGEST_LINE:
            end = len(content)
        self._position += end
        return self._with_prefix(content[:end])

    def rest(self) -> bytes:
        """Returns all that is new, also a last line without an end; of very much the last part."""
        with contextlib.suppress(OSError):
            left_out = self._path.stat().st_size - self._position - _LONGEST_REST
            if left_out > 0:
                self._position += left_out
                note = self._with_prefix(f"... {left_out} bytes are left out here; {self._path} has them.".encode())
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
        """Args: descriptor: of an open file; None drops everything."""
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
        """Shows lines."""
        self.write(text.encode(errors="replace") + b"\n")

    def write(self, content: bytes) -> None:
        """Shows bytes, now or when the reader is ready."""
        if self._descriptor is not None:
            self._waiting += content
        self.pump()

    def follow(self, log: Follower) -> None:
        """Shows new lines of a log, unless the reader is behind."""
        self.pump()
        if len(self._waiting) < _MOST_BEHIND:
            self.write(log.lines(_MOST_BEHIND))

    def pump(self) -> None:
        """Writes as much as is possible without waiting."""
        while self._waiting and self._write(wait_ms=0):
            pass

    def drain(self) -> None:
        """Writes all there is, however long the reader takes."""
        while self._waiting:
            self._write(wait_ms=None)

    def _write(self, wait_ms: int | None) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        if not poll.poll(wait_ms):
            return False
        try:
            # A pipe that is ready takes PIPE_BUF bytes without blocking, and not always more.
            written = os.write(self._descriptor, self._waiting[: select.PIPE_BUF])
        except BlockingIOError:
            return False
        except OSError:  # the reader has gone
            self._descriptor = None
            self._waiting.clear()
            return False
        del self._waiting[:written]
        return True
