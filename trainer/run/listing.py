"""Comparison of runs for `convoy runs`: progress, accuracy, speed, and the config fields that differ.

for run in list_runs(Path("runs")):        # best first
    run.name, run.best_score, run.state, run.differences

Works while runs are training; nothing is written or locked. Imports no TensorFlow.
"""

import contextlib
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from convoy.core.errors import DataError, UsageError, did_you_mean
from convoy.core.run_layout import attempt_number
from convoy.core.text import counted
from convoy.trainer.config import OPERATIONAL_FIELDS, default_config, fields, to_json, total_steps
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.run.records import number_in, read_evaluations, read_json_lines, read_json_object
from convoy.trainer.run.task import SINGLE_LABEL, metric_title, task_of

_MARKS = ("checkpoints", "launch.json")  # a folder with either is a run directory
_MAX_DEPTH = 4  # levels of folders to search
_ACTIVE_SECONDS = 300.0  # a run on another host counts as running for this long after its last write
_METRICS_TAIL_BYTES = 2**16
_SPEED_WINDOW = 20  # logged speeds whose median is the speed of a run that has no result yet


@dataclass(frozen=True)
class ListedRun:
    """The state of a run directory.

    Attributes:
      name: path relative to the listed folder.
      state: done, running, stopped or failed.
      step: last known step; None before the first.
      total_steps: length of the whole run; None if its config or dataset is unknown.
      best_step: step of the best evaluation on the validation split; None if there is none.
      best_top1: top-1 accuracy of that evaluation, in [0, 1]; None with several labels per image.
      images_per_second: steady speed; None if unknown.
      error: reason of a failure, one line; empty in other states.
      error_file: file with the details of the error, relative to the run directory.
      stop_reason: why it is done before its last step, as after early stopping or pruning; empty for others.
      config: every field by dotted name, and the dataset's identity as `data`.
      differences: fields of `config` that affect the result and are not the same in all listed runs.
      best_score: top-1, or mean average precision with several labels per image, of the best evaluation.
      score: name of that metric.
      fold: of a cross-validation, the last fold that was begun, whose steps these are; 0 for a single run.
      folds: number of its folds; `best_top1` is the mean over those that have one, without a `best_step`.
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
    stop_reason: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    differences: Mapping[str, Any] = field(default_factory=dict)
    best_score: float | None = None
    score: str = SINGLE_LABEL.score
    fold: int = 0
    folds: int = 0

    @property
    def score_title(self) -> str:
        """The name of the score in tables."""
        return metric_title(self.score)

    @property
    def state_text(self) -> str:
        """State and step: `stopped at step 40 of 100`."""
        total = f" of {self.total_steps:,}" if self.total_steps else ""
        if self.folds:
            if self.state == "done":
                return f"done, {self.folds} folds"
            total += f" in fold {self.fold} of {self.folds}"
        if self.state == "done" and self.stop_reason:
            return f"stopped early at step {self.step or 0:,}{total}: {self.stop_reason}"
        if self.state == "done":
            return f"done, {counted(self.step or 0, 'step')}"
        progress = "before its first step" if self.step is None else f"at step {self.step:,}{total}"
        if self.state == "failed":
            return f"failed {progress}: {self.error} ({self.error_file})"
        return f"{self.state} {progress}"

    def as_json(self) -> dict[str, Any]:
        """Returns the attributes as JSON data."""
        return asdict(self)


def is_run(path: Path) -> bool:
    """Returns whether a folder is a run directory, or that of a cross-validation."""
    return any(os.path.lexists(path / name) for name in _MARKS) or RunDirectory(path).folds > 0


def read_run(path: Path) -> ListedRun:
    """Returns the state of a run directory, which may be in progress; without `differences`."""
    return _read(path, path.name, _locked_files())


def list_runs(folder: Path) -> list[ListedRun]:
    """Returns the runs in and under a folder, sorted by best validation score; runs without one come last.

    A cross-validation under it is one run; of a folder that is one, the runs of the folds are returned.

    Raises:
      UsageError: it is not a folder.
    """
    if not folder.is_dir():
        siblings = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UsageError(
            f"{folder}: not a folder{did_you_mean(folder.name, siblings)}. Pass a folder that contains runs."
        )
    locked = _locked_files()
    runs = [_read(path, str(path.relative_to(folder)), locked) for path in _run_folders(folder)]
    names = {name for run in runs for name in run.config if not name.startswith(OPERATIONAL_FIELDS)}
    differing = {
        name for name in names if len({json.dumps(_compared(name, run.config)) for run in runs if run.config}) > 1
    }
    runs = [
        replace(run, differences={name: value for name, value in run.config.items() if name in differing})
        for run in runs
    ]
    return sorted(runs, key=lambda run: -1.0 if run.best_score is None else run.best_score, reverse=True)


def _compared(name: str, config: Mapping[str, Any]) -> Any:  # noqa: ANN401 (any JSON value)
    """Returns what must be equal in two runs: of a field its value, of the dataset its digest."""
    value = config.get(name)
    return value.rpartition("(")[2] if name == "data" and value else value


def _run_folders(folder: Path, depth: int = 0) -> Iterator[Path]:
    if is_run(folder) and (depth or not RunDirectory(folder).folds):
        yield folder
    elif depth < _MAX_DEPTH:
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
    return _read_folds(run, name, locked) if run.folds else _read_single(run, name, locked)


def _read_folds(run: RunDirectory, name: str, locked: set[tuple[str, int]]) -> ListedRun:
    together, number = _read_single(run, name, locked), run.folds
    folders = [run.fold(fold) for fold in range(1, number + 1) if run.fold(fold).is_dir()]
    folds = [_read(folder, folder.name, locked) for folder in folders]
    state = "failed" if together.error else "stopped"
    if folds[-1].state == "running":
        state = "running"
    elif run.result.exists():
        state = "done"
    tops = [fold.best_top1 for fold in folds if fold.best_top1 is not None]
    top1 = statistics.fmean(tops) if tops else None
    speeds = [fold.images_per_second for fold in folds if fold.images_per_second is not None]
    return replace(
        together,
        state=state,
        step=folds[-1].step,
        total_steps=folds[-1].total_steps,
        best_top1=top1,
        best_score=top1,
        images_per_second=statistics.median(speeds) if speeds else None,
        fold=len(folds),
        folds=number,
    )


def _read_single(run: RunDirectory, name: str, locked: set[tuple[str, int]]) -> ListedRun:
    path = run.path
    dataset, result = map(read_json_object, (run.dataset, run.result))
    config: dict[str, Any] = {}
    with contextlib.suppress(DataError):
        config = run.read_config()
    events = read_json_lines(run.events)
    metrics = read_json_lines(run.metrics, last_bytes=_METRICS_TAIL_BYTES)
    steps = [line["step"] for line in (*events, *metrics) if isinstance(line.get("step"), int)]
    step = max(steps, default=None)
    error, error_file = "", ""
    if events and events[-1].get("event") == "done":
        state, step = "done", int(number_in(result, "step") or step or 0)
    elif _is_locked(run, locked):
        state = "running"
    else:
        starts = [event for event in events if event.get("event") in ("start", "restored")]
        error, error_file = _error(path, events, starts[-1] if starts else {})
        state = "failed" if error else "stopped"
    task = task_of(dataset)
    best_step, best_score = _best(run, task.score)
    speeds = [speed for line in metrics if (speed := number_in(line, "perf/images_per_s"))][-_SPEED_WINDOW:]
    images = int(number_in(dataset, "train_images") or 0)
    # Runs of earlier versions lack some fields: these count with their defaults.
    complete = {**dict(fields(to_json(default_config()))), **dict(fields(config))} if config else {}
    if config and dataset:
        complete["data"] = f"{dataset.get('name')} ({dataset.get('train_digest')})"
    return ListedRun(
        name=name,
        state=state,
        step=step,
        total_steps=total_steps(complete, images) if config and images else None,
        best_step=best_step,
        best_top1=None if task.multi_label else best_score,
        images_per_second=number_in(result, "images_per_second") or (statistics.median(speeds) if speeds else None),
        error=error,
        error_file=error_file,
        stop_reason=_stop_reason(result) if state == "done" else "",
        config=complete,
        best_score=best_score,
        score=task.score,
    )


def _stop_reason(result: Mapping[str, Any]) -> str:
    stop = result.get("stop")
    return str(stop.get("reason", "")) if isinstance(stop, dict) else ""


def _best(run: RunDirectory, score: str) -> tuple[int | None, float | None]:
    """Returns step and score of the best evaluation on the validation split; the later one if equal."""
    rows = [
        row
        for row in read_evaluations(run.results_table)
        if row.split == "validation" and score in row.quality and not row.checkpoint  # of one step
    ]
    best = max(reversed(rows), key=lambda row: row.quality[score], default=None)
    return (best.step, best.quality[score]) if best else (None, None)


def _error(path: Path, events: Sequence[Mapping[str, Any]], start: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the error since the last start and the file that reports it; two empty strings if there is none."""
    found = []
    for file in path.glob("logs/attempt-*/error-*.json"):
        content, attempt = read_json_object(file), attempt_number(file.parent.name) or 0
        if started_in := number_in(start, "attempt"):
            is_later = attempt >= started_in
        else:  # without a launcher, or by an earlier version
            is_later = (number_in(content, "time") or 0.0) >= (number_in(start, "time") or 0.0)
        if is_later and content.get("error"):
            # The earliest error of the newest attempt is the cause; the others follow within seconds.
            order = (-attempt, number_in(content, "time") or 0.0)
            found.append((*order, str(content["error"]).splitlines()[0], str(file.relative_to(path))))
    if found:
        *_, error, name = min(found)
        return error, name
    if events and events[-1].get("event") == "diverged":
        return f"the loss of step {events[-1].get('step')} was NaN or infinite", "events.jsonl"
    return "", ""


def _is_locked(run: RunDirectory, locked: set[tuple[str, int]]) -> bool:
    """Returns whether a process is training in a run: by its lock on this host, by its last write on another."""
    try:
        status = run.lock_file.stat()
    except OSError:
        return False
    own = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    # Overlay and network file systems have anonymous device numbers (major 0), which differ from those in /proc/locks.
    if any(inode == status.st_ino and (device == own or device.startswith("00:")) for device, inode in locked):
        return True
    if read_json_object(run.environment).get("host") in (None, platform.node()):
        return False
    times = [file.stat().st_mtime for file in (run.metrics, run.events) if file.exists()]
    return abs(time.time() - max(times, default=0.0)) < _ACTIVE_SECONDS  # the clocks may differ


def _locked_files() -> set[tuple[str, int]]:
    """Returns device and inode of every file locked on this host; empty without Linux' /proc/locks."""
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
