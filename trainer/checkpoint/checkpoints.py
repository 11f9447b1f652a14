"""Checkpoints: one `.npz` file per step, with every variable under its name.

    store = CheckpointStore(run.checkpoints, keep=3)
    store.save(state.values(), step=120, metadata={...}, score=0.61)
    values, metadata = store.load(120)
    load_latest_valid(store)                     # skips damaged files

NumPy's `.npz` is a plain zip whose members carry a CRC-32, which is checked on reading. A checkpoint is written under a
temporary name, flushed to disk and renamed, so it is either complete or absent. The latest and the best checkpoint are
determined from the files themselves; there is no index file.
"""

import contextlib
import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convoy.core.errors import DataError
from convoy.core.files import PARTIAL_SUFFIX, json_value, sync_folder, written_whole
from convoy.core.npz import opened, read_array
from convoy.core.reading import parsed_json
from convoy.core.run_layout import checkpoint_name, checkpoint_step

_METADATA = "metadata.json"

_logger = logging.getLogger("convoy")

Checkpoint = tuple[dict[str, np.ndarray], dict[str, Any]]  # variables by name, metadata


class DamagedError(DataError):
    """A checkpoint file is readable, but its content is corrupt."""


class CheckpointStore:
    """The checkpoints of a run: the latest `keep` and the best."""

    def __init__(self, folder: Path, keep: int = 3):
        """Creates a store; the folder need not exist yet.

        Args:
          folder: RUN/checkpoints.
          keep: number of latest checkpoints to keep, 1 or more.
        """
        self.folder = folder
        self._keep = keep

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoint files, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(step for path in self.folder.iterdir() if (step := checkpoint_step(path.name)) is not None)

    def latest(self) -> int | None:
        """Returns the latest step, valid or not, or None."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """Returns the step with the best score, or None if no checkpoint has one.

        Ties go to the later step: with few validation images ties are common, and later weights, trained at a lower
        learning rate, tend to be better.
        """
        scores = self._scores()
        return max(scores, key=lambda step: (scores[step], step), default=None)

    def chosen(self) -> int | None:
        """Returns the best step, or the latest if none has a score; reports damaged files, of which one may be it."""
        for step in self.steps():
            try:
                self._score(step)
            except FileNotFoundError:
                pass  # a run that goes on has deleted it
            except Exception as error:  # as in `load`
                _logger.warning("checkpoint %s: damaged (%s). It is not considered.", self.path(step), error)
        return self.best() or self.latest()

    def best_score(self) -> float | None:
        """Returns the best score, or None if no checkpoint has one."""
        return max(self._scores().values(), default=None)

    def save(
        self, values: Mapping[str, np.ndarray], *, step: int, metadata: Mapping[str, Any], score: float | None = None
    ) -> Path:
        """Writes a checkpoint, then deletes those that are neither among the latest nor the best.

        Checkpoints of later steps are deleted too: they belong to a history that this run has rolled back.

        Args:
          values: every variable by name.
          step: number of updates applied.
          metadata: JSON data; `step` and `score` are added.
          score: ranks checkpoints for `best`, higher is better; None if these weights were not evaluated.

        Returns:
          The checkpoint's path.

        Raises:
          DataError: it cannot be written; older checkpoints are kept.
        """
        path = self.path(step)
        try:
            with written_whole(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name, value in values.items():
                    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, np.asarray(value), allow_pickle=False)
                text = json.dumps(json_value({**metadata, "step": step, "score": score}))
                archive.writestr(zipfile.ZipInfo(_METADATA), text)
            sync_folder(self.folder)
            self._drop_later(step)
        except OSError as error:
            raise DataError(
                f"checkpoint {path}: cannot be written ({error.strerror}). Older checkpoints are kept."
            ) from error
        self._prune()
        return path

    def load(self, step: int) -> Checkpoint:
        """Returns a checkpoint's variables by name and its metadata.

        Raises:
          DamagedError: the file is truncated or corrupt.
          DataError: the file is missing or unreadable.
        """
        path = self.path(step)
        try:
            with opened(path) as archive:
                metadata = _read_metadata(archive)
                names = [name.removesuffix(".npy") for name in archive.namelist() if name != _METADATA]
                values = {name: read_array(archive, name) for name in names}
        except FileNotFoundError:
            raise DataError(f"checkpoint {path}: no such file. Existing steps: {self.steps() or 'none'}.") from None
        except MemoryError:
            raise
        except Exception as error:  # a flipped bit can make zipfile and NumPy raise almost anything
            if isinstance(error, OSError) and error.strerror:  # from the system, not from zipfile
                raise DataError(f"checkpoint {path}: cannot be read ({error.strerror}).") from error
            raise DamagedError(f"checkpoint {path}: damaged ({error}).") from error
        return values, metadata

    def _scores(self) -> dict[int, float]:
        scores = {}
        for step in self.steps():
            with contextlib.suppress(Exception):  # as in `load`; an unreadable checkpoint cannot be the best
                if (score := self._score(step)) is not None:
                    scores[step] = float(score)
        return scores

    def _score(self, step: int) -> float | None:
        with opened(self.path(step)) as archive:
            return _read_metadata(archive)["score"]

    def _drop_later(self, newest: int) -> None:
        for step in self.steps():
            if step > newest:
                self.path(step).unlink(missing_ok=True)

    def _prune(self) -> None:
        steps = self.steps()
        unused = [self.path(step) for step in set(steps) - {*steps[-self._keep :], self.best()}]
        for path in (*unused, *self.folder.glob(f"step-*{PARTIAL_SUFFIX}")):
            with contextlib.suppress(OSError):  # CIFS removes nothing that is open: the next save tries again
                path.unlink()

    def path(self, step: int) -> Path:
        """Returns the file of a checkpoint, whether it exists or not."""
        return self.folder / checkpoint_name(step)


def load_latest_valid(store: CheckpointStore, *, before: int | None = None) -> Checkpoint | None:
    """Returns the latest valid checkpoint, or None if there are no checkpoints. Reports damaged ones on stderr.

    Args:
      store: the run's checkpoints.
      before: consider only checkpoints of earlier steps than this one.

    Raises:
      DataError: there are checkpoints, but all are damaged.
    """
    damaged = False
    for step in reversed([step for step in store.steps() if before is None or step < before]):
        try:
            return store.load(step)
        except DamagedError as error:
            damaged = True
            _logger.warning("%s", error)
    if damaged:
        raise DataError(
            f"{store.folder}: all checkpoints are damaged. Restore one from a backup, or start over in another "
            "--workdir."
        )
    return None


def _read_metadata(archive: zipfile.ZipFile) -> dict[str, Any]:
    return parsed_json(archive.read(_METADATA))
