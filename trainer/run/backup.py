"""A copy of RUN in an object store, from which another machine resumes the run.

    backup = Backup(RemotePath("s3://bucket/run"), run)
    backup.restore()      # fills an empty RUN; refuses another run, or one that is further ahead
    backup.upload()       # what has changed since the last time

`backup.json` has the run and its complete checkpoints. It is written after the checkpoints that it lists, and before
those that it no longer lists are deleted: whatever is interrupted, what it lists is there. All other files are uploaded
before a checkpoint, so that they are never behind it.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from convoy.core.errors import DataError, UsageError
from convoy.core.files import PARTIAL_SUFFIX
from convoy.core.reading import parsed_json, read_file
from convoy.core.remote import PARALLEL_UPLOADS, RemotePath, download_folder, in_parallel, is_remote, upload
from convoy.core.run_layout import RunLayout, checkpoint_step
from convoy.core.text import counted, megabytes

MARKER = "backup.json"
_FORMAT = 1

_logger = logging.getLogger("convoy")


class _Content(NamedTuple):
    """What `backup.json` states: the run (`_run_of`), and the complete checkpoints, sizes by path in RUN."""

    run: str
    checkpoints: dict[str, int]

    @property
    def step(self) -> int:
        """Step of the latest checkpoint; 0 without one."""
        return _latest(self.checkpoints)


class Backup:
    """The copy of a run directory. One process writes it, the chief.

    Attributes:
      target: where it is.
    """

    def __init__(self, target: RemotePath, layout: RunLayout):
        """Args: target: directory in the store, of this run only. layout: the run directory."""
        self.target = target
        self._layout = layout
        self._unfinished = layout.path / f"{MARKER}{PARTIAL_SUFFIX}"  # while RUN is being restored
        self._uploaded: dict[str, tuple[int, int]] = {}  # size and modification time of what is in the store
        self._has_begun = False

    def restore(self) -> None:
        """Downloads the backup into RUN if no run has begun there, or if that was interrupted; else compares the two.

        Raises:
          UsageError: the target has files, and none is a backup's.
          DataError: it has another run than RUN, or is further ahead, or is damaged; or RUN cannot be written.
          ConvoyError: the store fails.
        """
        found = self._content()
        if not found:
            if files := self.target.files():
                raise UsageError(
                    f"--backup={self.target}: has {counted(len(files), 'file')}, and no {MARKER} of a backup. Pass an "
                    "empty or a new directory."
                )
            return
        path, run, step = self._layout.path, _run_of(self._layout), _latest(self._files())
        if self._unfinished.exists() or (not run and not step):
            _logger.info("Restoring %s from %s: step %d.", path, self.target, found.step)
            self.download()
        elif run != found.run:
            raise DataError(
                f"--backup={self.target}: has another run, at step {found.step}, than --workdir={path}, at step {step}."
                " Pass another --backup for this run, or a new --workdir to resume the other one."
            )
        elif found.step > step:
            raise DataError(
                f"--backup={self.target}: is at step {found.step} of this run, and --workdir={path} only at step {step}"
                ". Move --workdir away to resume from the backup, or pass another --backup to resume from --workdir."
            )

    def download(self) -> None:
        """Downloads all files into RUN. Raises as `restore`."""
        found = self._content()
        files = {name: size for name, size in self.target.files().items() if name != MARKER}
        checkpoints = found.checkpoints if found else {}
        if wrong := next((name for name in files if os.path.isabs(name) or ".." in name.split("/")), None):
            raise DataError(f"--backup={self.target}: {wrong!r} is not a file of a run. Delete it.")
        if missing := checkpoints.keys() - files.keys():
            raise DataError(f"--backup={self.target}: {min(missing)} is missing. Restore it, or pass another --backup.")
        others = {name: size for name, size in files.items() if not _is_checkpoint(name)}
        try:
            self._layout.path.mkdir(parents=True, exist_ok=True)
            self._unfinished.touch()
            download_folder(self.target, self._layout.path, others | checkpoints)
            self._unfinished.unlink()
        except OSError as error:
            raise DataError(
                f"--workdir={self._layout.path}: cannot be restored from {self.target} ({error.strerror or error}). "
                "Free space, or pass a writable folder."
            ) from None
        self._uploaded = {name: now for name, now in self._files().items() if name in files}

    def pending(self) -> dict[str, int]:
        """Returns the files that `upload` would upload, sizes by path in RUN."""
        return {name: now[0] for name, now in self._files().items() if self._uploaded.get(name) != now}

    def upload(self) -> None:
        """Uploads what has changed, and deletes what RUN no longer has.

        Before the event `start` there is nothing to upload.

        Raises:
          OSError: a file cannot be read.
          ConvoyError: the store fails. What is missing is uploaded the next time.
        """
        run = _run_of(self._layout)
        if not run:
            return
        if not self._has_begun:
            if not self._content():
                self._write_content(_Content(run, {}))
            self._has_begun = True
        files = self._files()
        pending = [name for name, now in files.items() if self._uploaded.get(name) != now]

        def send(name: str) -> None:
            try:
                upload(self._layout.path / name, self.target / name)
                self._uploaded[name] = files[name]
            except FileNotFoundError:
                if (self._layout.path / name).exists():
                    raise
                files.pop(name)  # deleted meanwhile

        in_parallel(send, [name for name in pending if not _is_checkpoint(name)], PARALLEL_UPLOADS)
        for name in filter(_is_checkpoint, pending):
            send(name)
        checkpoints = {name: size for name, (size, _) in files.items() if _is_checkpoint(name)}
        if pending or self._uploaded.keys() - files.keys():
            self._write_content(_Content(run, checkpoints))
            for name in self.target.files().keys() - files.keys() - {MARKER}:
                (self.target / name).unlink()
            self._uploaded = {name: now for name, now in self._uploaded.items() if name in files}

    def _files(self) -> dict[str, tuple[int, int]]:
        """Returns size and modification time of RUN's files by path, checkpoints in the order of their steps.

        Left out are the lock, unfinished files, and what a launcher writes on this machine.
        """
        found = {}
        root = self._layout.path
        left_out = {self._layout.lock_file, self._layout.launch}
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if root / name != self._layout.logs)
            for name in sorted(names):
                path = root / os.path.relpath(folder, root) / name
                if path in left_out or name.endswith(PARTIAL_SUFFIX):
                    continue
                try:
                    status = path.stat()
                except FileNotFoundError:  # deleted meanwhile
                    continue
                found[path.relative_to(root).as_posix()] = (status.st_size, status.st_mtime_ns)
        return found

    def _content(self) -> _Content | None:
        path = self.target / MARKER
        try:
            content = parsed_json(path.read_bytes())
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}")
            checkpoints = {str(name): int(size) for name, size in content["checkpoints"].items()}
            return _Content(str(content["run"]), checkpoints)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: damaged ({error}). Restore it, or pass another --backup.") from None

    def _write_content(self, content: _Content) -> None:
        text = json.dumps({"format": _FORMAT, **content._asdict(), "step": content.step}, indent=2)
        (self.target / MARKER).write_bytes(f"{text}\n".encode())


def backup_target(text: str) -> RemotePath | None:
    """Returns the directory that `--backup` names; None for "". Raises a UsageError if it is not a URL."""
    if text and not is_remote(text):
        raise UsageError(f"--backup={text}: pass a directory in an object store, such as s3://bucket/run.")
    return RemotePath(text.rstrip("/")) if text else None


def describe(files: Mapping[str, int]) -> str:
    """Returns number and size of files, sizes by name, as text."""
    return f"{counted(len(files), 'file')} ({megabytes(sum(files.values()))})"


def _is_checkpoint(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return folder == "checkpoints" and checkpoint_step(file) is not None


def _latest(files: Mapping[str, Any]) -> int:
    return max((checkpoint_step(name.rpartition("/")[2]) or 0 for name in files if _is_checkpoint(name)), default=0)


def _run_of(layout: RunLayout) -> str:
    """Returns what identifies a run: a digest of its first `start` event, which states the time; "" without one."""
    try:
        lines = read_file(layout.events).splitlines()
    except OSError:
        return ""
    for line in lines:
        try:
            if parsed_json(line)["event"] == "start":
                return hashlib.sha256(line).hexdigest()[:16]
        except (ValueError, KeyError, TypeError):
            continue
    return ""
