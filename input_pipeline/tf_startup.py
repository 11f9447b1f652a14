"""Imports TensorFlow without its start-up messages and without optional modules that Convoy does not use.

`TF_CPP_MIN_LOG_LEVEL` below 2, as set by `--verbosity=0`, shows the messages.
"""

import contextlib
import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from types import ModuleType

from absl import flags as absl_flags

from convoy.core.text import is_count

_ERRORS_ONLY = 2
# Optional imports of Keras that take up to a third of TensorFlow's import time.
_UNUSED_MODULES = ("sklearn", "matplotlib.pyplot")


def define_verbosity_flag(flags: absl_flags.FlagValues) -> None:
    """Defines `--verbosity`, with absl's levels."""
    absl_flags.DEFINE_integer(
        "verbosity",
        -1,
        "TensorFlow's log level on the console: -1 errors only, 0 also warnings and information, 1 also debug messages",
        lower_bound=-1,
        upper_bound=1,
        flag_values=flags,
    )


def set_verbosity(verbosity: int) -> None:
    """Sets TensorFlow's log level from `--verbosity`. Call before TensorFlow is imported."""
    if verbosity >= 0:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"
    if verbosity >= 1:
        os.environ["TF_CPP_MAX_VLOG_LEVEL"] = "1"


def start_tensorflow() -> None:
    """Imports TensorFlow and looks for GPUs.

    Its messages are shown only if the import fails, if no GPU is found although there is an NVIDIA device, or if the
    environment asks for more than errors.
    """
    level = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", str(_ERRORS_ONLY))
    with captured_stderr() as show, _blocked_imports(*_UNUSED_MODULES), _no_garbage_collection():
        if is_count(level) and int(level) < _ERRORS_ONLY:
            show()
        import tensorflow as tf

        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        if not tf.config.list_physical_devices("GPU") and not hidden and os.path.exists("/dev/nvidia0"):
            show()


@contextlib.contextmanager
def _blocked_imports(*names: str) -> Iterator[None]:
    """Makes imports of modules fail in the context, unless they are already imported."""
    blocked = [name for name in names if name not in sys.modules]
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]  # the stub omits None, which blocks
    modules.update(dict.fromkeys(blocked))
    try:
        yield
    finally:
        for name in blocked:
            del sys.modules[name]


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collects no garbage while TensorFlow is imported, and never examines again what is in memory at the end.

    TensorFlow's modules are half a million objects that stay until exit. Searching them takes a fifth of the import's
    time, and would slow down tracing too. Without effect if TensorFlow is imported already: by then there may be
    garbage in memory, such as the lock of a run that has ended.
    """
    if "tensorflow" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def captured_stderr() -> Iterator[Callable[[], None]]:
    """Captures file descriptor 2. The output is shown on an exception, or if the yielded function was called."""
    shown = False

    def show() -> None:
        nonlocal shown
        shown = True

    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield show
        except Exception:
            shown = True
            raise
        finally:
            os.dup2(original, 2)
            os.close(original)
            if shown:
                captured.seek(0)
                with contextlib.suppress(OSError):  # nobody reads it
                    os.write(2, captured.read())
