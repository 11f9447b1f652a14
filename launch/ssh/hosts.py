"""The file that says on which hosts workers run, for `convoy launch ssh --hosts=FILE`.

# [user@]host[:port] [slots=N] [address=ADDRESS]
node1
node2 slots=2                     # two workers there
me@node3:2222 address=10.0.0.3    # the other workers reach it at 10.0.0.3
[fd00::4]:2222 address=10.0.0.4   # an IPv6 address stands in brackets; workers reach each other over IPv4
"""

import re
from dataclasses import dataclass
from pathlib import Path

from convoy.core.errors import UsageError, did_you_mean

_EXAMPLE = "A line looks like `me@node1:22 slots=2 address=10.0.0.1`; all but the host may be left out."
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
      name: what ssh connects to.
      user: to log in as; ssh's choice where empty.
      port: of its ssh server; ssh's choice where 0.
      slots: number of workers there.
      address: at which the other workers reach it, as it stands in `address:port`.
    """

    name: str
    user: str = ""
    port: int = 0
    slots: int = 1
    address: str = ""

    def __str__(self) -> str:
        """Returns the host as people write it."""
        name = f"[{self.name}]" if ":" in self.name else self.name
        return (f"{self.user}@" if self.user else "") + name + (f":{self.port}" if self.port else "")


def read_hosts(path: str) -> tuple[Host, ...]:
    """Returns the hosts of a file, in its order.

    Raises:
      UsageError: it cannot be read, has a line that is none, or names no host.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"--hosts={path} cannot be read ({why}). Give a file with a host a line. {_EXAMPLE}") from None
    return parse_hosts(text, path)


def parse_hosts(text: str, path: str) -> tuple[Host, ...]:
    """Returns the hosts in a text; `path` is what messages call it. Raises a UsageError as `read_hosts` does."""
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
                f"{path}:{number}: {line.strip()!r} names {host} again, after line {before}. "
                "Give several workers of a host as slots=N in one line."
            )
        hosts.append(host)
    if not hosts:
        raise UsageError(f"--hosts={path} names no host. {_EXAMPLE}")
    for host in hosts:
        if len(hosts) > 1 and host.address.startswith(_ONLY_HERE):
            raise UsageError(
                f"{path}: host {host} is {host.address} to the other hosts, which would find themselves there. "
                "Add address=ADDRESS, at which they reach it."
            )
        if len(hosts) > 1 and host.address.startswith("["):  # TensorFlow's server listens on IPv4 only
            raise UsageError(
                f"{path}: host {host} has the address {host.address}, and workers reach each other over IPv4. "
                "Add address=ADDRESS, its IPv4 address or a name that has one."
            )
    return tuple(hosts)


def _host(words: list[str], where: str) -> Host:
    match = _TARGET.fullmatch(words[0])
    if not match:
        hint = " An IPv6 address stands in brackets." if words[0].count(":") > 1 else ""
        raise UsageError(f"{where}: {words[0]!r} is no host.{hint} {_EXAMPLE}")
    name = match["ipv6"] or match["name"]
    port = int(match["port"] or 0)
    if match["port"] and not 0 < port < 65536:
        raise UsageError(f"{where}: port {match['port']} cannot be. Give 1 to 65535, or leave it out.")
    values: dict[str, str] = {}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if key not in _KEYS or not equals:
            raise UsageError(f"{where}: unknown {word!r}{did_you_mean(key, _KEYS)}. {_EXAMPLE}")
        if key in values:
            raise UsageError(f"{where}: {key} stands there twice. Give it once.")
        values[key] = value
    slots = values.get("slots", "1")
    if not re.fullmatch(r"[0-9]{1,4}", slots) or not 1 <= int(slots) <= _MOST_SLOTS:
        raise UsageError(
            f"{where}: slots={slots} cannot be. Give 1 to {_MOST_SLOTS} workers, or put # before a host that "
            "is to have none."
        )
    address = values.get("address", name).strip("[]")
    if not address:
        raise UsageError(f"{where}: address= is empty. Give the address at which other hosts reach it.")
    return Host(
        name,
        user=match["user"] or "",
        port=port,
        slots=int(slots),
        address=f"[{address}]" if ":" in address else address,
    )
