"""Measurement of peers in turn, and its evaluation: medians, ratios, a table and a JSON file with every number.

The ratio of two peers is the median over rounds of the ratio of their rates in the same round. Other load on the
machine varies from round to round and affects both, so ratios are more stable than rates. They are not independent of
it: a library that splits work evenly over threads and waits for the last one loses more on a busy machine.
"""

import collections
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

from benchmarks.workers import Member, Peer, Round, SkippedError, running
from convoy.core.errors import UsageError, did_you_mean
from convoy.core.files import write_whole
from convoy.core.processes import usable_cores

# Lets the prefetching of a peer settle before the next one starts.
_SETTLE_SECONDS = 0.15
_BUSY = 0.5
_CPU_TICK = 0.01  # seconds; the resolution of the kernel's CPU accounting
RATE_COLUMNS = ("images/s", "median", "min", "max", "per core", "cores busy")


@dataclass(frozen=True)
class Row:
    """The measurement of one peer.

    Attributes:
      peer: its name, as in `--peers`.
      label: its name in the table.
      rounds: its rounds, in order.
      facts: what it reported about itself.
    """

    peer: str
    label: str
    rounds: tuple[Round, ...]
    facts: Mapping[str, Any]

    @property
    def rates(self) -> list[float]:
        """Work per second in each round."""
        return [r.work / r.seconds for r in self.rounds]

    @property
    def rate(self) -> float:
        """Work per second: median over rounds."""
        return statistics.median(self.rates)

    @property
    def rate_per_core(self) -> float:
        """Work per second of CPU time: median over rounds."""
        return statistics.median(r.work / max(r.cpu_seconds, _CPU_TICK) for r in self.rounds)

    @property
    def busy_cores(self) -> float:
        """Average number of busy cores: median over rounds."""
        return statistics.median(r.cpu_seconds / r.seconds for r in self.rounds)

    def ratio_to(self, other: "Row | None") -> float | None:
        """Returns the median over rounds of this rate divided by the other's; None if there is no other."""
        if other is None:
            return None
        return statistics.median(own / others for own, others in zip(self.rates, other.rates, strict=True))

    def as_json(self) -> dict[str, Any]:
        """Returns the row with all rounds."""
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
    """All rows, and the peers that could not run, with the reason."""

    rows: Mapping[str, Row]
    skipped: Mapping[str, str]


def define_common_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags that all benchmarks share."""
    absl_flags.DEFINE_string("json", None, "File for all results.", flag_values=flags)
    absl_flags.DEFINE_integer(
        "rounds", 5, "Rounds; each measures every peer once.", lower_bound=1, upper_bound=1000, flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "batch_size", 64, "Images per step; in scaling and order per device.", lower_bound=1, flag_values=flags
    )
    absl_flags.DEFINE_integer("image_size", 64, "Side of the images in pixels.", lower_bound=18, flag_values=flags)
    absl_flags.DEFINE_integer(
        "threads", 0, "Number of cores for each peer; 0 for all.", lower_bound=0, flag_values=flags
    )
    absl_flags.DEFINE_list("peers", [], "Peers to measure, comma-separated; all by default.", flag_values=flags)


def define_steps_per_round(flags: absl_flags.FlagValues) -> None:
    """Defines the flag shared by the benchmarks that train."""
    if "steps_per_round" not in flags:
        absl_flags.DEFINE_integer(
            "steps_per_round", 8, "Benchmarks step and scaling: steps per round.", lower_bound=1, flag_values=flags
        )


def chosen_peers(names: Sequence[str], known: Mapping[str, str]) -> list[str]:
    """Returns the selected peers in table order; all if `names` is empty.

    Raises:
      UsageError: unknown peer.
    """
    for name in names:
        if name not in known:
            raise UsageError(f"--peers: unknown peer {name!r}{did_you_mean(name, known)}. Known: {', '.join(known)}.")
    return [name for name in known if name in names or not names]


def check_flags(flags: absl_flags.FlagValues) -> None:
    """Checks the common flags before anything is measured.

    Raises:
      UsageError: more threads than cores, or the JSON file cannot be written.
    """
    if flags.threads > usable_cores():
        raise UsageError(f"--threads={flags.threads}: this process may use {usable_cores()} cores.")
    if flags.json:
        folder = Path(flags.json).absolute().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK) or Path(flags.json).is_dir():
            raise UsageError(f"--json={flags.json} cannot be written. Pass a path in an existing, writable folder.")


def measure(
    module: str,
    peers: Mapping[str, str],
    options: Mapping[str, Any],
    rounds: int,
    members: Mapping[str, Sequence[Member]] | None = None,
) -> Measurement:
    """Measures all peers in turn, one at a time; each round starts with another peer.

    Args:
      module: the module of the peers, for `python -m`.
      peers: labels by name.
      options: options of the peers, as JSON data.
      rounds: number of rounds, after an uncounted one.
      members: processes of the peers that have several, or options of their own; one process each by default.

    Raises:
      PeerError: a peer failed.
    """
    skipped: dict[str, str] = {}
    say(f"preparing {len(peers)} peers")
    with running(module, list(peers), options, members) as workers:
        ready: collections.deque[Peer] = collections.deque()
        for worker in workers:
            try:
                worker.wait_until_ready()
                ready.append(worker)
            except SkippedError as reason:
                skipped[worker.peer] = str(reason)
                say(f"{peers[worker.peer]} is skipped: {reason}")
        measured: dict[str, list[Round]] = {worker.peer: [] for worker in ready}
        for number in range(rounds + 1):
            say(f"round {number} of {rounds}" if number else "warming up")
            for worker in ready:
                result = worker.measure()
                if number:
                    measured[worker.peer].append(result)
                time.sleep(_SETTLE_SECONDS)
            ready.rotate(-1)
        facts = {worker.peer: worker.facts for worker in ready}
    rows = {peer: Row(peer, peers[peer], tuple(measured[peer]), facts[peer]) for peer in peers if peer in measured}
    return Measurement(rows, skipped)


def begin() -> tuple[Console, dict[str, Any]]:
    """Prints the environment; returns the console and the environment."""
    # As wide as the terminal; elsewhere lines are not broken.
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 1000)
    about = _environment()
    console.print(environment_text(about))
    if about["load_average_before"] > _BUSY:
        console.print(
            f"Warning: the machine is busy (load {about['load_average_before']:.1f}), which slows peers unequally: "
            "repeat the measurement on an idle machine."
        )
    return console, about


def environment_text(about: Mapping[str, Any]) -> str:
    """Returns the environment as one line."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    amx = " with AMX" if about["amx"] else ""
    return f"{about['date']}, {about['cpu']}{amx}, {about['cores']} cores; {versions}"


def _environment() -> dict[str, Any]:
    """Returns what the results depend on: date, processor, cores, versions, load of the machine."""
    versions: dict[str, str | None] = {}
    for package in (
        "tensorflow", "keras", "torch", "torchvision", "tensorflow-datasets", "nvidia-dali-cuda120", "pillow", "numpy",
    ):  # fmt: skip
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _cpu_field("model name") or platform.processor() or platform.machine(),
        "amx": "amx_bf16" in _cpu_field("flags").split(),  # bfloat16 matrix products
        "cores": usable_cores(),
        "load_average_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
    }


def print_table(console: Console, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Prints a table with names in the first column and numbers in the others: in Markdown except on a terminal."""
    if not console.is_terminal:
        rule = "|---" + "|---:" * (len(columns) - 1) + "|"
        print("", markdown(columns), rule, *map(markdown, lines), "", sep="\n", flush=True)
        return
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    console.print(table)


def markdown(cells: Sequence[str]) -> str:
    """Returns a row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def spread(values: Sequence[float], unit: str = "", *, signed: bool = False) -> str:
    """Returns mean and standard deviation, such as `71.4 ± 0.8 %`, or the value alone if there is only one."""
    mean = f"{statistics.mean(values):{'+' if signed else ''}.1f}"
    return mean + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "") + unit


def rate_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the cells of `RATE_COLUMNS` for a row as JSON data."""
    rates = (f"{row[name]:,.0f}" for name in ("median", "min", "max", "median_per_core"))
    return (row["label"], *rates, f"{row['busy_cores']:.1f}")


def as_percent(ratio: float | None) -> str:
    """Returns `87 %`, or an empty string for None."""
    return "" if ratio is None else f"{100 * ratio:.0f} %"


def as_times(ratio: float | None) -> str:
    """Returns `1.87x`, or an empty string for None."""
    return "" if ratio is None else f"{ratio:.2f}x"


def write_json(path: str | None, content: Mapping[str, Any]) -> None:
    """Writes the JSON file, if a path was given."""
    if path:
        write_whole(Path(path), (json.dumps(content, indent=1) + "\n").encode())


def say(text: str) -> None:
    """Prints a line about the progress to standard error."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _cpu_field(name: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Returns a field of the first processor; empty where there is none, as on macOS."""
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
