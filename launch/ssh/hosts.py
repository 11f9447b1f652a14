"""The host file of `convoy launch ssh --hosts=FILE`.

# [user@]host[:port] [slots=N] [address=ADDRESS]
node1
node2 slots=2                     # two workers
me@node3:2222 address=10.0.0.3    # the other workers reach it at 10.0.0.3
[fd00::4]:2222                    # IPv6 addresses need brackets
"""

import re
from dataclasses import dataclass
from pathlib import Path

from convoy.core.errors import UsageError, did_you_mean

_EXAMPLE = "Example: `me@node1:22 slots=2 address=10.0.0.1`; only the host is required."
_TARGET = re.compile(
    r"(?:(?P<user>[^@:\s]+)@)?(?:\[(?P<ipv6>[0-9A-Fa-f:.%\w]+)\]|(?P<name>[^\[\]:@\s-][^\[\]:@\s]*))(?::(?P<port>\d+))?"
)
_KEYS = ("slots", "address")
_MOST_SLOTS = 64
_ONLY_HERE = ("localhost", "127.", "[::1]")


@dataclass(frozen=True)
class Host:
    """One line of the file.

    Attributes:
      name: host name or IP address for ssh.
      user: login name; empty for ssh's default.
      port: port of the ssh server; 0 for ssh's default.
      slots: number of workers, 1 to 64.
      address: address at which the other workers reach it; IPv6 in brackets.
    """

    name: str
    user: str = ""
    port: int = 0
    slots: int = 1
    address: str = ""

    @property
    def name_of_lock(self) -> str:
        """Name that no other host of the launch has."""
        return str(self)

    def __str__(self) -> str:
        """Returns `[user@]host[:port]`."""
        name = f"[{self.name}]" if ":" in self.name else self.name
        return (f"{self.user}@" if self.user else "") + name + (f":{self.port}" if self.port else "")


def read_hosts(path: str) -> tuple[Host, ...]:
    """Returns the hosts of a file in its order.

    Raises:
      UsageError: the file cannot be read, has an invalid line, or has no hosts.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UsageError(
            f"--hosts={path} cannot be read ({reason}). Pass a file with one host per line. {_EXAMPLE}"
        ) from None
    return parse_hosts(text, path)


def parse_hosts(text: str, path: str) -> tuple[Host, ...]:
    """Returns the hosts in the text of a host file; see `read_hosts`. `path` is for messages."""
    hosts: list[Host] = []
    lines: dict[tuple[str, str, int], int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        host = _host(words, f"{path}:{number}: {line.strip()!r}")
        before = lines.setdefault((host.user, host.name, host.port), number)
        if before != number:
            raise UsageError(
                f"{path}:{number}: {line.strip()!r} repeats host {host} of line {before}. "
                "For several workers on a host use slots=N in one line."
            )
        hosts.append(host)
    if not hosts:
        raise UsageError(f"--hosts={path} has no hosts. {_EXAMPLE}")
    for host in hosts:
        if len(hosts) > 1 and host.address.startswith(_ONLY_HERE):
            raise UsageError(
                f"{path}: host {host} has the address {host.address}, which on other hosts means themselves. "
                "Add address=ADDRESS with an address at which they reach it."
            )
    return tuple(hosts)


def _host(words: list[str], where: str) -> Host:
    match = _TARGET.fullmatch(words[0])
    if not match:
        hint = " Put an IPv6 address in brackets." if words[0].count(":") > 1 else ""
        raise UsageError(f"{where}: {words[0]!r} is not a host.{hint} {_EXAMPLE}")
    name = match["ipv6"] or match["name"]
    port = int(match["port"] or 0)
    if match["port"] and not 0 < port < 65536:
        raise UsageError(f"{where}: port {match['port']} is not between 1 and 65535.")
    values: dict[str, str] = {}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if key not in _KEYS or not equals:
            raise UsageError(f"{where}: unknown {word!r}{did_you_mean(key, _KEYS)}. {_EXAMPLE}")
        if key in values:
            raise UsageError(f"{where}: {key} is given twice. Remove one.")
        values[key] = value
    slots = values.get("slots", "1")
    if not re.fullmatch(r"[0-9]{1,4}", slots) or not 1 <= int(slots) <= _MOST_SLOTS:
        raise UsageError(
            f"{where}: slots={slots} is not between 1 and {_MOST_SLOTS}. To leave out a host, put # before its line."
        )
    address = values.get("address", name).strip("[]")
    if not address:
        raise UsageError(f"{where}: address= is empty. Add the address at which other hosts reach it.")
    return Host(
        name,
        user=match["user"] or "",
        port=port,
        slots=int(slots),
        address=f"[{address}]" if ":" in address else address,
    )
