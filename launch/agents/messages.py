"""JSON lines between the launcher and an agent, without blocking on either side.

    messages = Messages(read_from, write_to)
    messages.send({"kill": True})
    for message in messages.receive():
        ...
    messages.beat()      # call often; sends a heartbeat when one is due
    if messages.are_over or messages.silence > limit:
        ...              # the other side is gone

Lines that are not JSON objects are ignored: a login shell may print a greeting.
"""

import json
import os
import select
import threading
import time
from collections.abc import Mapping
from typing import Any

SILENT_SECONDS = 25.0  # without a message the other side or the network counts as gone
_BEAT_SECONDS = 3.0
_READ_BYTES = 2**16
_LONGEST_LINE = 2**22


class Messages:
    """One end of a message channel over two file descriptors.

    Attributes:
      are_over: whether the other side has closed the channel.
    """

    def __init__(self, read_from: int, write_to: int):
        """Args: read_from, write_to: open file descriptors of pipes; the caller closes them."""
        self._read_from = read_from
        self._write_to = write_to
        self._received = bytearray()
        self._waiting = bytearray()
        self._sending = threading.RLock()  # heartbeats may come from another thread
        self._heard = self._sent = time.monotonic()
        self.are_over = False
        for descriptor in (read_from, write_to):
            os.set_blocking(descriptor, False)

    @property
    def silence(self) -> float:
        """Seconds since data was received; 0 while there is unread data."""
        is_unread = not self.are_over and select.select([self._read_from], [], [], 0)[0]
        return 0.0 if is_unread else time.monotonic() - self._heard

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends a message now, or queues it until the pipe has room."""
        with self._sending:
            self._waiting += json.dumps(message).encode() + b"\n"
            self._sent = time.monotonic()
            self._write()

    def beat(self) -> None:
        """Sends a heartbeat if nothing else was sent for a while."""
        if time.monotonic() - self._sent >= _BEAT_SECONDS:
            self.send({"beat": True})

    def receive(self) -> list[dict[str, Any]]:
        """Returns the messages that have arrived."""
        self._write()
        while not self.are_over:
            try:
                content = os.read(self._read_from, _READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                content = b""
            if not content:
                self.are_over = True
            else:
                self._heard = time.monotonic()
                self._received += content
        *lines, rest = bytes(self._received).split(b"\n")
        self._received = bytearray(rest[:_LONGEST_LINE])
        return [message for line in lines if (message := _message(line)) is not None]

    def wait(self, seconds: float) -> None:
        """Waits for data, at most `seconds`."""
        if self.are_over:
            time.sleep(seconds)
        else:
            select.select([self._read_from], [], [], seconds)

    def _write(self) -> None:
        with self._sending:
            while self._waiting:
                try:
                    written = os.write(self._write_to, self._waiting)
                except BlockingIOError:
                    return
                except OSError:  # the other side is gone; `receive` detects it
                    self._waiting.clear()
                    return
                del self._waiting[:written]


def _message(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
