"""Checks of RUN and DATA: access, equality across workers, size and speed.

Temporary files are removed. Imports no TensorFlow.
"""

import contextlib
import io
import os
import shutil
import sys
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from convoy.core.errors import ConvoyError, DataError
from convoy.core.remote import RemotePath
from convoy.core.text import counted, megabytes
from convoy.input_pipeline.dataset.open import Dataset
from convoy.trainer.doctor.findings import DoctorFinding, failed, ok, skipped, warning
from convoy.trainer.run.directory import RunDirectory

_WRITTEN_BYTES = 8 * 2**20
_READ_BYTES, _READ_SECONDS = 32 * 2**20, 2.0
_CHUNK = 2**20
_VISIBLE_SECONDS = 10.0  # how long a network file system may take to show a file on another host
_SLOW_CHECKPOINT_SECONDS = 60.0
_LARGE_SHARD_BYTES = 2**28  # twice the shard size of `convoy convert`


@contextlib.contextmanager
def written_token(workdir: str) -> Iterator[tuple[Path | None, float, list[DoctorFinding]]]:
    """Writes a temporary file of 8 MiB in RUN or its nearest existing parent directory.

    Yields:
      The file, or None if it cannot be written or RUN is not given; the write time in seconds; and the findings.
    """
    if not workdir:
        yield None, 0.0, []
        return
    try:
        RunDirectory(workdir).check()
    except ConvoyError as error:
        yield None, 0.0, [failed("run directory", "workdir-not-usable", str(error))]
        return
    path = Path(os.path.abspath(workdir))
    folder = next(folder for folder in (path, *path.parents) if folder.is_dir())
    token = folder / f".convoy-doctor-{uuid.uuid4().hex[:12]}"
    try:
        seconds = _write(token)
    except OSError as error:
        token.unlink(missing_ok=True)
        action = "written" if folder == path else "created"
        fix = "Pass a writable --workdir, or fix the permissions."
        text = f"--workdir={workdir} cannot be {action}: {folder}: {error.strerror}."
        yield None, 0.0, [failed("run directory", "workdir-not-writable", text, fix)]
        return
    try:
        what = "is writable" if folder == path else f"can be created in {folder}"
        yield token, seconds, [ok("run directory", "workdir-writable", f"{workdir} {what}", of_all=True)]
    finally:
        token.unlink(missing_ok=True)


def _write(path: Path) -> float:
    content = os.urandom(_CHUNK)
    began = time.perf_counter()
    with open(path, "xb") as file:
        for _ in range(_WRITTEN_BYTES // _CHUNK):
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - began


def place_of(token: Path, workdir: str) -> tuple[str, list[str]]:
    """Returns the token's name, and the parts of RUN's path relative to the token's directory (empty if equal)."""
    return token.name, list(Path(os.path.abspath(workdir)).relative_to(token.parent).parts)


def sees(place: tuple[str, list[str]], workdir: str, seconds: float = _VISIBLE_SECONDS) -> bool:
    """Returns whether the chief's token is visible in this worker's RUN, or in the same parent of it.

    Args:
      place: result of `place_of` on the chief. Mount points may differ between hosts, the path below may not.
      workdir: run directory of this worker.
      seconds: time to wait for the token.
    """
    (name, below), folder = place, Path(os.path.abspath(workdir))
    for part in reversed(below):
        if folder.name != part:
            return False
        folder = folder.parent
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if name in os.listdir(folder):  # a listing refreshes a network file system's cache
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)


def check_given(flag: str, section: str, given: Mapping[int, str], names: Sequence[str]) -> list[DoctorFinding]:
    """Reports workers started without a flag that others have, or a flag that no worker has.

    Args:
      flag: name of the flag.
      section: section of the findings.
      given: value of the flag by rank, empty if omitted.
      names: names of the workers by rank.
    """
    without = [names[rank] for rank, value in sorted(given.items()) if not value]
    if len(without) == len(given):
        return [skipped(section, "flag-not-given", f"no {flag} given", of_all=True)]
    if without:
        text = f"started without {flag}: {' and '.join(without)}."
        return [failed(section, "flag-missing-on-worker", text, "Pass it on all workers.", of_all=True)]
    return []


def check_shared(sights: Mapping[int, bool], given: Mapping[int, str], names: Sequence[str]) -> list[DoctorFinding]:
    """Reports workers that do not see the chief's token in RUN.

    Args:
      sights: whether the worker sees the token, by rank.
      given: --workdir by rank; workers without one are skipped.
      names: names of the workers by rank.
    """
    blind = [
        f"{names[rank]} in --workdir={given[rank]}"
        for rank, sees_it in sorted(sights.items())
        if given[rank] and not sees_it
    ]
    if not blind:
        return []
    text = f"files of {names[0]} in --workdir={given[0]} are not visible on {' and '.join(blind)}."
    fix = "Pass a --workdir on a file system that all workers share."
    return [failed("run directory", "workdir-not-shared", text, fix, of_all=True)]


def check_disk(folder: Path, write_seconds: float, *, checkpoint_bytes: int | None, kept: int) -> DoctorFinding:
    """Compares free space and write speed with the size of the checkpoints.

    Args:
      folder: directory in the file system of RUN.
      write_seconds: time to write the token.
      checkpoint_bytes: size of one checkpoint; None if unknown.
      kept: config.keep_checkpoints.
    """
    usage = shutil.disk_usage(folder)
    free = usage.free if usage.total else sys.maxsize  # some FUSE file systems do not say
    speed = _WRITTEN_BYTES / max(write_seconds, 1e-9)
    has = f"{f'{megabytes(free)} free' if usage.total else 'free space unknown'}, written at {megabytes(int(speed))}/s"
    if checkpoint_bytes is None:
        return ok("disk", "disk-free", has, of_all=True)
    files = kept + 2  # plus the best and the one being written
    takes = f"{files} checkpoints of {megabytes(checkpoint_bytes)} take {megabytes(files * checkpoint_bytes)}"
    if free < files * checkpoint_bytes:
        fix = "Free space, pass another --workdir, or lower --config.keep_checkpoints."
        return failed("disk", "disk-full", f"{megabytes(free)} free in {folder}, and {takes}.", fix, of_all=True)
    seconds = checkpoint_bytes / speed
    if seconds > _SLOW_CHECKPOINT_SECONDS:
        text = f"{has}: a checkpoint of {megabytes(checkpoint_bytes)} takes {seconds:.0f} s."
        fix = "Save less often (--config.checkpoint_every_steps), or pass a --workdir on a faster file system."
        return warning("disk", "slow-checkpoints", text, fix, of_all=True)
    return ok("disk", "disk-free", f"{has}; {takes}", of_all=True)


def check_data(dataset: Dataset, *, num_workers: int, global_batch_size: int) -> list[DoctorFinding]:
    """Reports a training split that is too small or in too few files."""
    split = dataset.split("train")
    size = int(split.length.sum())
    findings = []
    if len(split.shard_paths) == 1 and num_workers > 1 and size > _LARGE_SHARD_BYTES:
        text = f"one shard of {megabytes(size)}, read by {num_workers} workers at once."
        fix = "Write several shards with `convoy convert --shards=N`."
        findings.append(warning("data", "single-large-shard", text, fix))
    if split.num_images < global_batch_size:
        text = f"a batch of {global_batch_size} is more than {counted(split.num_images, 'training image')}."
        fix = "Lower --config.batch_size: a step would contain images more than once."
        findings.append(warning("data", "dataset-smaller-than-batch", text, fix))
    return findings


def look_at(dataset: Dataset) -> dict[str, Any]:
    """Returns the data that must be equal on all workers, and the read rate `bytes_per_second`, as JSON data.

    `digest` is from the manifest; `checksum` is of the first bytes read, None if the time limit was reached first.

    Raises:
      DataError: there is no training split, or a shard cannot be read.
    """
    split = dataset.split("train")
    count, seconds, checksum = _read(split.shard_paths)
    return {
        "images": split.num_images,
        "classes": dataset.num_classes,
        "shards": len(split.shard_paths),
        "digest": dataset.digest("train")[:16],
        "checksum": checksum,
        "bytes_per_second": count / max(seconds, 1e-9),
    }


def check_same_data(seen: Mapping[int, Mapping[str, Any]], names: Sequence[str], data: str) -> list[DoctorFinding]:
    """Compares the dataset in --data across workers.

    Args:
      seen: result of `look_at` by rank, of the workers that could open the dataset.
      names: names of all workers by rank.
      data: value of `--data` as typed.
    """
    if not seen:
        return []
    first_rank, first = min(seen.items())
    identity = [field for field in first if field != "bytes_per_second"]
    for rank, other in sorted(seen.items()):
        changed = [
            f"{field} {first[field]} and {other[field]}"
            for field in identity
            if first[field] != other[field] and None not in (first[field], other[field])
        ]
        if changed:
            text = f"--data={data} differs between {names[first_rank]} and {names[rank]}: {', '.join(changed)}."
            return [failed("data", "data-differ", text, "Provide the same files to all workers.", of_all=True)]
    text = ", ".join(
        (
            counted(first["images"], "training image"),
            counted(first["classes"], "class", "classes"),
            counted(first["shards"], "shard"),
        )
    )
    slowest = min(other["bytes_per_second"] for other in seen.values())
    read = f"read at {megabytes(slowest)}/s (cached files read faster)" if slowest else "read rate not measured"
    return [ok("data", "data-agree", f"{text}, digest {first['digest']}, {read}", of_all=len(seen) == len(names))]


def _open_remote(path: RemotePath) -> BinaryIO:
    """Returns the first bytes of a remote file, as many as `_read` takes."""
    return io.BytesIO(path.read_range(0, min(path.stat().st_size, _READ_BYTES)))


def _read(paths: Sequence[Path | RemotePath]) -> tuple[int, float, str | None]:
    """Reads the first bytes; returns their count, the seconds, and their checksum (None if time ran out)."""
    count, seconds, checksum = 0, 0.0, 0
    for path in paths:
        began = time.perf_counter()
        try:
            with open(path, "rb") if isinstance(path, Path) else _open_remote(path) as file:
                seconds += time.perf_counter() - began
                while count < _READ_BYTES:
                    began = time.perf_counter()
                    content = file.read(_CHUNK)
                    seconds += time.perf_counter() - began
                    if not content:
                        break
                    count, checksum = count + len(content), zlib.crc32(content, checksum)
                    if seconds > _READ_SECONDS:
                        return count, seconds, None
        except OSError as error:
            raise DataError(f"shard {path} cannot be read ({error.strerror}). Fix it, or copy it again.") from None
    return count, seconds, f"{checksum:08x}"
