"""The file in which a failing worker leaves its error for the launcher, which reports the earliest one as the cause.

The launcher passes the file's path in `CONVOY_ERROR_FILE`. If that is not set, nothing is written.
"""

import contextlib
import json
import os
import time
import traceback
from pathlib import Path

from convoy.core import exit_codes
from convoy.core.errors import ConvoyError
from convoy.core.files import write_whole


def note_error(error: BaseException, *, rank: int | None = None, step: int | None = None) -> None:
    """Writes the error file, unless it exists or the error is secondary.

    Args:
      error: exception that ends the process.
      rank: rank of this worker, if known.
      step: optimizer step in which it happened, if training had begun.
    """
    path = os.environ.get("CONVOY_ERROR_FILE")
    exit_code, is_secondary = exit_codes.ERROR, False
    if isinstance(error, ConvoyError):
        exit_code, is_secondary = error.exit_code, error.is_secondary
    if not path or os.path.exists(path) or is_secondary:
        return
    content = {
        "rank": rank,
        "time": time.time(),
        "step": step,
        "exit_code": exit_code,
        "is_final": isinstance(error, ConvoyError) and error.is_final,
        "error": str(error) if isinstance(error, ConvoyError) else f"{type(error).__name__}: {error}",
        "traceback": "".join(traceback.format_exception(error)),
    }
    with contextlib.suppress(OSError):  # the launcher still has the exit code
        write_whole(Path(path), (json.dumps(content) + "\n").encode())
