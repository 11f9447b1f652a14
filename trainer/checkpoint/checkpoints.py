"""Checkpoints: one file each, named by its step, holding every variable under its name.

    store = CheckpointStore(run.checkpoints, keep=3)
    store.save(state.values(), step=120, metadata={...}, score=0.61)
    for step in reversed(store.steps()):
        values, metadata = store.load(step)      # DamagedError: try the one before

A checkpoint is NumPy's `.npz` (a plain zip whose members carry a CRC-32 that reading checks), written under another
name, flushed to disk and renamed. So it is there as a whole or not at all; which is the newest and which the best is
read off the files themselves, and any tool that reads NumPy opens them.
"""

import io
import json
import os
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convoy.core.errors import DataError
from convoy.core.files import PARTIAL_SUFFIX, json_value, written_whole
from convoy.core.run_layout import checkpoint_name, checkpoint_step

_METADATA = "metadata.json"


class DamagedError(DataError):
    """A checkpoint that can be read but is not what was written."""


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
        return sorted(step for path in self.folder.iterdir() if (step := checkpoint_step(path.name)) is not None)

    def latest(self) -> int | None:
        """Returns the newest step, whole or not, or None."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """Returns the step with the best score, or None where none was scored.

        The last of equals: with few validation images many are, and a learning rate that falls makes later ones better.
        """
        scores = self._scores()
        return max(scores, key=lambda step: (scores[step], step), default=None)

    def best_score(self) -> float | None:
        """Returns the best score, or None where none was scored."""
        return max(self._scores().values(), default=None)

    def save(
        self, values: Mapping[str, np.ndarray], *, step: int, metadata: Mapping[str, Any], score: float | None = None
    ) -> Path:
        """Writes a checkpoint and lets go of those that are neither among the newest nor the best.

        Those of later steps go too: this run has gone back behind them, since they could not be read.

        Args:
          values: every variable by name.
          step: updates done.
          metadata: any JSON data; `step` and `score` are added.
          score: what `best` goes by, higher is better; None where these weights were not evaluated.

        Returns:
          Its path.

        Raises:
          DataError: it cannot be written; older ones stay.
        """
        path = self._path(step)
        try:
            with written_whole(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name, value in values.items():
                    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, np.asarray(value), allow_pickle=False)
                text = json.dumps(json_value({**metadata, "step": step, "score": score}))
                archive.writestr(zipfile.ZipInfo(_METADATA), text)
            _sync_folder(self.folder)
        except OSError as error:
            raise DataError(
                f"checkpoint {path} cannot be written ({error.strerror}). Older ones are untouched."
            ) from error
        self._prune(step)
        return path

    def load(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Returns a checkpoint's variables by name and its metadata.

        Raises:
          DamagedError: cut short, or a bit has flipped.
          DataError: missing, or cannot be read at all.
        """
        path = self._path(step)
        try:
            with zipfile.ZipFile(path) as archive:
                metadata = json.loads(archive.read(_METADATA))
                names = [name for name in archive.namelist() if name != _METADATA]
                values = {name.removesuffix(".npy"): _read_array(archive, name) for name in names}
        except FileNotFoundError:
            raise DataError(f"checkpoint {path} is missing. There are: {self.steps() or 'none'}.") from None
        except MemoryError:
            raise
        except Exception as error:  # a flipped bit can make zipfile and NumPy throw almost anything
            if isinstance(error, OSError) and error.strerror:  # the system's word, not zipfile's
                raise DataError(f"checkpoint {path} cannot be read ({error.strerror}).") from error
            raise DamagedError(f"checkpoint {path} is damaged ({error}).") from error
        return values, metadata

    def _scores(self) -> dict[int, float]:
        scores = {}
        for step in self.steps():
            try:
                with zipfile.ZipFile(self._path(step)) as archive:
                    score = json.loads(archive.read(_METADATA))["score"]
            except Exception:  # as in `load`; a checkpoint that cannot be read is nobody's best
                continue
            if score is not None:
                scores[step] = float(score)
        return scores

    def _prune(self, newest: int) -> None:
        for step in self.steps():
            if step > newest:
                self._path(step).unlink(missing_ok=True)
        steps = self.steps()
        for step in set(steps) - {*steps[-self._keep :], self.best()}:
            self._path(step).unlink(missing_ok=True)
        for leftover in self.folder.glob(f"step-*{PARTIAL_SUFFIX}"):
            leftover.unlink(missing_ok=True)

    def _path(self, step: int) -> Path:
        return self.folder / checkpoint_name(step)


def newest_whole(
    store: CheckpointStore, *, before: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Returns the newest checkpoint that is whole, None where there is none at all; says which ones are not.

    Args:
      store: where to look.
      before: only checkpoints of earlier steps than this.

    Raises:
      DataError: there are some, and none is whole.
    """
    damaged: DamagedError | None = None
    for step in reversed([step for step in store.steps() if before is None or step < before]):
        try:
            return store.load(step)
        except DamagedError as error:
            damaged = error
            print(f"convoy: {error}", file=sys.stderr)
    if damaged:
        raise DataError(f"no checkpoint in {store.folder} is whole. Restore one, or start anew in another --workdir.")
    return None


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    # Reading the member to its end is what checks its CRC.
    return np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
