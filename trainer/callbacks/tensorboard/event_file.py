"""TensorBoard event files that can be cut back to a step, and whose records are written whole or not at all.

    events = EventFile(run / "tensorboard" / "train", first_step=1)
    events.write(20, [scalar("quality/loss", 3.1)])          # values from `summaries`
    ...
    cut_back(run / "tensorboard" / "train", last_step=10)     # then continue in a new EventFile with first_step=11

TensorFlow's writer leaves a truncated record when the disk is full, and cannot remove what it wrote. A TensorBoard that
is open while a run is cut back has already shown the later steps: the session start at the beginning of the new file
makes it drop its points from that step on.
"""

import errno
import os
import platform
import re
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary

from convoy.core.files import open_own, write_whole
from convoy.core.reading import read_file
from convoy.input_pipeline.dataset.records import FOOTER_BYTES, HEADER_BYTES, frame, frame_length

_VERSION = "brain.Event:2"
_NUMBER = re.compile(r"tfevents\.(\d+)")


class EventFile:
    """A new event file, created with its first record."""

    def __init__(self, folder: Path, first_step: int):
        """Writes nothing yet; readers of `folder` drop what they have read from `first_step` on.

        Readers process the files of a run in the order of their names: this one sorts after all that are there now.
        """
        numbers = [int(match[1]) for path in folder.glob("*tfevents*") if (match := _NUMBER.search(path.name))]
        number = max([int(time.time()), *(number + 1 for number in numbers)])  # clocks can be set back
        self._path = folder / f"events.out.tfevents.{number:010}.{platform.node()}.{os.getpid()}.0000"
        self._first_step = first_step
        self._described: set[str] = set()

    def write(self, step: int, values: Iterable[Summary.Value]) -> None:
        """Adds one record, as a whole or not at all.

        Args:
          step: optimizer steps done.
          values: with different tags. Only the first value of a tag keeps its metadata: readers ignore later ones.

        Raises:
          OSError: it cannot be written.
        """
        is_begun = self._path.exists() and self._path.stat().st_size > 0
        if not is_begun:  # also if the folder was cleared during the run
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
    """Removes the records after a step, and a truncated last record, from the event files of a run.

    Args:
      folder: folder of a TensorBoard run; it need not exist.
      last_step: the last step to keep.
      without: tags to remove whatever their step.

    Raises:
      OSError: a file cannot be read or written. Each file is then either unchanged or cut back.
    """
    for path in sorted(folder.glob("*tfevents*")):
        content = read_file(path)
        kept, has_values = [], False
        for payload in _payloads(content):
            try:
                event = Event.FromString(payload)
            except DecodeError:  # as readers do, end at what is no event
                break
            is_kept = event.step <= last_step and not any(value.tag in without for value in event.summary.value)
            has_values |= is_kept and event.HasField("summary")
            if is_kept or not event.HasField("summary"):
                kept.append(frame(payload))
        if not has_values:
            try:
                path.unlink()
            except OSError:  # CIFS does not remove what a TensorBoard has open
                os.truncate(path, 0)
        elif sum(map(len, kept)) < len(content):
            write_whole(path, b"".join(kept))  # an open reader keeps the old file


def _payloads(content: bytes) -> Iterator[bytes]:
    """Yields the payloads of the records up to the first truncated or damaged one, as readers do."""
    offset = 0
    while (length := frame_length(content[offset : offset + HEADER_BYTES])) is not None:
        payload = content[offset + HEADER_BYTES : offset + HEADER_BYTES + length]
        end = offset + HEADER_BYTES + length + FOOTER_BYTES
        if content[offset:end] != frame(payload):
            return
        yield payload
        offset = end


def _append(path: Path, content: bytes) -> None:
    with open(path, "ab", buffering=0, opener=open_own) as file:
        end = file.seek(0, os.SEEK_END)
        if file.write(content) < len(content):  # the disk is full
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
