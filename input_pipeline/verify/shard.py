"""Verification of one shard, in a worker process.

A record is readable if its frame can be parsed. After a damaged frame header the index gives the start of the next
record; without an index the rest of the shard is unreadable.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping

import numpy as np

from convoy.core.finding import Severity
from convoy.core.reading import open_file
from convoy.core.remote import RemotePath
from convoy.input_pipeline.dataset.examples import Values, from_bytes, read_features
from convoy.input_pipeline.dataset.external_images import ENCODE, image_problem
from convoy.input_pipeline.dataset.index import NUM_LABELS, idx_lines, index_types, label_of, labels_of
from convoy.input_pipeline.dataset.label_sets import LabelSets
from convoy.input_pipeline.dataset.records import FOOTER_BYTES, FRAME_OVERHEAD, HEADER_BYTES, frame_length, masked_crc
from convoy.input_pipeline.dataset.storage import dataset_path, local_copy
from convoy.input_pipeline.images.kinds import not_decoded_in_training
from convoy.input_pipeline.images.pixels import refused_size
from convoy.input_pipeline.images.worker_pool import report_progress
from convoy.input_pipeline.verify.faults import INDEX, SHARD, Fault, ShardReport, ShardTask

REPAIR = "Pass --repair_index to rebuild it"

_READ_BYTES = 2**22

# Faults of records of other tools that are whole, and what to do about them.
UNSUITABLE = {
    "image-kind": ENCODE,
    "image-missing": "Name the feature with --image_key",
    "label-missing": "Name another feature with --label_key, or write the label as one integer",
}

_Features = Mapping[str, Values]
_Problem = tuple[str, str]  # code and text


def check_shard(task: ShardTask) -> ShardReport:
    """Reads every byte of a shard, decodes every image, and compares both with the task.

    Raises:
      StoppedError: the check was cancelled.
      ConvoyError: the object store fails.
    """
    check = _Check(task)
    try:
        with local_copy(dataset_path(task.path)) as local, open_file(local, buffering=0) as file:
            return check.run(file.fileno())
    except OSError as error:
        check.fault("shard-unreadable", f"cannot be read ({error.strerror})")
        return check.report(0)


class _Check:
    def __init__(self, task: ShardTask):
        self._task = task
        self._faults: list[Fault] = []
        self._types = index_types(multi_label=task.multi_label)
        self._columns: dict[str, list[int]] = {name: [] for name in self._types if name != "shard"}
        self._labels = LabelSets.of(task.index, 0) if task.multi_label and task.index else None  # of the index
        self._is_broken = False  # whether a frame could not be parsed
        self._viewed = 0  # images that are turned or transparent

    def report(self, size: int) -> ShardReport:
        return ShardReport(size, self._arrays(), tuple(self._faults), self._viewed)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: np.array(column, self._types[name]) for name, column in self._columns.items()}

    def fault(
        self,
        code: str,
        text: str,
        *,
        section: str = SHARD,
        offset: int | None = None,
        position: int | None = None,
        file: str = "",
    ) -> None:
        task = self._task
        record = None if position is None or task.first_record is None else task.first_record + position
        fix = REPAIR if section == INDEX else task.fix
        if not task.is_ours:
            fix = UNSUITABLE.get(code, fix)
        self._faults.append(
            Fault(Severity.ERROR, code, text, fix, section, task.split, file or task.name, offset, record)
        )

    def run(self, descriptor: int) -> ShardReport:
        task = self._task
        size = os.fstat(descriptor).st_size
        if task.size is not None and size != task.size:
            self.fault("shard-size", f"has {size:,} bytes; the manifest states {task.size:,}")
        elif task.sha256 and _sha256(descriptor) != task.sha256:
            self.fault("shard-checksum", "its SHA-256 differs from the manifest's")
        for offset, length, position in self._frames(descriptor, size):
            report_progress(offset)
            self._record(descriptor, offset, length, position)
        found = len(self._columns["offset"])
        if task.records is not None and found != task.records and not self._is_broken:
            self.fault("record-count", f"has {found:,} readable records; {task.records:,} are expected")
        if task.is_ours:
            self._check_idx()
        report_progress(size)
        return self.report(size)

    def _frames(self, descriptor: int, size: int) -> Iterator[tuple[int, int, int]]:
        """Yields (offset, length, position in the shard) of each record whose frame can be parsed."""
        starts = None if self._task.index is None else self._task.index["offset"]
        offset = position = 0
        while offset < size:
            if starts is not None:
                position = int(np.searchsorted(starts, offset))
            length = frame_length(os.pread(descriptor, HEADER_BYTES, offset))
            end = offset + FRAME_OVERHEAD + (length or 0)
            if length is not None and end <= size:
                if starts is not None and (position == len(starts) or starts[position] != offset):
                    self.fault("index-offset", "the index has no record here", section=INDEX, offset=offset)
                yield offset, length, position
                offset, position = end, position + 1
                continue
            code, text = "record-header", "the record's header is damaged"
            if length is not None:
                code, text = "record-truncated", f"the record should end at byte {end:,}; the file ends at {size:,}"
            self._is_broken = True
            following = [] if starts is None else starts[starts > offset][:1].tolist()
            if not following:
                text += f", so that {size - offset:,} bytes cannot be read"
            self.fault(code, text, offset=offset, position=position)
            if not following:
                return
            offset = following[0]

    def _record(self, descriptor: int, offset: int, length: int, position: int) -> None:
        record = os.pread(descriptor, length + FRAME_OVERHEAD, offset)
        payload = record[HEADER_BYTES : HEADER_BYTES + length]
        stated = int.from_bytes(record[-FOOTER_BYTES:], "little")
        labels = [] if self._task.multi_label else [-1]
        problem: _Problem | None
        if len(record) < length + FRAME_OVERHEAD or masked_crc(payload) != stated:
            problem = "record-checksum", "the record's checksum is wrong"
        else:
            labels, problem = self._content(payload, labels)
        if problem:
            self.fault(*problem, offset=offset, position=position)
        for name, value in (("offset", offset), ("length", length), ("crc", stated)):
            self._columns[name].append(value)
        self._columns["label"] += labels
        if self._task.multi_label:
            self._columns[NUM_LABELS].append(len(labels))
        index = self._task.index
        if problem or index is None or position >= len(index["offset"]) or index["offset"][position] != offset:
            return
        in_index = index["label"][position : position + 1] if self._labels is None else self._labels[position]
        for name, found, indexed in (
            ("length", length, index["length"][position]),
            ("label", _shown(labels), _shown(in_index.tolist())),
            ("crc", stated, index["crc"][position]),
        ):
            if found != indexed:
                text = f"the record has {name} {found}; the index has {indexed}"
                self.fault("index-mismatch", text, section=INDEX, offset=offset, position=position)

    def _content(self, payload: bytes, unknown: list[int]) -> tuple[list[int], _Problem | None]:
        """Returns a record's labels, `unknown` if they cannot be read, and what is wrong with the record."""
        task = self._task
        try:
            features = read_features(from_bytes(payload), len(payload))
        except ValueError as error:
            return unknown, ("record-format", f"the record is not a tf.train.Example ({error})")
        try:
            key = task.keys.label
            labels = labels_of(features, key) if task.multi_label else [label_of(features, key)]
        except ValueError as error:
            return unknown, ("label-missing", f"the record has no usable label: {error}")
        smallest, largest = (0 if task.is_ours else -1), np.inf if task.num_classes is None else task.num_classes - 1
        if outside := [label for label in labels if not smallest <= label <= largest]:
            return unknown, ("label-range", f"the record's label is {outside[0]}; there are {task.num_classes} classes")
        if task.class_names and (wrong_text := self._text_problem(features, labels)):
            return labels, wrong_text
        encoded = features.get(task.keys.image)
        if not encoded:
            return labels, ("image-missing", image_problem(features, task.keys.image))
        if problem := image_problem(features, task.keys.image):
            return labels, ("image-kind", problem)
        assert isinstance(encoded[0], bytes)  # as `image_problem` found
        if not task.is_ours:
            from convoy.input_pipeline.verify import image

            if refusal := refused_size(encoded[0]):
                return labels, ("image-undecodable", refusal)
            self._viewed += image.is_turned_or_transparent(encoded[0])
        return labels, _image_problem(encoded[0], features, strictly=task.is_ours)

    def _text_problem(self, features: _Features, labels: list[int]) -> _Problem | None:
        """Returns how a record's class names differ from those of its labels."""
        names = [self._task.class_names[label] for label in labels]
        values = features.get("image/class/text", [])
        texts = [value.decode("utf-8", "replace") for value in values if isinstance(value, bytes)]
        if texts == names:
            return None
        if self._task.multi_label:
            return "label-text", f"the record's labels {_shown(labels)} are {names}; its texts are {texts}"
        text = texts[0] if len(texts) == 1 else None
        return "label-text", f"the record's label {labels[0]} is {names[0]!r}; its text is {text!r}"

    def _check_idx(self) -> None:
        path = dataset_path(self._task.path + ".idx")
        name = self._task.name + ".idx"
        records = self._task.index if self._is_broken else self._arrays()
        if records is None:
            return
        lines = idx_lines(records)
        try:
            # No more than the expected bytes: the file may be another, large one.
            if isinstance(path, RemotePath):
                same = path.stat().st_size == len(lines) and path.read_bytes() == lines
            else:
                with open_file(path) as file:
                    same = file.read(len(lines) + 1) == lines
        except OSError as error:
            self.fault("idx-unreadable", f"cannot be read ({error.strerror})", section=INDEX, file=name)
            return
        if not same:
            self.fault("idx-mismatch", "does not match the shard's records", section=INDEX, file=name)


def _shown(labels: list[int]) -> str:
    return ", ".join(map(str, labels)) or "none"


def _sha256(descriptor: int) -> str:
    digest, offset = hashlib.sha256(), 0
    while block := os.pread(descriptor, _READ_BYTES, offset):
        report_progress(0)
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()


def _text(features: _Features, key: str) -> str | None:
    value = _single(features, key)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else None


def _single(features: _Features, key: str) -> int | float | bytes | None:
    values = features.get(key, [])
    return values[0] if len(values) == 1 else None


def _image_problem(encoded: bytes, features: _Features, *, strictly: bool) -> _Problem | None:
    """Returns why an image cannot be decoded or does not match its record; None if it is sound.

    Args:
      encoded: bytes of the image.
      features: features of its record.
      strictly: whether the record must state format, height, width and channels.
    """
    stated_format = (_text(features, "image/format") or "").lower()
    stated = {name: _single(features, f"image/{name}") for name in ("height", "width", "channels")}
    if stated_format == "raw":
        height, width, channels = stated.values()
        if (
            isinstance(height, int)
            and isinstance(width, int)
            and channels is not None
            and len(encoded) == height * width * 3
        ):
            return None
        return "image-mismatch", f"the record's {len(encoded):,} bytes of raw pixels are not {height!r} x {width!r} x 3"
    from convoy.input_pipeline.verify import image

    try:
        found_format, shape = image.decoded(encoded)
    except ValueError as error:
        if not strictly and (kind := not_decoded_in_training(encoded)):
            return "image-kind", kind
        return "image-undecodable", str(error)
    if strictly and found_format != stated_format:
        return "image-mismatch", f"the image's format is {found_format}; the record states {stated_format or 'none'}"
    for (name, value), found in zip(stated.items(), shape, strict=True):
        if value != found and (strictly or (value is not None and name != "channels")):
            return "image-mismatch", f"the image's {name} is {found}; the record states {value!r}"
    return None
