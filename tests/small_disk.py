"""A small disk that can really fill up: a tmpfs that is visible only to chosen processes.

with small_disk(tmp_path / "disk", size=16 * 2**20) as disk:
    subprocess.run([*disk.prefix, "sh", "-c", f"echo x > {disk.folder}/x"])
    (disk.seen / "x").read_text()
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import kill_session


@dataclass
class SmallDisk:
    """A small file system.

    Attributes:
      folder: its mount point, for processes started with `prefix`.
      seen: the path to it from this process.
      prefix: start of a command line that makes the file system visible.
    """

    folder: Path
    seen: Path
    prefix: tuple[str, ...]

    def fill(self, all_but: int = 0) -> None:
        """Fills the disk, except for `all_but` bytes."""
        with open(self.seen / "ballast", "ab", buffering=0) as file, contextlib.suppress(OSError):
            while os.statvfs(self.seen).f_bavail * os.statvfs(self.seen).f_frsize > all_but:
                file.write(bytes(4096))

    def make_room(self) -> None:
        """Frees the space that `fill` took."""
        (self.seen / "ballast").unlink()


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[SmallDisk]:
    """Mounts a disk of `size` bytes; skips the test if that is not possible."""
    folder.mkdir()
    mount = f"mount -t tmpfs -o size={size} none '{folder}' && echo mounted && exec sleep infinity"
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", mount],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        answer = holder.stdout.readline().strip()
        if answer != "mounted":
            pytest.skip(f"cannot mount a file system: {answer}")
        seen = Path(f"/proc/{holder.pid}/root{folder}")
        yield SmallDisk(folder, seen, ("nsenter", f"--target={holder.pid}", "--mount"))
    finally:
        kill_session(holder)  # the file system is unmounted with the last process that sees it
        holder.stdout.close()
