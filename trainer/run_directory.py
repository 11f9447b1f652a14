"""RUN, the run directory: where everything of a run lies, and how it is written so that a crash leaves no half file."""

import json
import os
import time
from pathlib import Path
from typing import Any

from input_pipeline.errors import DataError


class RunDirectory:
    """The paths of a run, and its small files."""

    def __init__(self, path: str | os.PathLike):
        """Names the run directory; `create` makes it."""
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.config = self.path / "config.json"
        self.dataset = self.path / "dataset.json"
        self.curves = self.path / "curves.png"
        self.result = self.path / "result.json"
        self.results_table = self.path / "results.csv"
        self.metrics = self.path / "metrics.jsonl"
        self.events = self.path / "events.jsonl"

    def create(self) -> None:
        """Makes the folder.

        Raises:
          DataError: it cannot be made or written.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"--workdir={self.path}: cannot be made ({error.strerror}). Give a folder that can be written."
            ) from None
        if not os.access(self.path, os.W_OK):
            raise DataError(f"--workdir={self.path}: cannot be written. Give a folder that can.")

    def write_json(self, path: Path, value: Any) -> None:  # noqa: ANN401 (any JSON value)
        """Writes a JSON file as a whole or not at all."""
        write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())

    def read_json(self, path: Path) -> Any:  # noqa: ANN401 (any JSON value)
        """Reads a JSON file of the run.

        Raises:
          DataError: missing or damaged.
        """
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path} is missing: {self.path} is no run directory of `convoy train`.") from None
        except ValueError as error:
            raise DataError(f"{path} is damaged ({error}). Restore it, or train into another --workdir.") from None

    def append_event(self, name: str, **details: Any) -> None:  # noqa: ANN401 (any JSON value)
        """Adds a line to events.jsonl: what happened, when (seconds since 1970), and details."""
        append_json_line(self.events, {"event": name, "time": time.time(), **details})


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that it is there as a whole or, after a crash, as it was before."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def append_json_line(path: Path, value: dict[str, Any]) -> None:
    """Adds one JSON object as a line to a file, after a newline where a crash cut the last line short."""
    with open(path, "ab+") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(value).encode() + b"\n")


def truncate_json_lines(path: Path, last_step: int) -> None:
    """Drops the lines of a JSON-lines file whose `step` lies after `last_step`, and lines that a crash cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines():
        try:
            if json.loads(line)["step"] <= last_step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    write_atomically(path, b"".join(line + b"\n" for line in kept))
