"""All or nothing: a dataset directory is built in a folder of its own and takes its name when it is whole.

with partial_directory(output) as partial:
    ...write files into partial...
    publish(partial, output)
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.dataset import MANIFEST


@contextlib.contextmanager
def partial_directory(output: Path) -> Iterator[Path]:
    """Gives a new folder on the disk of `output` that is gone in the end, whatever happens.

    It lies in `output` where that is a dataset, and beside it otherwise.

    Raises:
      OSError: it cannot be made.
    """
    output = output.absolute()
    parent = output if (output / MANIFEST).exists() else output.parent
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    partial = parent / f"{output.name}.partial-{os.getpid()}-{time.time_ns():x}"
    try:
        partial.mkdir(parents=True)
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):  # the first that is not empty holds the dataset
            for folder in missing:
                folder.rmdir()


def publish(partial: Path, output: Path) -> None:
    """Gives the files of `partial` their names in `output`: all at once for a new dataset, else the manifest last.

    Raises:
      OSError: a file cannot be renamed; `output` is as it was before.
    """
    output = output.absolute()
    if not (output / MANIFEST).exists():
        os.replace(partial, output)
        return
    names = sorted(path.name for path in partial.iterdir())
    replaced = [name for name in names if (output / name).exists()]
    names.sort(key=lambda name: (name == MANIFEST, name in replaced))
    before = partial / "before"
    before.mkdir()
    for name in replaced:
        shutil.copyfile(output / name, before / name)
    try:
        for name in names:
            os.replace(partial / name, output / name)
    except BaseException:
        # Renames only: what a full disk interrupted, a full disk must not keep from being undone.
        for name in names:
            if name in replaced:
                os.replace(before / name, output / name)
            else:
                (output / name).unlink(missing_ok=True)
        raise
