"""Readers of run directories for tests."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def result_of(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "result.json").read_text())


def events_of(workdir: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in json_lines(workdir / "events.jsonl") if event["event"] == name]


def event_names(workdir: Path) -> list[str]:
    """Returns the names of a run's events in order, without `checkpoint`."""
    return [event["event"] for event in json_lines(workdir / "events.jsonl") if event["event"] != "checkpoint"]


def steps_logged(workdir: Path, split: str) -> list[int]:
    return [line["step"] for line in json_lines(workdir / "metrics.jsonl") if line["split"] == split]


def steps_in_tensorboard(workdir: Path, split: str) -> list[int]:
    events = EventAccumulator(str(workdir / "tensorboard" / split), {"tensors": 0}, purge_orphaned_data=False).Reload()
    return [event.step for event in events.Tensors("quality/loss")]


def steps_evaluated(workdir: Path) -> list[int]:
    with open(workdir / "results.csv", newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def measured(workdir: Path, split: str) -> list[dict[str, Any]]:
    """Returns the metrics of a split without timings, which differ between runs."""
    return [
        {name: value for name, value in line.items() if not name.startswith("perf/")}
        for line in json_lines(workdir / "metrics.jsonl")
        if line["split"] == split
    ]


def approximately(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns `measured` evaluations whose metrics are compared up to rounding.

    Each device sums the metrics of its images, so that their number changes rounding.
    """
    return [
        {
            tag: pytest.approx(value, rel=1e-4, abs=1e-5) if tag.startswith(("quality/", "gap/")) else value
            for tag, value in line.items()
        }
        for line in lines
    ]


def order_of(workdir: Path, rank: int) -> dict[int, list[int]]:
    """Returns the images that a worker trained on, by step. Fails if a step was recorded twice."""
    lines = json_lines(workdir / "order" / f"worker-{rank}.jsonl")
    steps = [line["step"] for line in lines]
    assert len(set(steps)) == len(steps), f"worker {rank} recorded steps twice: {steps}"
    return {line["step"]: line["images"] for line in lines}


def fingerprints(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
