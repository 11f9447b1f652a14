"""Imports TensorFlow without the lines it writes to the screen at start-up and without what nobody here uses of it.

`TF_CPP_MIN_LOG_LEVEL` below 2, which `--verbosity=0` sets, lets the lines through.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

from absl import flags as absl_flags

_ERRORS_ALONE = 2
# Keras looks for them at its import, and they take up to a third of the time until TensorFlow is there.
_NEVER_USED = ("sklearn", "matplotlib.pyplot")


def define_verbosity_flag(flags: absl_flags.FlagValues) -> None:
    """Defines `--verbosity`, in absl's numbers."""
    absl_flags.DEFINE_integer(
        "verbosity",
        -1,
        "what TensorFlow says on the screen: -1 its errors, 0 warnings and information too, 1 everything it does",
        lower_bound=-1,
        upper_bound=1,
        flag_values=flags,
    )


def set_verbosity(verbosity: int) -> None:
    """Makes TensorFlow say what `--verbosity` asks for. Call before it is imported."""
    if verbosity >= 0:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"
    if verbosity >= 1:
        os.environ["TF_CPP_MAX_VLOG_LEVEL"] = "1"


def start_tensorflow() -> None:
    """Imports TensorFlow and looks for GPUs.

    What it wrote comes out only where that fails, where it finds no GPU although there is an NVIDIA device, or where
    the environment asks for more than errors.
    """
    level = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", str(_ERRORS_ALONE))
    with stderr_set_aside() as release, _seeming_missing(*_NEVER_USED):
        if level.isdecimal() and int(level) < _ERRORS_ALONE:
            release()
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
