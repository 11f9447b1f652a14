"""What a worker that ends by its own error leaves for its launcher, which names the earliest one as the cause.

The launcher says where by `CONVOY_ERROR_FILE`; without it nothing is written. Imports no TensorFlow.
"""

import contextlib
import json
import os
import time
import traceback
from pathlib import Path

from convoy.core.errors import ConvoyError
from convoy.core.files import write_whole

_FIRST_RETRYABLE = 128  # what others did to this worker is no error of its own


def note_error(error: BaseException, *, rank: int | None = None, step: int | None = None) -> None:
    """Writes the error file, unless there is one already or the error is an echo of another worker's.

    Args:
      error: that ends the process.
      rank: of this worker, where known.
      step: it was in, where it had come so far.
    """
    place = os.environ.get("CONVOY_ERROR_FILE")
    exit_code = error.exit_code if isinstance(error, ConvoyError) else 1
    if not place or os.path.exists(place) or exit_code >= _FIRST_RETRYABLE:
        return
    content = {
        "rank": rank,
        "time": time.time(),
        "step": step,
        "exit_code": exit_code,
        "error": str(error) if isinstance(error, ConvoyError) else f"{type(error).__name__}: {error}",
        "traceback": "".join(traceback.format_exception(error)),
    }
    with contextlib.suppress(OSError):  # the exit code still tells
        write_whole(Path(place), (json.dumps(content) + "\n").encode())
