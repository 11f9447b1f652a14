"""Messages between workers: newline-delimited JSON objects over TCP, and the port on which strangers may call too."""

import contextlib
import ipaddress
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from convoy.core.text import is_count
from convoy.trainer.cluster.ports import listening_socket

_LONGEST_LINE = 2**24  # bytes
LONGEST_FIRST_LINE = 2**20  # of somebody who may be a stranger
_RECEIVE_BYTES = 2**16
_ACCEPT_RETRY_SECONDS = 0.05
_MOST_WAITING = 64  # callers that are being greeted at once, besides the expected ones


class Link:
    """A connection that carries JSON objects. Sending on a closed connection does nothing."""

    def __init__(self, connection: socket.socket):
        """Takes over an open connection."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._received = bytearray()
        self._sending = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Sends one object. Thread-safe."""
        with self._sending, contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float | None = None, longest: int = _LONGEST_LINE) -> dict[str, Any] | None:
        """Returns the next object.

        Args:
          seconds: time limit for the whole object; None to wait for it.
          longest: limit of its size in bytes.

        Returns:
          None if the other side has closed, or has sent nothing valid within the limits.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            line = self._line(deadline, longest)
            self._connection.settimeout(None)
            value = json.loads(line) if line else None
        except (OSError, ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None

    def is_closed_by_peer(self) -> bool:
        """Whether the other side has closed the connection."""
        try:
            return self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Closes the connection; a pending `receive` of either side returns None."""
        self.hang_up()
        self._connection.close()

    def hang_up(self) -> None:
        """Ends the connection for both sides; the thread that uses it closes it."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _line(self, deadline: float | None, longest: int) -> bytes:
        """Returns the next line; empty if there is none."""
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            left = None if deadline is None else deadline - time.monotonic()
            if searched > longest or (left is not None and left <= 0):
                return b""
            self._connection.settimeout(left)
            received = self._connection.recv(_RECEIVE_BYTES)
            if not received:
                return b""
            self._received += received
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line


class Listener:
    """Greets callers on a port side by side, each in a thread, so that one that stalls delays no other.

    A context manager; callers whose greeting has begun are greeted to the end. When too many wait, the one that came
    first is disconnected: workers speak at once and call again, so it is a stranger.
    """

    def __init__(self, port: int, greet: Callable[[Link], bool], *, expected: int = 0):
        """Starts listening.

        Args:
          port: TCP port, on all interfaces.
          greet: talks to a caller, within a time limit; returns whether it keeps the connection.
          expected: number of callers that may come at once.

        Raises:
          OSError: the port cannot be used.
        """
        self._greet = greet
        self._most_waiting = _MOST_WAITING + expected
        self._waiting: dict[Link, None] = {}  # in the order of their arrival
        self._lock = threading.Lock()
        self._is_closed = threading.Event()
        self._listener = listening_socket(port, backlog=self._most_waiting)
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> "Listener":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the port."""
        self._is_closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for callers
        self._listener.close()

    def _serve(self) -> None:
        while not self._is_closed.is_set():
            try:
                connection, _ = self._listener.accept()
                link = Link(connection)
            except OSError:  # the caller has left already, or this process has too many open files
                self._is_closed.wait(_ACCEPT_RETRY_SECONDS)
                continue
            with self._lock:
                self._waiting[link] = None
                if len(self._waiting) > self._most_waiting:
                    first = next(iter(self._waiting))
                    del self._waiting[first]
                    first.hang_up()
            threading.Thread(target=self._talk, args=(link,), daemon=True).start()

    def _talk(self, link: Link) -> None:
        keeps = False
        try:
            keeps = self._greet(link)
        finally:
            with self._lock:
                self._waiting.pop(link, None)
            if not keeps:
                link.close()


def loopback_note(host: str) -> str:
    """Returns a sentence about a host name that resolves to this machine; empty for other names and addresses.

    Debian writes `127.0.1.1 NAME` to /etc/hosts: harmless on the host of that name, but not on another one.
    """
    if host == "localhost" or is_count(host.replace(".", "")) or ":" in host:
        return ""
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return ""
    loopback = sorted(address for address in addresses if ipaddress.ip_address(address.split("%")[0]).is_loopback)
    if not loopback:
        return ""
    return f" {host} resolves to {loopback[0]}, this machine itself: remove that line from /etc/hosts."
