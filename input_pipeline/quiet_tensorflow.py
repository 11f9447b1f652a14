"""Imports TensorFlow without the lines it writes to the screen at start-up, whatever its log level is."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


def start_tensorflow() -> None:
    """Imports TensorFlow and looks for GPUs.

    What it wrote comes out only where that fails, or where it finds no GPU although there is an NVIDIA device.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _stderr_set_aside() as release:
        import tensorflow as tf

        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        if not tf.config.list_physical_devices("GPU") and not hidden and os.path.exists("/dev/nvidia0"):
            release()


@contextlib.contextmanager
def _stderr_set_aside() -> Iterator:
    """Turns file descriptor 2 into a file; its content is shown on an exception, or where the yielded call was made."""
    shown = False

    def release() -> None:
        nonlocal shown
        shown = True

    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield release
        except Exception:
            shown = True
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            if shown:
                aside.seek(0)
                os.write(2, aside.read())
