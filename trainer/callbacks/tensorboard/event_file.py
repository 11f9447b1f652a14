"""TensorBoard's event files: records are added whole, and those of steps that will be trained again are cut out.

    events = EventFile(run / "tensorboard" / "train", first_step=1)
    events.write(20, [scalar("quality/loss", 3.1)])          # `summaries` makes the values
    ...
    cut_back(run / "tensorboard" / "train", last_step=10)     # then go on in a new EventFile with first_step=11

TensorFlow's own writer tears its last record when the disk is full, and can neither tell a reader that a run has gone
back nor take anything back. A reader that is open when a run is cut back has shown the later steps already: that a file
begins with a session's start at a step is what makes it drop its points from there on.
"""

import errno
import itertools
import os
import platform
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary

from convoy.core.files import write_whole
from convoy.input_pipeline.dataset.records import FOOTER_BYTES, HEADER_BYTES, frame, frame_length

_VERSION = "brain.Event:2"
_numbers = itertools.count()


class EventFile:
    """A new event file, which is made with its first record."""

    def __init__(self, folder: Path, first_step: int):
        """Writes nothing yet.

        Args:
          folder: of the run, as TensorBoard calls it.
          first_step: what readers have seen of this run from this step on is void.
        """
        # Readers take a run's files in the order of their names.
        name = f"events.out.tfevents.{int(time.time()):010}.{platform.node()}.{os.getpid()}.{next(_numbers):04}"
        self._path = folder / name
        self._first_step = first_step
        self._described: set[str] = set()

    def write(self, step: int, values: Iterable[Summary.Value]) -> None:
        """Adds one record. It is on its way to the disk when this returns, or none of it is there.

        Args:
          step: optimizer steps done.
          values: of tags that differ; only the first of a tag keeps its metadata, which is all that readers look at.

        Raises:
          OSError: it cannot be written.
        """
        is_begun = self._path.exists() and self._path.stat().st_size > 0
        if not is_begun:  # yet, or any more: somebody may clear the folder of a run that goes on
            self._described.clear()
        now = time.time()
        event = Event(wall_time=now, step=step, summary=Summary(value=values))
        for value in event.summary.value:
            if value.tag in self._described:
                value.ClearField("metadata")
        records = [event]
        if not is_begun:
            start = Event(wall_time=now, step=self._first_step, session_log=SessionLog(status=SessionLog.START))
            records = [Event(wall_time=now, file_version=_VERSION), start, event]
            self._path.parent.mkdir(parents=True, exist_ok=True)
        _append(self._path, b"".join(frame(record.SerializeToString()) for record in records))
        self._described.update(value.tag for value in event.summary.value)


def cut_back(folder: Path, *, last_step: int, without: Collection[str] = ()) -> None:
    """Takes out of a run's event files what came after a step, and what a crash has torn.

    Args:
      folder: of the run; there need be none.
      last_step: the last one that stays.
      without: tags that do not stay whatever their step.

    Raises:
      OSError: a file cannot be read or written. Each is as it was, or cut back.
    """
    for path in sorted(folder.glob("*tfevents*")):
        content = path.read_bytes()
        kept, has_values = [], False
        for payload in _payloads(content):
            event = Event.FromString(payload)
            is_wanted = event.step <= last_step and not any(value.tag in without for value in event.summary.value)
            has_values |= is_wanted and event.HasField("summary")
            if is_wanted or not event.HasField("summary"):
                kept.append(frame(payload))
        if not has_values:
            path.unlink()
        elif sum(map(len, kept)) < len(content):
            write_whole(path, b"".join(kept))  # under a reader's feet: it keeps the old file till it has read it


def _payloads(content: bytes) -> Iterator[bytes]:
    """Yields the records' payloads up to the first that is torn, as readers do."""
    offset = 0
    while (length := frame_length(content[offset : offset + HEADER_BYTES])) is not None:
        payload = content[offset + HEADER_BYTES : offset + HEADER_BYTES + length]
        end = offset + HEADER_BYTES + length + FOOTER_BYTES
        if content[offset:end] != frame(payload):
            return
        yield payload
        offset = end


def _append(path: Path, content: bytes) -> None:
    with open(path, "ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if file.write(content) < len(content):  # the disk has become full within it
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
