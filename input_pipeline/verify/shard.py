"""Checks one shard: the part of the verifier that runs in worker processes.

A record counts as readable when its frame can be followed. Where a frame's header is damaged, the next record is found
by the index; without one nothing behind it can be.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from convoy.input_pipeline.dataset.examples import from_bytes, read_features
from convoy.input_pipeline.dataset.index import INDEX_TYPES, label_of
from convoy.input_pipeline.dataset.records import FOOTER_BYTES, FRAME_OVERHEAD, HEADER_BYTES, frame_length, masked_crc
from convoy.input_pipeline.images.worker_pool import report_progress
from convoy.input_pipeline.verify.faults import INDEX, SHARD, Fault, ShardReport, ShardTask

REPAIR = "--repair_index mends it"

_READ_BYTES = 2**22
_COLUMNS = tuple(name for name in INDEX_TYPES if name != "shard")


def check_shard(task: ShardTask) -> ShardReport:
    """Reads every byte of a shard, decodes every image, and compares with all that is said about them.

    Raises:
      StoppedError: the check was given up.
    """
    check = _Check(task)
    try:
        descriptor = os.open(task.path, os.O_RDONLY)
    except OSError as error:
        check.fault(f"cannot be read ({error.strerror})")
        return check.report(0)
    try:
        return check.whole(descriptor)
    except OSError as error:
        check.fault(f"cannot be read ({error.strerror})")
        return check.report(0)
    finally:
        os.close(descriptor)


class _Check:
    def __init__(self, task: ShardTask):
        self._task = task
        self._faults: list[Fault] = []
        self._columns: dict[str, list[int]] = {name: [] for name in _COLUMNS}
        self._is_broken = False  # whether a frame could not be followed

    def report(self, size: int) -> ShardReport:
        records = {name: np.array(column, INDEX_TYPES[name]) for name, column in self._columns.items()}
        return ShardReport(size, records, tuple(self._faults))

    def fault(
        self, problem: str, *, kind: str = SHARD, offset: int | None = None, position: int | None = None, file: str = ""
    ) -> None:
        task = self._task
        known = position is not None and task.first_record is not None
        record = task.first_record + position if known else None
        fix = REPAIR if kind == INDEX else task.fix
        self._faults.append(Fault(kind, task.split, file or task.name, problem, fix, offset, record))

    def whole(self, descriptor: int) -> ShardReport:
        task = self._task
        size = os.fstat(descriptor).st_size
        if task.size is not None and size != task.size:
            self.fault(f"has {size:,} bytes and the manifest says {task.size:,}")
        elif task.sha256 and _sha256(descriptor) != task.sha256:
            self.fault("its SHA-256 is not the manifest's: bytes were changed")
        for offset, length, position in self._frames(descriptor, size):
            report_progress(offset)
            self._record(descriptor, offset, length, position)
        found = len(self._columns["offset"])
        if task.records is not None and found != task.records and not self._is_broken:
            self.fault(f"{found:,} of its records can be found, and it should hold {task.records:,}")
        if task.is_ours:
            self._check_idx()
        report_progress(size)
        return self.report(size)

    def _frames(self, descriptor: int, size: int) -> Iterator[tuple[int, int, int]]:
        """Yields (offset, length, position in the shard) of the records that can be followed."""
        starts = None if self._task.index is None else self._task.index["offset"]
        offset = position = 0
        while offset < size:
            if starts is not None:
                position = int(np.searchsorted(starts, offset))
            length = frame_length(os.pread(descriptor, HEADER_BYTES, offset))
            problem = ""
            if length is None:
                problem = "the record's header is damaged"
            elif offset + length + FRAME_OVERHEAD > size:
                end = offset + length + FRAME_OVERHEAD
                problem = f"the record should end at byte {end:,} and the file ends at {size:,}"
            elif starts is not None and (position == len(starts) or starts[position] != offset):
                self.fault("the index has no record here", kind=INDEX, offset=offset)
            if not problem:
                yield offset, length, position
                offset += length + FRAME_OVERHEAD
                position += 1
                continue
            self._is_broken = True
            following = None if starts is None else int(np.searchsorted(starts, offset, side="right"))
            if following is None or following == len(starts):
                unread = f", so that {size - offset:,} bytes cannot be read"
                self.fault(problem + unread, offset=offset, position=position)
                return
            self.fault(problem, offset=offset, position=position)
            offset = int(starts[following])

    def _record(self, descriptor: int, offset: int, length: int, position: int) -> None:
        record = os.pread(descriptor, length + FRAME_OVERHEAD, offset)
        payload = record[HEADER_BYTES : HEADER_BYTES + length]
        stated = int.from_bytes(record[-FOOTER_BYTES:], "little")
        label = -1
        if len(record) < length + FRAME_OVERHEAD or masked_crc(payload) != stated:
            problem = "its bytes do not give its checksum"
        else:
            label, problem = self._content(payload)
        if problem:
            self.fault(f"the record: {problem}", offset=offset, position=position)
        for name, value in zip(_COLUMNS, (offset, length, label, stated), strict=True):
            self._columns[name].append(value)
            index = self._task.index
            if problem or index is None or position >= len(index[name]) or index["offset"][position] != offset:
                continue
            if index[name][position] != value:
                self.fault(
                    f"the record has {name} {value} and the index says {index[name][position]}",
                    kind=INDEX,
                    offset=offset,
                    position=position,
                )

    def _content(self, payload: bytes) -> tuple[int, str]:
        """Returns the label of a record, and what is wrong with it or nothing."""
        task, label = self._task, -1
        try:
            features = read_features(from_bytes(payload), len(payload))
            label = label_of(features, task.keys.label)
        except ValueError as error:
            return label, f"it is whole and no Example with a label ({error})"
        if label < (0 if task.is_ours else -1) or (task.num_classes is not None and label >= task.num_classes):
            return -1, f"its label is {label} of {task.num_classes} classes"
        if task.class_names and _text(features, "image/class/text") != task.class_names[label]:
            text = _text(features, "image/class/text")
            return label, f"its label {label} is {task.class_names[label]!r} and its text {text!r}"
        encoded = features.get(task.keys.image)
        if not encoded or len(encoded) != 1 or not isinstance(encoded[0], bytes):
            return label, f"it has no {task.keys.image!r}"
        return label, _image_problem(encoded[0], features, strictly=task.is_ours)

    def _check_idx(self) -> None:
        path = Path(self._task.path + ".idx")
        name = self._task.name + ".idx"
        records = self._task.index if self._is_broken else self._columns
        if records is None:
            return
        lines = idx_lines(records["offset"], records["length"])
        try:
            # No more than it should hold: another file may stand in its place.
            with open(path, "rb") as file:
                same = file.read(len(lines) + 1) == lines
        except OSError as error:
            self.fault(f"cannot be read ({error.strerror})", kind=INDEX, file=name)
            return
        if not same:
            self.fault("does not say where the shard's records are", kind=INDEX, file=name)


def idx_lines(offsets: list[int] | np.ndarray, lengths: list[int] | np.ndarray) -> bytes:
    """Returns the .idx of a shard: "offset size" a line, sizes of whole frames."""
    pairs = zip(np.asarray(offsets).tolist(), np.asarray(lengths).tolist(), strict=True)
    return "".join(f"{offset} {length + FRAME_OVERHEAD}\n" for offset, length in pairs).encode("ascii")


def _sha256(descriptor: int) -> str:
    digest, offset = hashlib.sha256(), 0
    while block := os.pread(descriptor, _READ_BYTES, offset):
        report_progress(0)
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()


def _text(features: dict[str, list], key: str) -> str | None:
    value = _single(features, key)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else None


def _single(features: dict[str, list], key: str) -> int | float | bytes | None:
    values = features.get(key, [])
    return values[0] if len(values) == 1 else None


def _image_problem(encoded: bytes, features: dict[str, list], *, strictly: bool) -> str:
    """Says why an image cannot be decoded, or is not what its record says; nothing where all is well.

    Args:
      encoded: the image.
      features: of its record.
      strictly: whether the record must say format, height, width and channels.
    """
    stated_format = (_text(features, "image/format") or "").lower()
    stated = {name: _single(features, f"image/{name}") for name in ("height", "width", "channels")}
    if stated_format == "raw":
        wanted = f"{stated['height']} x {stated['width']} x 3"
        is_so = None not in stated.values() and len(encoded) == stated["height"] * stated["width"] * 3
        return "" if is_so else f"{len(encoded):,} bytes of raw pixels are not {wanted}"
    from convoy.input_pipeline.verify import image

    try:
        found_format, shape = image.decoded(encoded)
    except ValueError as error:
        return str(error)
    if strictly and found_format != stated_format:
        return f"its format is {found_format} and the record says {stated_format or 'nothing'}"
    for (name, said), found in zip(stated.items(), shape, strict=True):
        if said != found and (strictly or (said is not None and name != "channels")):
            return f"its {name} is {found} and the record says {said}"
    return ""
