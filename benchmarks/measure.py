"""Rounds of peers in turn, and what is made of them: medians, ratios, a table, and a JSON file with every number.

A ratio of two peers is the median over rounds of the ratio of their rates in the same round. What else the machine is
doing changes from round to round and falls on both, so ratios are steadier than rates. They are not beyond its reach:
a library that splits work evenly over threads and waits for the last one loses more on a busy machine than one that
doesn't.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags as absl_flags
from rich.console import Console
from rich.table import Table

from benchmarks.workers import Member, Round, SkippedError, Worker, running
from convoy.core.errors import UsageError, did_you_mean
from convoy.core.files import write_whole
from convoy.core.processes import usable_cores

# Lets a peer's prefetching come to rest before the next one starts.
_SETTLE_SECONDS = 0.15
_BUSY = 0.5
_CPU_TICK = 0.01  # seconds; the kernel counts no less of a short round


@dataclass(frozen=True)
class Row:
    """What one peer did.

    Attributes:
      peer: its name, as in `--peers`.
      label: what the table calls it.
      rounds: its rounds, in order.
      facts: what it said of itself.
    """

    peer: str
    label: str
    rounds: tuple[Round, ...]
    facts: Mapping[str, Any]

    @property
    def rates(self) -> list[float]:
        """Work a second, each round."""
        return [r.work / r.seconds for r in self.rounds]

    @property
    def rate(self) -> float:
        """Work a second: the median over rounds."""
        return statistics.median(self.rates)

    @property
    def rate_per_core(self) -> float:
        """Work a second of one core's computing: the median over rounds."""
        return statistics.median(r.work / max(r.cpu_seconds, _CPU_TICK) for r in self.rounds)

    @property
    def busy_cores(self) -> float:
        """How many cores computed on average: the median over rounds."""
        return statistics.median(r.cpu_seconds / r.seconds for r in self.rounds)

    def ratio_to(self, other: "Row | None") -> float | None:
        """Returns the median over rounds of this peer's rate divided by the other's; None where there is no other."""
        if other is None:
            return None
        return statistics.median(own / others for own, others in zip(self.rates, other.rates, strict=True))

    def as_json(self) -> dict[str, Any]:
        """Returns the row with every round."""
        return {
            "peer": self.peer,
            "label": self.label,
            "median": self.rate,
            "min": min(self.rates),
            "max": max(self.rates),
            "median_per_core": self.rate_per_core,
            "busy_cores": self.busy_cores,
            "rounds": [r._asdict() for r in self.rounds],
        }


@dataclass(frozen=True)
class Measurement:
    """All rows, and the peers that could not run with the reason."""

    rows: Mapping[str, Row]
    skipped: Mapping[str, str]


def define_common_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags that every benchmark has."""
    absl_flags.DEFINE_string("json", None, "File to write every number to.", flag_values=flags)
    absl_flags.DEFINE_integer(
        "rounds", 5, "Rounds; each takes every peer once.", lower_bound=1, upper_bound=1000, flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "batch_size", 64, "Images a step; of each device in scaling.", lower_bound=1, flag_values=flags
    )
    absl_flags.DEFINE_integer("image_size", 64, "Side of the images in pixels.", lower_bound=18, flag_values=flags)
    absl_flags.DEFINE_integer(
        "threads", 0, "Cores that each peer is held to; 0 is all.", lower_bound=0, flag_values=flags
    )
    absl_flags.DEFINE_list("peers", [], "Which peers to measure, comma-separated. Left out: all.", flag_values=flags)


def define_steps_per_round(flags: absl_flags.FlagValues) -> None:
    """Defines the flag of those benchmarks that train, whose help is listed together."""
    if "steps_per_round" not in flags:
        absl_flags.DEFINE_integer(
            "steps_per_round", 8, "Benchmarks step and scaling: steps a round.", lower_bound=1, flag_values=flags
        )


def chosen_peers(names: Sequence[str], known: Mapping[str, str]) -> list[str]:
    """Returns the peers asked for, in the order of the table; all of them where `names` is empty.

    Raises:
      UsageError: a name that no peer has.
    """
    for name in names:
        if name not in known:
            raise UsageError(f"--peers: unknown peer {name!r}{did_you_mean(name, known)}. Known: {', '.join(known)}.")
    return [name for name in known if name in names or not names]


def check_flags(flags: absl_flags.FlagValues) -> None:
    """Checks, before minutes are spent, what the common flags ask for.

    Raises:
      UsageError: more threads than cores, or a JSON file where none can be.
    """
    if flags.threads > usable_cores():
        raise UsageError(f"--threads={flags.threads}: this process may use {usable_cores()} cores.")
    if flags.json:
        folder = Path(flags.json).absolute().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK) or Path(flags.json).is_dir():
            raise UsageError(f"--json={flags.json}: no file can be written there. Its folder must exist.")


def measure(
    module: str,
    peers: Mapping[str, str],
    options: Mapping[str, Any],
    rounds: int,
    members: Mapping[str, Sequence[Member]] | None = None,
) -> Measurement:
    """Takes rounds of all peers in turn, one computing at a time; each round begins with another peer.

    Args:
      module: where the peers are, for `python -m`.
      peers: labels by name.
      options: for the peers, as JSON.
      rounds: how many, after one that is not counted.
      members: the processes of the peers that have several, or need their own options; one each where left out.

    Raises:
      PeerError: a peer failed.
    """
    skipped: dict[str, str] = {}
    _say(f"preparing {len(peers)} peers")
    with running(module, list(peers), options, members) as workers:
        ready = []
        for worker in workers:
            try:
                worker.wait_until_ready()
                ready.append(worker)
            except SkippedError as reason:
                skipped[worker.peer] = str(reason)
                _say(f"{peers[worker.peer]} is left out: {reason}")
        measured: dict[str, list[Round]] = {worker.peer: [] for worker in ready}
        for number in range(rounds + 1):
            _say(f"round {number} of {rounds}" if number else "warming up")
            for worker in _rotated(ready, number):
                result = worker.measure()
                if number:
                    measured[worker.peer].append(result)
                time.sleep(_SETTLE_SECONDS)
        facts = {worker.peer: worker.facts for worker in ready}
    rows = {peer: Row(peer, peers[peer], tuple(measured[peer]), facts[peer]) for peer in peers if peer in measured}
    return Measurement(rows, skipped)


def environment() -> dict[str, Any]:
    """Returns what the numbers depend on: processor, cores, versions, and how busy the machine was."""
    versions = {}
    for package in (
        "tensorflow", "keras", "torch", "torchvision", "tensorflow-datasets", "nvidia-dali-cuda120", "pillow", "numpy",
    ):  # fmt: skip
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "load_average_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
    }


def print_environment(console: Console, about: Mapping[str, Any]) -> None:
    """Prints processor, cores and versions, and a word when the machine is busy with something else."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    console.print(f"{about['cpu']}, {about['cores']} cores; {versions}")
    if about["load_average_before"] > _BUSY:
        console.print(
            f"Something else was running (load {about['load_average_before']:.1f}), which slows peers unequally: "
            "measure again when it has ended."
        )


def print_table(console: Console, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Prints a table whose first column holds names and whose others hold numbers."""
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    console.print(table)


def console() -> Console:
    """Returns where tables go: the terminal's width, or wide enough for any table where there is none."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 140)


def as_percent(ratio: float | None) -> str:
    """Returns `87 %`, or nothing for None."""
    return "" if ratio is None else f"{100 * ratio:.0f} %"


def as_times(ratio: float | None) -> str:
    """Returns `1.87x`, or nothing for None."""
    return "" if ratio is None else f"{ratio:.2f}x"


def write_json(path: str | None, content: Mapping[str, Any]) -> None:
    """Writes the file whole, where a path was given."""
    if not path:
        return
    write_whole(Path(path), (json.dumps(content, indent=1) + "\n").encode())


def _rotated(workers: Sequence[Worker], by: int) -> list[Worker]:
    cut = by % len(workers) if workers else 0
    return [*workers[cut:], *workers[:cut]]


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
