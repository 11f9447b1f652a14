"""Checkpoints: one file each, named by its step, holding every variable under its name.

    store = CheckpointStore(run.checkpoints, keep=3)
    store.save(state.values(), step=120, metadata={...}, score=0.61)
    found = store.latest()             # the newest that is whole
    values, metadata = store.load(found)

A checkpoint is NumPy's `.npz` (a plain zip whose members carry a CRC-32 that reading checks), written under another
name, flushed to disk and renamed. So it is there as a whole or not at all, needs no pointer file, and any tool that
reads NumPy opens it.
"""

import io
import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.errors import DataError

_NAME = re.compile(r"step-(\d{9})\.npz")
_METADATA = "metadata.json"
_BEST = "best.json"


class CheckpointStore:
    """The checkpoints of a run: the last `keep`, and the best."""

    def __init__(self, folder: Path, keep: int = 3):
        """Args: folder: RUN/checkpoints. keep: how many of the newest stay, 1 or more."""
        self.folder = folder
        self._keep = keep

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints that are there, rising."""
        if not self.folder.is_dir():
            return []
        return sorted(int(match[1]) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name)))

    def latest(self) -> int | None:
        """Returns the newest step, or None."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """Returns the step with the best score so far, or None where none was scored."""
        record = self._best_record()
        return record["step"] if record and record["step"] in self.steps() else None

    def best_score(self) -> float | None:
        """Returns the best score so far, or None where none was scored."""
        record = self._best_record()
        return record["score"] if record else None

    def save(self, values: Mapping[str, np.ndarray], *, step: int, metadata: Mapping[str, Any]) -> Path:
        """Writes a checkpoint and lets go of those that are neither among the newest nor the best.

        Args:
          values: every variable by name.
          step: updates done.
          metadata: any JSON data; `step` is added.

        Returns:
          Its path.

        Raises:
          DataError: it cannot be written; older ones stay.
        """
        path = self._path(step)
        partial = path.with_name(f".{path.name}.partial")
        try:
            self._write(partial, values, {**metadata, "step": step})
            os.replace(partial, path)
            _sync_folder(self.folder)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise DataError(
                f"checkpoint {path} cannot be written ({error.strerror}). Older ones are untouched."
            ) from error
        self._prune()
        return path

    def mark_best(self, step: int, score: float) -> bool:
        """Remembers `step` as the best where `score` is above all before it; returns whether. Goes before `save`.

        A record of this step or a later one does not count: the run was killed before that checkpoint was saved, or
        went back behind one that was damaged.
        """
        best = self._best_record()
        if best and best["step"] < step and score <= best["score"]:
            return False
        partial = self.folder / f".{_BEST}.partial"
        partial.write_text(json.dumps({"step": step, "score": score}))
        os.replace(partial, self.folder / _BEST)
        return True

    def load(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Returns a checkpoint's variables by name and its metadata.

        Raises:
          DataError: missing, cut short or damaged.
        """
        path = self._path(step)
        try:
            with zipfile.ZipFile(path) as archive:
                metadata = json.loads(archive.read(_METADATA))
                names = [name for name in archive.namelist() if name != _METADATA]
                values = {name.removesuffix(".npy"): _read_array(archive, name) for name in names}
        except FileNotFoundError:
            raise DataError(f"checkpoint {path} is missing. There are: {self.steps() or 'none'}.") from None
        except Exception as error:  # a flipped bit can make zipfile and NumPy throw almost anything
            raise DataError(
                f"checkpoint {path} is damaged ({error}). Delete it to go on from the one before."
            ) from error
        return values, metadata

    def _write(self, path: Path, values: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
        with open(path, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name, value in values.items():
                    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, np.asarray(value), allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(_METADATA), json.dumps(metadata))
            file.flush()
            os.fsync(file.fileno())

    def _prune(self) -> None:
        steps = self.steps()
        kept = {*steps[-self._keep :], self.best()}
        for step in steps:
            if step not in kept:
                self._path(step).unlink(missing_ok=True)
        for leftover in self.folder.glob(".step-*.partial"):
            leftover.unlink(missing_ok=True)

    def _best_record(self) -> dict[str, Any] | None:
        try:
            record = json.loads((self.folder / _BEST).read_text())
            return {"step": int(record["step"]), "score": float(record["score"])}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}.npz"


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    # Reading the member to its end is what checks its CRC.
    return np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
