"""Standard input, output and error of a command: some may be closed, and readers and terminals may go away.

Work must not end because its output is no longer read: from then on the output is dropped, and the exit code reports
the work. Names of files and classes may hold control characters, with which a terminal does as somebody else likes:
they are printed as text. The streams of library users are left alone; only the command line replaces its own.
"""

import errno
import io
import os
import select
import stat
import sys
from typing import Any

_NO_READER = (errno.EPIPE, errno.ECONNRESET)
_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n\r"}


def escaped(text: str) -> str:
    """Returns text with control characters other than tabs and line ends as `\\x1b`."""
    return text.translate(_ESCAPED)


class Terminal:
    """Standard output or error for a program that draws: its control sequences pass. A file for `rich.Console`."""

    def __init__(self, name: str = "stdout"):
        """Writes to what `sys` has under this name at the time."""
        self._name = name

    @property
    def rich_proxied_file(self) -> "Terminal":
        """What rich writes to while `sys.stdout` is a proxy of its own, for prints of others next to what it draws."""
        return self

    def write(self, text: str) -> int:
        """Writes text as it is."""
        stream = self._stream()
        return io.TextIOWrapper.write(stream, text) if isinstance(stream, _Text) else stream.write(text)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (as of the stream)
        """Returns everything else of the stream."""
        return getattr(self._stream(), name)

    def _stream(self) -> Any:  # noqa: ANN401 (any file)
        stream = getattr(sys, self._name)
        return getattr(stream, "rich_proxied_file", stream)


class _Text(io.TextIOWrapper):
    """Text output with control characters escaped."""

    def write(self, text: str) -> int:
        return super().write(escaped(text))


class _Output(io.FileIO):
    """A descriptor to write to, whose `write` never fails.

    Attributes:
      error: why output was lost although someone may read it, such as a full disk; None if none was.
    """

    def __init__(self, descriptor: int):
        super().__init__(descriptor, "w", closefd=False)
        self.error: OSError | None = None

    def write(self, content: Any) -> int:  # noqa: ANN401 (any buffer)
        try:
            while (written := super().write(content)) is None:  # another program has made it non-blocking
                waiting = select.poll()
                waiting.register(self.fileno(), select.POLLOUT)
                waiting.poll()
            return written
        except OSError as error:
            is_file = stat.S_ISREG(os.fstat(self.fileno()).st_mode)
            if error.errno in _NO_READER or (error.errno == errno.EIO and not is_file):  # EIO: a terminal that is gone
                _open_null(self.fileno())  # child processes and TensorFlow write to the descriptor too
            else:
                self.error = error
            return memoryview(content).nbytes


def protect_standard_streams() -> None:
    """Opens closed standard streams, so that no other file gets their descriptors, and makes output lasting.

    Output can hold names that are not valid in the terminal's encoding: they are escaped.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            _open_null(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 (until the process ends)
    sys.stdout, sys.stderr = (_lasting(stream, number) for number, stream in ((1, sys.stdout), (2, sys.stderr)))


def lost_output() -> OSError | None:
    """Returns why standard output is incomplete although someone may read it; None if it is complete."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.error if isinstance(raw, _Output) else None


def _lasting(stream: object, descriptor: int) -> io.TextIOWrapper:
    before = stream if isinstance(stream, io.TextIOWrapper) else None
    return _Text(
        io.BufferedWriter(_Output(descriptor)),
        encoding=before.encoding if before else "utf-8",
        errors="backslashreplace",
        line_buffering=before.line_buffering if before else True,
        write_through=before.write_through if before else False,
    )


def _open_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, descriptor)
    if null != descriptor:
        os.close(null)
    else:
        os.set_inheritable(descriptor, True)
