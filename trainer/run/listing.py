"""Several runs side by side: how far each is, how good and how fast, and which config fields set them apart.

for run in list_runs(Path("runs")):        # the best first
    run.name, run.best_top1, run.state, run.differences

What a run wrote is read as it stands, while it trains too, and nothing is written or locked. Imports no TensorFlow.
"""

import contextlib
import csv
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from convoy.trainer.config import OPERATIONAL_FIELDS, default_config, fields, to_json, total_steps
from convoy.trainer.config.renamed import modernized
from convoy.trainer.run.directory import RunDirectory

_DEEPEST = 4  # folders under the one that was named
_HEARTBEAT_SECONDS = 300.0  # what another host writes into is taken for running for so long after its last line
_LAST_BYTES = 2**16  # of metrics.jsonl: many lines
_SPEEDS = 20  # lines whose median is the speed of a run that has no result yet


@dataclass(frozen=True)
class ListedRun:
    """A run directory as it was found.

    Attributes:
      name: its folder, relative to the one that was listed.
      state: done, running, stopped or failed.
      step: the last one that is known of; None before the first.
      total_steps: of the whole run; None where its config or dataset is not known.
      best_step: of the checkpoint that was best on validation images; None where none was evaluated.
      best_top1: its top-1, in [0, 1].
      images_per_second: steady speed.
      error: why it failed, in one line; empty for the others.
      error_file: where more of that stands, relative to the run.
      config: every field by dotted name, and the dataset's identity as `data`.
      differences: those of `config` that change what is computed and are not the same in all the listed runs.
    """

    name: str
    state: str
    step: int | None
    total_steps: int | None
    best_step: int | None
    best_top1: float | None
    images_per_second: float | None
    error: str = ""
    error_file: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    differences: Mapping[str, Any] = field(default_factory=dict)

    @property
    def state_text(self) -> str:
        """The state in words, with the step: `stopped at step 40 of 100`."""
        of = f" of {self.total_steps:,}" if self.total_steps else ""
        where = "before its first step" if self.step is None else f"at step {self.step:,}{of}"
        if self.state == "failed":
            return f"failed {where}: {self.error} ({self.error_file})"
        return f"done, {self.step:,} step{'s' * (self.step != 1)}" if self.state == "done" else f"{self.state} {where}"

    def as_json(self) -> dict[str, Any]:
        """Returns the attributes by name."""
        return asdict(self)


def list_runs(folder: Path) -> list[ListedRun]:
    """Returns the runs in and under a folder, by their best validation top-1; those without one at the end."""
    locked = _locked_files()
    runs = [_read(path, str(path.relative_to(folder)), locked) for path in _run_folders(folder)]
    names = {name for run in runs for name in run.config if not name.startswith(OPERATIONAL_FIELDS)}
    differing = {name for name in names if len({json.dumps(run.config.get(name)) for run in runs if run.config}) > 1}
    runs = [
        replace(run, differences={name: value for name, value in run.config.items() if name in differing})
        for run in runs
    ]
    return sorted(runs, key=lambda run: -1.0 if run.best_top1 is None else run.best_top1, reverse=True)


def _run_folders(folder: Path, depth: int = 0) -> Iterator[Path]:
    if any(os.path.lexists(folder / name) for name in ("checkpoints", "launch.json")):
        yield folder
    elif depth < _DEEPEST:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
            )
            for name in names:
                yield from _run_folders(folder / name, depth + 1)


def _read(path: Path, name: str, locked: set[tuple[str, int]]) -> ListedRun:
    run = RunDirectory(path)
    config, dataset, result = (_json_of(file) for file in (run.config, run.dataset, run.result))
    events = _json_lines(run.events)
    measured = _json_lines(run.metrics, last_bytes=_LAST_BYTES)
    steps = [line["step"] for line in (*events, *measured) if isinstance(line.get("step"), int)]
    begun = [event for event in events if event.get("event") in ("start", "restored")]
    is_done = bool(events) and events[-1].get("event") == "done"
    error, error_file = "", ""
    if is_done:
        state, steps = "done", [result.get("step", max(steps, default=0))]
    elif _is_held(run, locked):
        state = "running"
    else:
        error, error_file = _error(path, events, since=begun[-1]["time"] if begun else 0.0)
        state = "failed" if error else "stopped"
    best_step, best_top1 = _best(run)
    speeds = [line["perf/images_per_s"] for line in measured if line.get("perf/images_per_s")][-_SPEEDS:]
    images = dataset.get("train_images")
    complete = {**dict(fields(to_json(default_config()))), **dict(fields(modernized(config)))} if config else {}
    if config and dataset:
        complete["data"] = f"{dataset.get('name')} ({dataset.get('train_digest')})"
    return ListedRun(
        name=name,
        state=state,
        step=max(steps, default=None),
        total_steps=total_steps(complete, images) if config and images else None,
        best_step=best_step,
        best_top1=best_top1,
        images_per_second=result.get("images_per_second") or (statistics.median(speeds) if speeds else None),
        error=error,
        error_file=error_file,
        config=complete,
    )


def _best(run: RunDirectory) -> tuple[int | None, float | None]:
    """Returns the step and the top-1 of the best evaluation on validation images, the last of equals."""
    best: tuple[int | None, float | None] = (None, None)
    with contextlib.suppress(OSError), open(run.results_table, newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            with contextlib.suppress(ValueError, TypeError):  # a row that a crash cut short
                step, top1 = int(row["step"]), float(row["top1"])
                if row["split"] == "validation" and (best[1] is None or top1 >= best[1]):
                    best = step, top1
    return best


def _error(path: Path, events: Sequence[Mapping[str, Any]], since: float) -> tuple[str, str]:
    """Returns why a run failed after its last start, and where that stands; nothing where it has only stopped."""
    found = []
    for file in path.glob("logs/attempt-*/error-*.json"):
        content = _json_of(file)
        if content.get("time", 0.0) >= since and content.get("error"):
            found.append((content["time"], str(content["error"]).splitlines()[0], str(file.relative_to(path))))
    if found:
        newest = max(error_time for error_time, *_ in found)
        # Of one attempt the earliest is the cause; an attempt's errors come within moments of each other.
        _, error, name = min(entry for entry in found if entry[0] > newest - 60.0)
        return error, name
    if events and events[-1].get("event") == "diverged":
        return f"the loss of step {events[-1].get('step')} was NaN or infinite", "events.jsonl"
    return "", ""


def _is_held(run: RunDirectory, locked: set[tuple[str, int]]) -> bool:
    """Says whether a process trains in a run: by its lock on this host, by what it wrote last on another."""
    try:
        status = (run.path / ".lock").stat()
    except OSError:
        return False
    devices = {f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"}
    held = {device for device, inode in locked if inode == status.st_ino}
    # Overlays and network file systems have devices without a number of their own.
    if held & devices or any(device.startswith("00:") for device in held):
        return True
    if _json_of(run.environment).get("host") in (None, platform.node()):
        return False
    times = [file.stat().st_mtime for file in (run.metrics, run.events) if file.exists()]
    return time.time() - max(times, default=0.0) < _HEARTBEAT_SECONDS


def _locked_files() -> set[tuple[str, int]]:
    """Returns device and inode of every file that a process of this host holds locked, where Linux tells."""
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return set()
    found = set()
    for line in lines:
        words = line.split()  # 1: FLOCK  ADVISORY  WRITE 31115 fe:00:2818598 0 EOF
        if "WRITE" in words and "->" not in words:
            device, _, inode = words[words.index("WRITE") + 2].rpartition(":")
            found.add((device, int(inode)))
    return found


def _json_of(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _json_lines(path: Path, last_bytes: int | None = None) -> list[dict[str, Any]]:
    """Returns the objects of a JSON-lines file, or of its end, without lines that are cut short."""
    try:
        with open(path, "rb") as file:
            if last_bytes:
                file.seek(max(0, file.seek(0, os.SEEK_END) - last_bytes))
            lines = file.read().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            content = json.loads(line)
            if isinstance(content, dict):
                found.append(content)
    return found
