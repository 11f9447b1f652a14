"""Imports TensorFlow without the lines it writes to the screen at start-up and without what nobody here uses of it."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

# Keras looks for them at its import, and they take up to a third of the time until TensorFlow is there.
_NEVER_USED = ("sklearn", "matplotlib.pyplot")


def start_tensorflow() -> None:
    """Imports TensorFlow and looks for GPUs.

    What it wrote comes out only where that fails, or where it finds no GPU although there is an NVIDIA device.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with stderr_set_aside() as release, _seeming_missing(*_NEVER_USED):
        import tensorflow as tf

        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        if not tf.config.list_physical_devices("GPU") and not hidden and os.path.exists("/dev/nvidia0"):
            release()


@contextlib.contextmanager
def _seeming_missing(*names: str) -> Iterator[None]:
    """Makes imports of modules fail inside, where they have not been imported before."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # None stands for a module that cannot be imported
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextlib.contextmanager
def stderr_set_aside() -> Iterator:
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
