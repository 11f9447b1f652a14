"""Atomic publishing: a dataset is built in a working folder and renamed into place when it is complete.

    with working_directory(output, "train") as work:
        ...write the dataset's files to work.dataset and the marks of finished shards to work.marks...
        publish(work, output)

Finished shards of an interrupted conversion stay in the working folder, and the next conversion reuses them.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from convoy.core.errors import UsageError
from convoy.core.files import PARTIAL_SUFFIX, locked, replace
from convoy.core.remote import PARALLEL_UPLOADS, RemotePath, in_parallel, upload
from convoy.input_pipeline.dataset.open import MANIFEST, read_manifest
from convoy.input_pipeline.dataset.storage import local_place

_LOCK = "lock"
_BEFORE = "before"  # copies of files that are being replaced


@dataclass(frozen=True)
class WorkingDirectory:
    """Working folder of a conversion: the dataset, or files to add to it, and the marks of finished shards."""

    folder: Path

    @property
    def dataset(self) -> Path:
        """Folder of the dataset's files."""
        return self.folder / "dataset"

    @property
    def marks(self) -> Path:
        """Folder of the marks: one file per finished shard, with the name of the shard."""
        return self.folder / "marks"

    @property
    def hashes(self) -> Path:
        """Folder of perceptual hashes, with files named after the fingerprint of their images."""
        return self.folder / "hashes"

    @property
    def is_worth_keeping(self) -> bool:
        """Whether another conversion could go on from it."""
        return bool(self.finished()) or (self.hashes.is_dir() and any(self.hashes.glob("*.npz")))

    def finished(self) -> list[str]:
        """Returns the names of the finished shards."""
        with contextlib.suppress(OSError):
            return sorted(path.name for path in self.marks.iterdir() if path.suffix != PARTIAL_SUFFIX)
        return []

    def keep_only(self, names: Collection[str]) -> None:
        """Removes all files except those of these shards."""
        for path in self.dataset.iterdir():
            if path.name.removesuffix(".idx") not in names:
                path.unlink()
        for path in self.marks.iterdir():
            if path.name not in names:
                path.unlink()


def working_folder(output: Path | RemotePath, split: str) -> WorkingDirectory:
    """Returns the working folder of the conversion of a dataset, or of a further split of it; it may not exist."""
    if isinstance(output, RemotePath):
        place = local_place(output)
        return WorkingDirectory(place.with_name(f"{place.name}.{split}.partial"))
    output = output.absolute()
    if (output / MANIFEST).exists():
        return WorkingDirectory(output / f"{split}.partial")
    return WorkingDirectory(output.parent / f"{output.name}.partial")


@contextlib.contextmanager
def working_directory(output: Path | RemotePath, split: str) -> Iterator[WorkingDirectory]:
    """Creates and locks the working folder; on exit removes it unless it has finished work.

    It is inside `output` if that is a dataset, and next to it otherwise, so that both are on the same disk. For an
    object store it is in the cache folder.

    Raises:
      UsageError: another conversion is writing `output`, or the folder exists with other files in it.
      OSError: it cannot be created.
    """
    work = working_folder(output, split)
    adds = not isinstance(output, RemotePath) and work.folder.parent == output.absolute()
    missing = [folder for folder in work.folder.parents if not folder.exists()]
    with contextlib.ExitStack() as locks:
        locks.callback(_remove_empty, work.folder)  # NFS keeps a folder until the lock in it is closed
        if adds and isinstance(
            output, Path
        ):  # conversions of different splits have separate working folders, but share the manifest
            locks.enter_context(_locked(output, output))
        if os.path.lexists(work.folder) and not _is_ours(work):
            raise UsageError(
                f"{work.folder} is the conversion's working folder, and has files that no conversion wrote. Move it "
                "away, or pass another --output"
            )
        work.dataset.mkdir(parents=True, exist_ok=True)
        work.marks.mkdir(exist_ok=True)
        locks.enter_context(_locked(work.folder / _LOCK, output))
        if adds and isinstance(output, Path):
            first = WorkingDirectory(output.absolute().with_name(f"{output.name}.partial"))
            if _is_ours(first) and not first.dataset.exists():
                shutil.rmtree(first.folder, ignore_errors=True)  # left by a kill right after publishing
            _recover_shards(work, output)
        try:
            yield work
        finally:
            if not work.is_worth_keeping:
                shutil.rmtree(work.folder, ignore_errors=True)
            _remove_empty(*missing)  # unless they have the dataset


@contextlib.contextmanager
def unpublished_directory() -> Iterator[WorkingDirectory]:
    """Creates a working folder that is never published, in the folder for temporary files; removes it on exit."""
    with tempfile.TemporaryDirectory(prefix="convoy-") as folder:
        work = WorkingDirectory(Path(folder))
        work.dataset.mkdir()
        work.marks.mkdir()
        yield work


def _remove_empty(*folders: Path) -> None:
    """Removes folders up to the first that is not empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _is_ours(work: WorkingDirectory) -> bool:
    """Returns whether a folder exists and only has entries that a conversion creates."""
    own = (_LOCK, _BEFORE, work.dataset.name, work.marks.name, work.hashes.name)
    return work.folder.is_dir() and all(path.name in own for path in work.folder.iterdir())


def _locked(path: Path, output: Path | RemotePath) -> contextlib.AbstractContextManager[None]:
    return locked(
        path,
        f"--output={output}: another conversion is writing it (lock: {path}). Wait until it ends, or pass another "
        "--output",
    )


def _recover_shards(work: WorkingDirectory, output: Path) -> None:
    """Moves shards back that a conversion published to `output` before it was killed without updating the manifest."""
    named = {shard["file"] for entry in read_manifest(output)["splits"].values() for shard in entry["shards"]}
    for shard in set(work.finished()) - named:
        for name in (shard, f"{shard}.idx"):
            if (output / name).exists() and not (work.dataset / name).exists():
                os.replace(output / name, work.dataset / name)


def publish(work: WorkingDirectory, output: Path | RemotePath) -> None:
    """Renames the dataset's files into `output`: a new dataset in one step, a further split with the manifest last.

    To an object store they are uploaded, the manifest last: until then a reader sees the dataset as it was.

    Raises:
      OSError: a file cannot be renamed; `output` is unchanged.
      ConvoyError: a file cannot be uploaded.
    """
    output = output.absolute()
    if isinstance(output, RemotePath):
        names = {path.name for path in work.dataset.iterdir()} - {MANIFEST}
        for some in (sorted(names), [MANIFEST]):
            in_parallel(lambda name: upload(work.dataset / name, output / name), some, PARALLEL_UPLOADS)
    elif (output / MANIFEST).exists():
        _add(work, output)
    else:
        replace(work.dataset, output)
    shutil.rmtree(work.folder, ignore_errors=True)


def _add(work: WorkingDirectory, output: Path) -> None:
    names = sorted(path.name for path in work.dataset.iterdir())
    replaced = [name for name in names if (output / name).exists()]
    names.sort(key=lambda name: (name == MANIFEST, name in replaced))
    before = work.folder / _BEFORE
    before.mkdir(exist_ok=True)
    for name in replaced:
        shutil.copyfile(output / name, before / name)
    try:
        for name in names:
            replace(work.dataset / name, output / name)
    except BaseException:
        # Renames only, so that undoing also works on a full disk.
        for name in names:
            if not (work.dataset / name).exists():
                os.replace(output / name, work.dataset / name)
            if name in replaced:
                replace(before / name, output / name)
        raise
