"""Messages between workers: newline-delimited JSON objects over TCP."""

import contextlib
import ipaddress
import json
import socket
import threading
from typing import Any

_LONGEST_LINE = 2**24  # bytes


class Link:
    """A connection that carries JSON objects. Sending on a closed connection does nothing."""

    def __init__(self, connection: socket.socket):
        """Takes over an open connection."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._file = connection.makefile("rb")
        self._sending = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Sends one object. Thread-safe."""
        with self._sending, contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float | None = None) -> dict[str, Any] | None:
        """Returns the next object; None if the other side has closed, or sends nothing valid within `seconds`."""
        try:
            self._connection.settimeout(seconds)
            line = self._file.readline(_LONGEST_LINE)
            self._connection.settimeout(None)
            value = json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError):
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
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def loopback_note(host: str) -> str:
    """Returns a sentence about a host name that resolves to this machine; empty for other names and addresses.

    Debian writes `127.0.1.1 NAME` to /etc/hosts: harmless on the host of that name, but not on another one.
    """
    if host == "localhost" or host.replace(".", "").isdigit():
        return ""
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return ""
    loopback = sorted(address for address in addresses if ipaddress.ip_address(address.split("%")[0]).is_loopback)
    if not loopback:
        return ""
    return f" {host} resolves to {loopback[0]}, this machine itself: remove that line from /etc/hosts."
