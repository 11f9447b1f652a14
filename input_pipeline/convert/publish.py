"""All or nothing: a dataset directory is built in a folder of its own and takes its name when it is whole.

    with working_directory(output, "train") as work:
        ...write the dataset's files into work.dataset, and what is done into work.marks...
        publish(work, output)

What a killed or interrupted conversion has finished stays in the working folder, and the next one finds it there.
"""

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from convoy.core.errors import UsageError
from convoy.core.files import PARTIAL_SUFFIX, locked
from convoy.input_pipeline.dataset.open import MANIFEST, read_manifest

_LOCK = "lock"
_BEFORE = "before"  # what is replaced, until all is


@dataclass(frozen=True)
class WorkingDirectory:
    """Where a dataset is built: `dataset` is to become it, or be added to it; in `marks` stands which shards are whole.

    A mark has the name of its shard.
    """

    folder: Path

    @property
    def dataset(self) -> Path:
        """The files of the dataset."""
        return self.folder / "dataset"

    @property
    def marks(self) -> Path:
        """A file for each shard that is whole."""
        return self.folder / "marks"

    def finished(self) -> list[str]:
        """Returns the names of the shards that are marked as whole."""
        with contextlib.suppress(OSError):
            return sorted(path.name for path in self.marks.iterdir() if path.suffix != PARTIAL_SUFFIX)
        return []

    def keep_only(self, names: Collection[str]) -> None:
        """Removes all files but those of the shards of these names."""
        for path in self.dataset.iterdir():
            if path.name.removesuffix(".idx") not in names:
                path.unlink()
        for path in self.marks.iterdir():
            if path.name not in names:
                path.unlink()


def working_folder(output: Path, split: str) -> WorkingDirectory:
    """Returns where the conversion of a dataset, or of a further split of it, works; it need not be there."""
    output = output.absolute()
    if (output / MANIFEST).exists():
        return WorkingDirectory(output / f"{split}.partial")
    return WorkingDirectory(output.parent / f"{output.name}.partial")


@contextlib.contextmanager
def working_directory(output: Path, split: str) -> Iterator[WorkingDirectory]:
    """Gives the working folder, on the disk of `output`. It is gone in the end, unless shards in it are whole.

    It lies in `output` where that is a dataset, and beside it otherwise. Meanwhile, no other conversion gets one of the
    same `output`.

    Raises:
      UsageError: another conversion works at `output`, or the folder holds what none has written.
      OSError: it cannot be made.
    """
    work = working_folder(output, split)
    adds = work.folder.parent == output.absolute()
    missing = [folder for folder in (work.folder.parent, *work.folder.parents) if not folder.exists()]
    with contextlib.ExitStack() as locks:
        if adds:  # two conversions that add different splits have folders of their own, and one manifest
            locks.enter_context(_locked(output, output))
        _check_ours(work)
        work.dataset.mkdir(parents=True, exist_ok=True)
        work.marks.mkdir(exist_ok=True)
        locks.enter_context(_locked(work.folder / _LOCK, output))
        if adds:
            beside = WorkingDirectory(output.absolute().with_name(f"{output.name}.partial"))
            if _is_ours(beside) and not beside.dataset.exists():
                shutil.rmtree(beside.folder, ignore_errors=True)  # what a kill right after publishing has left
            _take_back(work, output)
        try:
            yield work
        finally:
            if not work.finished():
                shutil.rmtree(work.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # the first that is not empty holds the dataset
                for folder in missing:
                    folder.rmdir()


def _is_ours(work: WorkingDirectory) -> bool:
    """Says whether a folder is there and holds nothing but what a conversion writes into its own."""
    own = (_LOCK, _BEFORE, work.dataset.name, work.marks.name)
    return work.folder.is_dir() and all(path.name in own for path in work.folder.iterdir())


def _check_ours(work: WorkingDirectory) -> None:
    if os.path.lexists(work.folder) and not _is_ours(work):
        raise UsageError(
            f"{work.folder} is where the conversion would work, and holds what no conversion wrote: move it away, or "
            "name another --output"
        )


def _locked(path: Path, output: Path) -> contextlib.AbstractContextManager[None]:
    return locked(
        path,
        f"--output={output}: another conversion is writing it (it holds the lock of {path}). Wait for its end, or "
        "name another --output",
    )


def _take_back(work: WorkingDirectory, output: Path) -> None:
    """Fetches the shards that a conversion gave to `output` and was killed before the manifest named them."""
    named = {shard["file"] for entry in read_manifest(output)["splits"].values() for shard in entry["shards"]}
    for shard in set(work.finished()) - named:
        for name in (shard, f"{shard}.idx"):
            if (output / name).exists() and not (work.dataset / name).exists():
                os.replace(output / name, work.dataset / name)


def publish(work: WorkingDirectory, output: Path) -> None:
    """Gives the dataset's files their names in `output`: all at once for a new one, else the manifest last.

    Raises:
      OSError: a file cannot be renamed; `output` is as it was before.
    """
    output = output.absolute()
    if (output / MANIFEST).exists():
        _add(work, output)
    else:
        os.replace(work.dataset, output)
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
            os.replace(work.dataset / name, output / name)
    except BaseException:
        # Renames only: what a full disk interrupted, a full disk must not keep from being undone.
        for name in names:
            if not (work.dataset / name).exists():
                os.replace(output / name, work.dataset / name)
            if name in replaced:
                os.replace(before / name, output / name)
        raise
