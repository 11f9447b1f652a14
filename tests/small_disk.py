"""A small disk that really can be full: a file system in memory, mounted where only those see it who are meant to.

with small_disk(tmp_path / "disk", size=16 * 2**20) as disk:
    subprocess.run([*disk.prefix, "sh", "-c", f"echo x > {disk.folder}/x"])
    (disk.seen / "x").read_text()
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class SmallDisk:
    """A file system of a few bytes.

    Attributes:
      folder: where it is, for processes started with `prefix`.
      seen: the same, as this process sees it.
      prefix: a command's beginning that lets it see the file system.
    """

    folder: Path
    seen: Path
    prefix: tuple[str, ...]

    def fill(self, all_but: int = 0) -> None:
        """Takes all room there is, to the last byte, or leaves so many bytes."""
        with open(self.seen / "ballast", "ab", buffering=0) as file, contextlib.suppress(OSError):
            while os.statvfs(self.seen).f_bavail * os.statvfs(self.seen).f_frsize > all_but:
                file.write(bytes(4096))

    def make_room(self) -> None:
        """Gives it back."""
        (self.seen / "ballast").unlink()


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[SmallDisk]:
    """Gives a disk of `size` bytes; skips the test where none can be mounted."""
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
        said = holder.stdout.readline().strip()
        if said != "mounted":
            pytest.skip(f"a file system cannot be mounted here: {said}")
        seen = Path(f"/proc/{holder.pid}/root{folder}")
        yield SmallDisk(folder, seen, ("nsenter", f"--target={holder.pid}", "--mount"))
    finally:
        os.killpg(holder.pid, signal.SIGKILL)  # the file system goes with the last process that sees it
        holder.wait()
        holder.stdout.close()
