"""The largest batch that fits on a device: sizes are tried one by one, each in its own process.

    find_batch_size(config, data="data", devices="auto")        # prints a table and a suggestion

Separate processes keep an out-of-memory failure of TensorFlow, XLA or the kernel from affecting the next trial.
Starting at the config's own batch, sizes are doubled until one does not fit, then bisected. The search varies the batch
of a virtual replica, because a device computes its virtual replicas one after another; so batch size and virtual
replicas always divide. On GPUs the limit is their memory, on CPUs a share of the free memory of machine and cgroups.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_collections

import convoy
from convoy.core.errors import ConvoyError, DataError, UsageError
from convoy.core.memory import available_memory
from convoy.core.processes import helper_starting
from convoy.core.text import counted, megabytes
from convoy.core.user_code import files_run
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.trainer import config as configs
from convoy.trainer.finders.batch_size_trial import MARK, TOO_LARGE

_logger = logging.getLogger("convoy")
_ROOT = Path(convoy.__file__).parents[1]
_SHARE_OF_MEMORY = 0.8
_LONGEST_STEP_SECONDS = 20.0
_FINENESS = 8  # bisection stops when the bounds differ by less than this fraction
_AS_FAST = 0.95  # share of the best speed from which a larger batch is not worthwhile
_SHOWN_ERROR_LINES = 5
# Out of memory, the kernel kills the process, and CUDA libraries abort it.
_OUT_OF_MEMORY_CODES = (TOO_LARGE, -signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS)
_COLUMNS = ("per device", "global batch", "images/s", "ms/step", "memory")


@dataclass(frozen=True)
class Attempt:
    """The trial of one size.

    Attributes:
      size: images per virtual replica.
      fits: whether a step succeeded.
      step_seconds: time of a compiled step, including input; 0 if it does not fit.
      memory: peak memory of a GPU, or of the process without one, in bytes; 0 if it does not fit.
    """

    size: int
    fits: bool
    step_seconds: float = 0.0
    memory: int = 0


@dataclass(frozen=True)
class Search:
    """The result of a search.

    Attributes:
      attempts: in the order of the trials.
      largest: the largest size that fits; None if none does.
      too_large: the smallest size that does not fit; None if all fit.
      end: the limit: `memory`, `dataset` (it has no more images) or `speed` (a larger step would take too long).
    """

    attempts: Sequence[Attempt]
    largest: Attempt | None
    too_large: int | None
    end: str


@dataclass(frozen=True)
class Scale:
    """Conversion of the batch of a virtual replica to other units.

    Attributes:
      replicas: number of devices.
      virtual_replicas: of the run; a multiple of `replicas`.
      num_images: images of the training split.
      on_gpu: whether the devices are GPUs.
      first_size: images per virtual replica in the config.
    """

    replicas: int
    virtual_replicas: int
    num_images: int
    on_gpu: bool
    first_size: int

    def per_device(self, size: int) -> int:
        """Returns the images per device and step."""
        return size * self.virtual_replicas // self.replicas

    def global_batch(self, size: int) -> int:
        """Returns the global batch."""
        return size * self.virtual_replicas


def search(
    attempt: Callable[[int], Attempt],
    *,
    first: int,
    most: int,
    smallest: int = 1,
    longest_step_seconds: float = _LONGEST_STEP_SECONDS,
) -> Search:
    """Searches for the largest size that fits: doubles or halves from `first` on, then bisects.

    Args:
      attempt: tries a size.
      first: the first size, at least `smallest`.
      most: the largest size to try, at least `smallest`.
      smallest: the smallest size to try, 1 or more.
      longest_step_seconds: sizes whose step is expected to take longer are not tried.
    """
    attempts: list[Attempt] = []

    def fits(size: int) -> bool:
        attempts.append(attempt(size))
        return attempts[-1].fits

    too_large, end = None, "memory"
    size = min(first, most)
    while not fits(size):
        too_large = size
        if size == smallest:
            return Search(attempts, None, smallest, "memory")
        size = max(smallest, size // 2)
    largest = attempts[-1]
    while too_large is None:
        if largest.size >= most:
            end = "dataset"
            break
        size = min(2 * largest.size, most)
        if largest.step_seconds * size / largest.size > longest_step_seconds:
            end = "speed"
            break
        if fits(size):
            largest = attempts[-1]
        else:
            too_large = size
    while too_large is not None and too_large - largest.size > max(1, largest.size // _FINENESS):
        size = (largest.size + too_large) // 2
        if fits(size):
            largest = attempts[-1]
        else:
            too_large = size
    return Search(attempts, largest, too_large, end)


def find_batch_size(
    config: ml_collections.ConfigDict,
    *,
    data: str,
    devices: str = "auto",
    strategy_name: str = "auto",
    record_format: RecordFormat | None = None,
    say: Callable[[str], None] = _logger.info,
) -> Search:
    """Searches for the largest batch, and reports a table and a suggestion.

    Args:
      config: complete. The search starts at its batch size.
      data: dataset directory with a split `train`.
      devices: as in `--devices`.
      strategy_name: one of `devices.STRATEGIES`.
      record_format: what is known about the records of other tools.
      say: called with each line of progress and result.

    Raises:
      UsageError: config, devices and dataset do not fit together.
      DataError: the dataset cannot be used.
      ConvoyError: a trial failed for another reason than memory; the message ends with its last lines of output.
    """
    memory_limit = int(_SHARE_OF_MEMORY * available_memory())
    options: dict[str, Any] = {
        "devices": devices,
        "strategy_name": strategy_name,
        "record_format": record_format,
        "memory_limit": memory_limit,
    }
    first, scale = try_batch(config, data, **options)
    say(
        f"Each size runs for a few steps in its own process, on {_devices(scale)}"
        + ("." if scale.on_gpu else f", within {megabytes(memory_limit)}: {_SHARE_OF_MEMORY:.0%} of the free memory.")
    )
    say("".join(f"{name:>14}" for name in _COLUMNS))

    known = {first.size: first}

    def attempt(size: int) -> Attempt:
        done = known.pop(size, None) or try_batch(config, data, size, **options)[0]
        say(row(done, scale))
        return done

    smallest = 2 if config.mix.mixup or config.mix.cutmix else 1  # mixing needs two images
    most = max(smallest, scale.num_images // scale.virtual_replicas)
    found = search(attempt, first=scale.first_size, most=most, smallest=smallest)
    say("\n".join(conclusion(found, scale)))
    return found


def row(attempt: Attempt, scale: Scale) -> str:
    """Returns the row of an attempt in the table."""
    sizes = [f"{scale.per_device(attempt.size):,}", f"{scale.global_batch(attempt.size):,}"]
    if not attempt.fits:
        return "".join(f"{cell:>14}" for cell in sizes) + "  does not fit"
    speed = f"{scale.global_batch(attempt.size) / attempt.step_seconds:,.0f}"
    cells = [*sizes, speed, f"{1e3 * attempt.step_seconds:,.0f}", megabytes(attempt.memory)]
    return "".join(f"{cell:>14}" for cell in cells)


def conclusion(found: Search, scale: Scale) -> list[str]:
    """Returns the suggestion, the limit of the search, and a smaller batch that is as fast, one line each."""
    if not found.largest:
        return [
            f"Not even {counted(scale.per_device(found.attempts[-1].size), 'image')} per device fits: use a smaller "
            "model or config.image_size."
        ]
    size, global_batch = found.largest.size, scale.global_batch(found.largest.size)
    lines = [
        f"Suggested: --config.batch_size={global_batch}: {counted(scale.per_device(size), 'image')} on "
        f"{'each of ' * (scale.replicas > 1)}{_devices(scale)}, {size:,} per virtual replica."
    ]
    if found.end == "memory" and found.too_large is not None:
        lines.append(f"Memory is the limit: {scale.per_device(found.too_large):,} per device are too many.")
    elif found.end == "dataset":
        lines.append(
            f"The dataset is the limit, not memory: its training split has {counted(scale.num_images, 'image')}."
        )
    else:
        lines.append(
            f"Step time is the limit, not memory: a step of {counted(global_batch, 'image')} takes "
            f"{found.largest.step_seconds:.1f} s, and longer ones than {_LONGEST_STEP_SECONDS:.0f} s are not tried."
        )
    fitting = sorted((attempt for attempt in found.attempts if attempt.fits), key=lambda attempt: attempt.size)
    best = max(attempt.size / attempt.step_seconds for attempt in fitting)
    enough = next(attempt for attempt in fitting if attempt.size / attempt.step_seconds >= _AS_FAST * best)
    if enough.size < size:
        lines.append(
            f"--config.batch_size={scale.global_batch(enough.size)} is as fast within {1 - _AS_FAST:.0%}: "
            "a larger batch does not shorten an epoch."
        )
    lines.append("Adjust the learning rate to the batch size: use --find_lr or config.schedule.scaling.")
    return lines


def try_batch(
    config: ml_collections.ConfigDict,
    data: str,
    virtual_batch_size: int = 0,
    *,
    devices: str = "auto",
    strategy_name: str = "auto",
    record_format: RecordFormat | None = None,
    memory_limit: int = 0,
) -> tuple[Attempt, Scale]:
    """Tries one size in a new process, for a few steps.

    Args:
      config: complete.
      data: dataset directory with a split `train`, or the name of a source.
      virtual_batch_size: images per virtual replica; 0 for `config.batch_size`.
      devices: as in `--devices`.
      strategy_name: one of `devices.STRATEGIES`.
      record_format: what is known about the records of other tools.
      memory_limit: bytes that the process may use; 0 for a share of those that are free.

    Raises:
      UsageError: config, devices and dataset do not fit together.
      DataError: the dataset cannot be used.
      ConvoyError: the trial failed for another reason than memory; the message ends with its last lines of output.
    """
    options = {
        "config": configs.to_json(config),
        "data": data,
        "devices": devices,
        "strategy_name": strategy_name,
        "record_format": (record_format or RecordFormat()).as_dict(),
        "virtual_batch_size": virtual_batch_size,
        "files": [str(path) for path in files_run()],
        "memory_limit": memory_limit or int(_SHARE_OF_MEMORY * available_memory()),
        "parent": os.getpid(),
    }
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "convoy.trainer.finders.batch_size_trial", json.dumps(options)]
    with helper_starting():
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    answer: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            answer |= json.loads(line.removeprefix(MARK))
    if "error" in answer:
        raise (DataError if answer["exit_code"] == DataError.exit_code else UsageError)(answer["error"])
    if "plan" not in answer or ("step_seconds" not in answer and done.returncode not in _OUT_OF_MEMORY_CODES):
        last = "\n".join(done.stderr.splitlines()[-_SHOWN_ERROR_LINES:])
        why = "out of memory at start-up" if done.returncode == TOO_LARGE else "the trial failed"
        raise ConvoyError(f"trying a batch: {why}, exit code {done.returncode}\n{last}".rstrip())
    plan = answer["plan"]
    scale = Scale(
        replicas=plan["replicas"],
        virtual_replicas=plan["virtual_replicas"],
        num_images=plan["num_images"],
        on_gpu=answer["on_gpu"],
        first_size=plan["virtual_batch_size"],
    )
    fits = "step_seconds" in answer
    return Attempt(scale.first_size, fits, answer.get("step_seconds", 0.0), answer.get("memory", 0)), scale


def _devices(scale: Scale) -> str:
    return counted(scale.replicas, "GPU" if scale.on_gpu else "CPU device")
