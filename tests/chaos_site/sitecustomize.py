"""A machine whose clock is set back and whose file system refuses to flush folders, for processes of the chaos test.

Python imports this module when a process starts, because its folder is in PYTHONPATH. `tests/chaos_injection.py` writes
the files that it reads.
"""

import errno
import os
import stat
import time
from pathlib import Path

FOLDER_VARIABLE = "CONVOY_CHAOS_FOLDER"
CLOCK_FILE = "seconds-behind"  # its content: by how many seconds the clock was set back in all
REFUSAL_FILE = "folder-fsync-refused"  # while it exists
REFUSED_FILE = "refused"  # one line per refusal


def _set_up(folder: Path) -> None:
    real_time, real_time_ns, real_fsync = time.time, time.time_ns, os.fsync

    def seconds_behind() -> int:
        try:
            return int((folder / CLOCK_FILE).read_text())
        except FileNotFoundError:
            return 0

    def fsync(file) -> None:
        if (folder / REFUSAL_FILE).exists() and stat.S_ISDIR(os.stat(file).st_mode):
            with open(folder / REFUSED_FILE, "a") as refused:
                refused.write(f"process {os.getpid()}\n")
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real_fsync(file)

    time.time = lambda: real_time() - seconds_behind()
    time.time_ns = lambda: real_time_ns() - seconds_behind() * 10**9
    os.fsync = fsync


if FOLDER_VARIABLE in os.environ:
    _set_up(Path(os.environ[FOLDER_VARIABLE]))
