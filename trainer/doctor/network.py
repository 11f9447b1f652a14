"""Checks of names, ports and clocks: reachability of the workers on their cluster ports, and clock differences.

    with Responder(port, rank=1):                            # on every worker
        reached = reach("a:2222", rank=0, seconds=3)         # from every worker, to every other
        reached.problem, reached.clock_ahead

Ports are tried in both directions of each pair, since a firewall may block only one. The reply contains the sender's
rank and time, to detect a wrong host and to compare clocks. Imports no TensorFlow.
"""

import contextlib
import ipaddress
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from convoy.core.cluster import KEY_VARIABLE, Cluster, host_and_port
from convoy.core.text import joined
from convoy.trainer.cluster.proxies import proxy_variable
from convoy.trainer.cluster.transport import LONGEST_FIRST_LINE, Link, Listener
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.doctor.findings import DoctorFinding, failed, ok, warning

_QUESTION = {"question": "convoy doctor"}
_ANSWER_SECONDS = 3.0
_MOST_AT_ONCE = 32
_MOST_NAMED = 8
_CLOCK_WARNING_SECONDS, _CLOCK_FAILED_SECONDS = 1.0, 30.0


@dataclass(frozen=True)
class Reached:
    """Result of contacting another worker.

    Attributes:
      problem: why it could not be reached; empty on success.
      clock_ahead: its clock minus this host's, in seconds, accurate to half of `round_trip`.
      round_trip: seconds from request to reply.
    """

    problem: str = ""
    clock_ahead: float = 0.0
    round_trip: float = 0.0


class Responder(Listener):
    """Answers queries for rank and time on a port. A context manager."""

    def __init__(self, port: int, rank: int):
        """Starts listening.

        Raises:
          OSError: the port is in use.
        """
        self._rank = rank
        super().__init__(port, self._answer)

    def _answer(self, link: Link) -> bool:
        if link.receive(_ANSWER_SECONDS, longest=LONGEST_FIRST_LINE) == _QUESTION:
            link.send({"rank": self._rank, "time": time.time()})
        return False


def reach(address: str, rank: int, seconds: float = _ANSWER_SECONDS) -> Reached:
    """Queries the rank and clock of the worker `rank` at `address`."""
    host, port = host_and_port(address)
    try:
        with contextlib.closing(Link(socket.create_connection((host, port), timeout=seconds))) as link:
            asked = time.time()
            link.send(_QUESTION)
            answer = link.receive(seconds, longest=LONGEST_FIRST_LINE)
            answered = time.time()
        if answer is None:
            return Reached("timed out" if answered - asked >= seconds else "another program answers there")
        if answer["rank"] != rank:
            return Reached(f"worker {answer['rank']} answers there")
        return Reached("", answer["time"] - (asked + answered) / 2, answered - asked)
    except socket.gaierror as error:
        return Reached(f"the name {host} is not known there ({error.strerror})")
    except TimeoutError:
        return Reached("timed out")
    except OSError as error:
        return Reached((error.strerror or str(error)).lower())
    except (KeyError, TypeError):
        return Reached("another program answers there")


def reach_all(cluster: Cluster) -> dict[int, Reached]:
    """Contacts every other worker; returns the results by rank."""
    others = [rank for rank in range(cluster.num_workers) if rank != cluster.index]
    with ThreadPoolExecutor(min(_MOST_AT_ONCE, len(others))) as pool:
        return dict(zip(others, pool.map(lambda rank: reach(cluster.addresses[rank], rank), others), strict=True))


def check_names(cluster: Cluster) -> list[DoctorFinding]:
    """Checks that this host resolves the workers' names."""
    hosts = [host_and_port(address)[0] for address in cluster.addresses]
    own, findings, resolved = hosts[cluster.index], [], {}
    for host in dict.fromkeys(hosts):
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            fix = "Fix the name in the cluster description, /etc/hosts or DNS."
            findings.append(failed("names", "name-not-resolved", f"{host} cannot be resolved ({error.strerror}).", fix))
        else:
            resolved[host] = str(found[0][4][0]).split("%")[0]
    loopback = [host for host, address in resolved.items() if ipaddress.ip_address(address).is_loopback]
    if len(loopback) < len(resolved) or findings:  # a cluster on one machine may be all loopback
        for host in loopback:
            if host != own:  # the own name may be loopback, as on Debian: other hosts use another address
                text = f"{host} resolves to {resolved[host]}, this host, instead of worker {hosts.index(host)}'s."
                fix = "Remove it from that line of /etc/hosts on this host."
                findings.append(failed("names", "name-is-loopback", text, fix))
    if resolved and not findings:
        names = [host if host == address else f"{host} is {address}" for host, address in resolved.items()]
        rest = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        findings.append(ok("names", "names-resolve", f"{', '.join(names[:_MOST_NAMED])}{rest}", of_all=True))
    return findings


def check_key(cluster: Cluster) -> DoctorFinding:
    """Reports whether the workers authenticate each other."""
    if cluster.key:
        text = f"workers authenticate each other by {KEY_VARIABLE}; TensorFlow's ports are open to all: see SECURITY.md"
        return ok("key", "workers-authenticated", text, of_all=True)
    text = f"{KEY_VARIABLE} is not set: the workers do not authenticate each other."
    fix = (
        "Start them with `convoy launch`, which makes a key, or set the variable to the same secret on all workers "
        "(`openssl rand -hex 32`). Let only the workers reach their ports: see SECURITY.md."
    )
    return warning("key", "workers-not-authenticated", text, fix, of_all=True)


def check_proxy() -> DoctorFinding | None:
    """Reports that a proxy is set on this host, which connections between workers bypass; None without one."""
    name = proxy_variable()
    return ok("proxy", "proxy-bypassed", f"{name} is set; connections between workers bypass it") if name else None


def check_ports(reached: Mapping[int, Mapping[int, Reached]], addresses: Sequence[str]) -> DoctorFinding:
    """Reports which workers cannot reach which.

    Args:
      reached: results by rank of the caller, then by rank of the contacted worker.
      addresses: worker addresses by rank.
    """
    problems = [
        f"worker {one} ({addresses[one]}) cannot reach worker {other} ({addresses[other]}): {result.problem}"
        for one, results in sorted(reached.items())
        for other, result in sorted(results.items())
        if result.problem
    ]
    if problems:
        closed = {addresses[other] for results in reached.values() for other, found in results.items() if found.problem}
        fix = (
            f"Open {joined(sorted(closed), 'and')} for the other workers in the firewall of that host and between the "
            "hosts; TensorFlow needs both directions. Or choose another network with `--interface`."
        )
        return failed("ports", "ports-closed", "; ".join(problems), fix, of_all=True)
    pairs = sum(map(len, reached.values()))
    slowest = max(result.round_trip for results in reached.values() for result in results.values())
    text = f"all {pairs} connections between workers work, round trip at most {slowest * 1e3:.1f} ms"
    return ok("ports", "ports-open", text, of_all=True)


def check_clocks(reached: Mapping[int, Mapping[int, Reached]], names: Sequence[str]) -> DoctorFinding | None:
    """Compares all clocks with the chief's; returns None if none could be read."""
    ahead = {}
    for rank in range(1, len(names)):
        by_chief, by_worker = reached.get(0, {}).get(rank), reached.get(rank, {}).get(0)
        if by_chief and not by_chief.problem:
            ahead[rank] = by_chief.clock_ahead
        elif by_worker and not by_worker.problem:
            ahead[rank] = -by_worker.clock_ahead
    if not ahead:
        return None
    worst = max(ahead, key=lambda rank: abs(ahead[rank]))
    apart = abs(ahead[worst])
    if apart < _CLOCK_WARNING_SECONDS:
        return ok("clocks", "clocks-agree", f"{apart * 1e3:.0f} ms apart at most", of_all=True)
    direction = "ahead of" if ahead[worst] > 0 else "behind"
    text = f"the clock of {names[worst]} is {apart:.1f} s {direction} that of {names[0]}."
    fix = "Synchronize the clocks with NTP (chrony): logs and events use them."
    level = failed if apart >= _CLOCK_FAILED_SECONDS else warning
    return level("clocks", "clocks-differ", text, fix, of_all=True)


class Search:
    """Probes missing workers from the chief while it waits for them. A context manager."""

    def __init__(self, worker_group: WorkerGroup, addresses: Sequence[str]):
        """Creates the search without starting it."""
        self._worker_group, self._addresses = worker_group, addresses
        self._found: dict[int, Reached] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Search":
        """Starts the search on the chief."""
        if self._worker_group.is_chief:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops the search."""
        self._ended.set()
        if self._worker_group.is_chief:
            self._thread.join()

    def findings(self) -> list[DoctorFinding]:
        """Returns a finding for each worker that did not connect."""
        return [self._finding(rank) for rank in self._worker_group.missing()] if self._worker_group.is_chief else []

    def _finding(self, rank: int) -> DoctorFinding:
        addresses, found = self._addresses, self._found.get(rank)
        here, there = self._worker_group.address(0), self._worker_group.address(rank)
        if found and not found.problem:
            text = f"{here} reaches {there}, but {there} cannot reach {here}."
            fix = f"Open {addresses[0]} for the other workers in the firewall; check that they resolve it to this host."
            return failed("ports", "chief-port-closed", text, fix, of_all=True)
        problem = found.problem if found else "not tried"
        fix = {
            "connection refused": "Nothing listens on the port. Start `convoy doctor` on it with the same cluster.",
            "timed out": f"Check that the host is up, and open {addresses[rank]} in its firewall.",
        }.get(problem, "Check the address.")
        return failed("ports", "worker-unreachable", f"{here} cannot reach {there}: {problem}", fix, of_all=True)

    def _look(self) -> None:
        while not self._ended.wait(0.5):
            for rank in self._worker_group.missing():
                if self._ended.is_set():  # many unresponsive hosts would delay the exit by many seconds
                    return
                if rank not in self._found or self._found[rank].problem:
                    self._found[rank] = reach(self._addresses[rank], rank, seconds=1.0)
