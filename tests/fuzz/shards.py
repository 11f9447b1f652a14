"""Data directories: what is read after one file of a small dataset is damaged is unharmed, or a message names a file.

A case damages a shard, an index, or a file that describes the dataset. In some the manifest states the new size or an
index is missing, so that the next check has to find the damage. Memory is limited, so that no damaged length is
trusted.
"""

import contextlib
import io
import json
import random
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convoy.core.errors import DataError
from convoy.input_pipeline.dataset import records
from convoy.input_pipeline.dataset.index import INDEX_TYPES
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.verify import image
from convoy.input_pipeline.verify import verify as verifier
from convoy.input_pipeline.verify.shard import check_shard
from tests.fuzz.runner import ANNOUNCED, FAULT, UNHARMED, Outcome, refused
from tests.input_pipeline.datasets import encode, read_payloads, write_dataset
from tests.input_pipeline.images import pixels

_SHARDS = tuple(f"made-{split}.tfrecord-0000{n}-of-00002" for split in ("train", "validation") for n in (0, 1))
_INDEXES = ("index-train.npz", f"{_SHARDS[0]}.idx")
_DESCRIPTIONS = ("manifest.json", "dataset_info.json", "features.json", "image.class.label.labels.txt")
_EXTERNAL, _KEPT_INDEX = "external/train.tfrecord", "external/.convoy/index-train.npz"
_TARGETS = (*_SHARDS * 2, *_INDEXES * 2, *_DESCRIPTIONS, "dataset_info.json alone", *(_EXTERNAL, _KEPT_INDEX) * 2)
_LENGTHS = (0, 1, 2**31, 2**60, 2**62, 2**63, 2**64 - 1)
_VALUES = (
    *(None, True, -1, 0, 1.5, 2**31, 2**60, 2**62, 2**64, 10**12, 1e308, [], {}, [[]], [None]),
    *("", "..", "../..", "/etc/passwd", "\0", "x" * 300, "\x1b[2J", "a\nb"),
)


class Case(NamedTuple):
    """A damaged file and its bytes, whether the manifest states their number, and whether an index is removed."""

    target: str
    damage: str
    content: bytes
    manifest_follows: bool = False
    without_index: bool = False


class Subject:
    def __init__(self, folder: Path):
        images = [pixels(number, size=6) for number in range(9)]
        splits = {"train": images[:6], "validation": images[6:]}
        self._whole, self._data = folder / "whole", folder / "data"
        write_dataset(self._whole, splits, ("cup", "fork", "jar"))
        other = folder / "other"
        write_dataset(other, {"train": [pixels(number + 50, size=6) for number in range(6)]}, ("cup", "fork", "jar"))
        self._other = {path.name: path.read_bytes() for path in other.iterdir()}
        (self._whole / "external").mkdir()
        shutil.copy(self._whole / _SHARDS[0], self._whole / _EXTERNAL)
        self._files = {path.name: path.read_bytes() for path in self._whole.iterdir() if path.is_file()}
        self._files[_EXTERNAL] = self._files[_SHARDS[0]]
        self._original = {name: _read(self._whole, name) for name in splits}
        external_split = _read(self._whole / "external", "train")
        self._files[_KEPT_INDEX] = (self._whole / _KEPT_INDEX).read_bytes()
        self._original_external = {"train": external_split}
        image.decoded(encode(images[0], "png"))  # starts TensorFlow, before memory is limited
        verifier._work = lambda tasks, *_: list(map(check_shard, tasks))  # in this process
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 2**30, resource.getrlimit(resource.RLIMIT_AS)[1]))

    def make(self, rng: random.Random, number: int) -> Case:
        target = _TARGETS[number % len(_TARGETS)]
        name = target.partition(" ")[0]
        whole = self._files[name]
        is_shard = "tfrecord" in name and not name.endswith(".idx")
        kinds = ["flip", "cut", "splice", "insert", "zeros", "foreign", "empty"]
        kinds += ["record", "record", "length", "length", "swap"] if is_shard else []
        kinds += ["value"] * 12 if name.endswith(".json") else []
        kinds += ["labels", "offsets"] if name == "index-train.npz" else []
        kind = rng.choice(kinds)
        match kind:
            case "record":
                content = _with_records_moved(rng, self._whole / name)
            case "length":
                content = _with_wrong_length(rng, self._whole / name)
            case "swap":
                content = self._files[rng.choice([other for other in _SHARDS if other != name])]
            case "value":
                content = json.dumps(_with_one_change(rng, json.loads(whole))).encode()
            case "labels" | "offsets":
                content = _with_wrong_index(rng, self._whole / name, kind)
            case "foreign":
                content = rng.choice(list(self._other.values()))
            case _:
                content = _damaged(rng, whole, kind)
        return Case(target, kind, content, rng.random() < 0.5, rng.random() < 0.25)

    def check(self, case: Case) -> Outcome:
        folder, name, original = self._arranged(case)
        said = io.StringIO()
        outcome = None
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            try:
                found = {split: _read(folder, split) for split in open_dataset(folder).splits}
            except DataError as error:
                outcome = refused(str(error), folder.name)
            try:
                faults = [fault.line() for fault in verifier.verify(folder).faults]
            except DataError as error:
                faults = [f"{error}"]
        for line in (*faults, *said.getvalue().splitlines()):
            if not line or refused(line).kind == FAULT:
                return refused(line)
        if outcome:
            return outcome
        bad = [error for records_of_split in found.values() for _, error in records_of_split if error]
        for error in bad:
            if refused(error, folder.name).kind == FAULT:
                return refused(error, folder.name)
        if found == original or name == _EXTERNAL and not self._is_foreign(found):
            return Outcome(UNHARMED, detail="noted by verify" if faults else "")
        if all(split in original and _is_part_of(records, original[split]) for split, records in found.items()) and bad:
            return Outcome(ANNOUNCED, detail="records refused")
        if name == _EXTERNAL:  # nothing says what was there before
            return Outcome(UNHARMED, detail="another file")
        if said.getvalue():
            return Outcome(ANNOUNCED, detail="other data, with a message")
        if faults:
            return Outcome(ANNOUNCED, detail=f"other data, told by verify only: {case.damage} of {name}")
        return Outcome(FAULT, f"{case.damage} of {case.target}: read as {found}"[:2000])

    def _arranged(self, case: Case) -> tuple[Path, str, dict[str, list]]:
        """Returns the directory with the damaged file, the file's name, and what is to be read."""
        shutil.rmtree(self._data, ignore_errors=True)
        shutil.copytree(self._whole, self._data)
        name, _, alone = case.target.partition(" ")
        if alone:
            (self._data / "manifest.json").unlink()
        path = self._data / name
        if path.name.startswith("index") or not case.without_index:
            pass
        elif name in _SHARDS:
            (self._data / f"index-{name.split('-')[1].partition('.')[0]}.npz").unlink()
        else:
            shutil.rmtree(self._data / "external/.convoy")
        path.write_bytes(case.content)
        if case.manifest_follows and name in _SHARDS:
            manifest = json.loads(self._files["manifest.json"])
            for shard in (shard for split in manifest["splits"].values() for shard in split["shards"]):
                if shard["file"] == name:
                    shard["bytes"] = len(case.content)
            (self._data / "manifest.json").write_text(json.dumps(manifest))
        if name.startswith("external"):
            return self._data / "external", name, self._original_external
        return self._data, name, self._original

    def _is_foreign(self, found: dict[str, list]) -> bool:
        known = [payload for records in self._original.values() for (_, payload), _ in records]
        return any(payload not in known for records in found.values() for (_, payload), error in records if not error)


def _read(folder: Path, split_name: str) -> list[tuple[tuple[str, bytes], str]]:
    """Returns category and payload of each record of a split, and why it is refused."""
    found: list[tuple[tuple[str, bytes], str]] = []
    try:
        dataset = open_dataset(folder)
        split = dataset.split(split_name)
    except DataError as error:
        return [(("", b""), str(error))]
    for number in range(split.num_images):
        try:
            (payload,) = read_payloads(split, [number])
            found.append(((dataset.class_names[split.label[number]], payload), ""))
        except DataError as error:
            found.append((("", b""), str(error)))
    return found


def _is_part_of(found: list, original: list) -> bool:
    """Returns whether all records that are not refused are the original ones, by number."""
    if [bool(error) for _, error in found] == [True] and len(original) > 1:
        return True  # the whole split is refused
    return len(found) == len(original) and all(
        error or record == whole for (record, error), (whole, _) in zip(found, original, strict=True)
    )


def _damaged(rng: random.Random, whole: bytes, kind: str) -> bytes:
    content = bytearray(whole)
    place, other = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    match kind:
        case "flip":
            for _ in range(rng.randint(1, 3)):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        case "cut":
            del content[place:]
        case "splice":
            piece = content[place:other]
            if rng.random() < 0.5:
                del content[place:other]
            at = rng.randrange(len(content) + 1)
            content[at:at] = piece
        case "insert":
            content[place:place] = rng.randbytes(rng.randint(1, 40))
        case "zeros":
            content[place:other] = bytes(other - place)
        case "empty":
            content = bytearray()
    return bytes(content)


def _frames(shard: Path) -> list[bytes]:
    content = shard.read_bytes()
    return [content[at : at + length + records.FRAME_OVERHEAD] for at, length, _ in records.walk(shard)]


def _with_records_moved(rng: random.Random, shard: Path) -> bytes:
    """Returns a shard with a record twice, missing, or at another place: every checksum is right."""
    frames = _frames(shard)
    frame = frames.pop(rng.randrange(len(frames)))
    for _ in range(rng.randrange(3)):
        frames.insert(rng.randrange(len(frames) + 1), frame)
    return b"".join(frames)


def _with_wrong_length(rng: random.Random, shard: Path) -> bytes:
    """Returns a shard in which a record has another length, with a correct checksum."""
    frames = _frames(shard)
    header = rng.choice(_LENGTHS).to_bytes(8, "little")
    place = rng.randrange(len(frames))
    frames[place] = header + records.masked_crc(header).to_bytes(4, "little") + frames[place][12:]
    return b"".join(frames)


def _with_wrong_index(rng: random.Random, path: Path, kind: str) -> bytes:
    """Returns an index that is whole, but of other records."""
    with np.load(path) as archive:
        arrays = {name: archive[name].copy() for name in INDEX_TYPES}
    number = rng.randrange(1, len(arrays["label"]))
    columns = ["label"] if kind == "labels" else rng.choice((["offset", "length"], ["crc"], ["shard"]))
    for column in columns:
        if rng.random() < 0.7:
            arrays[column][[0, number]] = arrays[column][[number, 0]]
        else:
            arrays[column][number] = rng.choice((0, 7, 2**31 - 1) if column == "crc" else (-1, 0, 7, 2**31 - 1))
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _with_one_change(rng: random.Random, value: Any) -> Any:
    """Returns JSON data with one value in it replaced, renamed or removed."""
    container = rng.choice(list(_containers(value)))
    key = rng.choice(list(container) if isinstance(container, dict) else range(len(container)))
    change = rng.random()
    if change < 0.2:
        del container[key]
    elif change < 0.35 and isinstance(container, dict):
        container[str(rng.choice(_VALUES))] = container.pop(key)
    else:
        container[key] = rng.choice(_VALUES)
    return value


def _containers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list) and value:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _containers(inner)
