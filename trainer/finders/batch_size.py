"""The largest batch that fits a device: sizes tried one by one, each in a process of its own.

    find_batch_size(config, data="data", devices="auto")        # prints a table and a suggestion

A size that does not fit then poisons no other: what TensorFlow, XLA or the kernel do where memory ends happens to a
process that was started for it. From the config's own batch on sizes are doubled until one does not fit, then bisected.
What grows is the virtual replica's batch, since a device computes its virtual replicas one after another; so batch and
virtual replicas always divide. On a GPU its own memory is the limit. On CPUs it is what the machine and the process's
cgroups have free, of which a share stays free.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_collections

from convoy.core.errors import ConvoyError, DataError, UsageError
from convoy.core.memory import available_memory
from convoy.core.text import megabytes
from convoy.trainer import config as configs
from convoy.trainer.finders.batch_size_trial import MARK, TOO_LARGE

_ROOT = Path(__file__).parents[3]
_SHARE_OF_MEMORY = 0.8
_LONGEST_STEP_SECONDS = 20.0
_FINENESS = 8  # bisecting ends where what fits and what does not differ by this part
_AS_FAST = 0.95  # of the best speed: not worth a larger batch
_SHOWN_ERROR_LINES = 5
# The kernel ends a process where memory ends, and CUDA's libraries abort where they cannot go on.
_ENDINGS_BY_MEMORY = (TOO_LARGE, -signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS)
_COLUMNS = ("a device", "global batch", "images/s", "ms a step", "memory")


@dataclass(frozen=True)
class Attempt:
    """One size that was tried.

    Attributes:
      size: images of a virtual replica.
      fits: whether a step could be done.
      step_seconds: of a step once compiled, waiting for input included; 0 where it does not fit.
      memory: bytes, the most that a GPU held, or the process where there is none; 0 where it does not fit.
    """

    size: int
    fits: bool
    step_seconds: float = 0.0
    memory: int = 0


@dataclass(frozen=True)
class Search:
    """What came out.

    Attributes:
      attempts: in the order in which they were tried.
      largest: that fits; None where none does.
      too_large: the smallest size that does not fit; None where all did.
      end: `memory`, `dataset` (a larger batch would be more than its images) or `speed` (a step of it takes too long).
    """

    attempts: Sequence[Attempt]
    largest: Attempt | None
    too_large: int | None
    end: str


@dataclass(frozen=True)
class Scale:
    """From a virtual replica's batch to what people set.

    Attributes:
      replicas: devices.
      virtual_replicas: of the run; a multiple of `replicas`.
      num_images: of the training split.
      on_gpu: whether memory is a GPU's.
      first_size: the config's own batch of a virtual replica.
    """

    replicas: int
    virtual_replicas: int
    num_images: int
    on_gpu: bool
    first_size: int

    def a_device(self, size: int) -> int:
        """Returns the images a device gets in a step."""
        return size * self.virtual_replicas // self.replicas

    def in_all(self, size: int) -> int:
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
    """Looks for the largest size that fits: doubles or halves from `first` on, then bisects.

    Args:
      attempt: tries a size.
      first: where to begin, at least `smallest`.
      most: the largest size that makes sense, at least `smallest`.
      smallest: that makes sense, 1 or more.
      longest_step_seconds: no size is tried whose step is expected to take longer.
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
    config: ml_collections.ConfigDict, *, data: str, devices: str = "auto", strategy_name: str = "auto"
) -> Search:
    """Searches, and prints the table and what follows from it.

    Args:
      config: complete. Its batch size is where the search begins.
      data: the dataset directory, with a split `train`.
      devices: as in `--devices`.
      strategy_name: one of `devices.STRATEGIES`.

    Raises:
      UsageError: config, devices and dataset do not fit together.
      DataError: the dataset cannot be used.
      ConvoyError: a size failed, and not for want of memory; the message ends with its last words.
    """
    memory_limit = int(_SHARE_OF_MEMORY * available_memory())
    options = {
        "config": configs.to_json(config),
        "data": data,
        "devices": devices,
        "strategy_name": strategy_name,
        "memory_limit": memory_limit,
        "parent": os.getpid(),
    }
    first, scale = _run(options | {"virtual_batch_size": 0})
    print(
        f"Each size runs in a process of its own, for some steps, on {_devices(scale)}"
        + (
            "."
            if scale.on_gpu
            else f", within {megabytes(memory_limit)}: {_SHARE_OF_MEMORY:.0%} of the memory that is free."
        )
    )
    print("".join(f"{name:>14}" for name in _COLUMNS))

    def attempt(size: int) -> Attempt:
        nonlocal first
        tried, first = (first, None) if first and first.size == size else (None, first)
        tried = tried or _run(options | {"virtual_batch_size": size})[0]
        print(row(tried, scale), flush=True)
        return tried

    smallest = 2 if config.mix.mixup or config.mix.cutmix else 1  # one image cannot be mixed
    most = max(smallest, scale.num_images // scale.virtual_replicas)
    found = search(attempt, first=scale.first_size, most=most, smallest=smallest)
    print("\n".join(conclusion(found, scale)))
    return found


def row(attempt: Attempt, scale: Scale) -> str:
    """Returns the table's line of an attempt."""
    sizes = [f"{scale.a_device(attempt.size):,}", f"{scale.in_all(attempt.size):,}"]
    if not attempt.fits:
        return "".join(f"{cell:>14}" for cell in sizes) + "  does not fit"
    speed = f"{scale.in_all(attempt.size) / attempt.step_seconds:,.0f}"
    cells = [*sizes, speed, f"{1e3 * attempt.step_seconds:,.0f}", megabytes(attempt.memory)]
    return "".join(f"{cell:>14}" for cell in cells)


def conclusion(found: Search, scale: Scale) -> list[str]:
    """Returns what a search comes to, in lines: the suggestion, why the search ended there, and what is fast enough."""
    if not found.largest:
        return [
            f"Not even {scale.a_device(found.too_large)} images a device fit: a smaller model or config.image_size is "
            "needed."
        ]
    size, in_all = found.largest.size, scale.in_all(found.largest.size)
    lines = [
        f"Suggested: --config.batch_size={in_all}: {scale.a_device(size):,} images on each of {_devices(scale)}, "
        f"{size:,} a virtual replica."
    ]
    if found.end == "memory":
        lines.append(f"Memory is the limit: {scale.a_device(found.too_large):,} a device do not fit.")
    elif found.end == "dataset":
        lines.append(
            f"The dataset is the limit, not memory: its training split has {scale.num_images:,} images, and no "
            "size was tried that is larger."
        )
    else:
        lines.append(
            f"Time is the limit, not memory: a step of {in_all:,} images takes {found.largest.step_seconds:.1f} s, and "
            f"no step was tried that would take more than {_LONGEST_STEP_SECONDS:.0f} s."
        )
    fitting = sorted((attempt for attempt in found.attempts if attempt.fits), key=lambda attempt: attempt.size)
    best = max(attempt.size / attempt.step_seconds for attempt in fitting)
    enough = next(attempt for attempt in fitting if attempt.size / attempt.step_seconds >= _AS_FAST * best)
    if enough.size < size:
        lines.append(
            f"--config.batch_size={scale.in_all(enough.size)} is as fast, to {1 - _AS_FAST:.0%}: "
            "a larger batch makes an epoch no shorter."
        )
    lines.append("Another batch size wants another learning rate: --find_lr, or config.schedule.scaling.")
    return lines


def _run(options: dict[str, Any]) -> tuple[Attempt, Scale]:
    """Tries one size in a process of its own."""
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "convoy.trainer.finders.batch_size_trial", json.dumps(options)]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    told: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            told |= json.loads(line.removeprefix(MARK))
    if "error" in told:
        raise (DataError if told["exit_code"] == DataError.exit_code else UsageError)(told["error"])
    if "plan" not in told or ("step_seconds" not in told and done.returncode not in _ENDINGS_BY_MEMORY):
        last = "\n".join(done.stderr.splitlines()[-_SHOWN_ERROR_LINES:])
        why = "memory does not even suffice to start" if done.returncode == TOO_LARGE else "it failed"
        raise ConvoyError(f"trying a batch: {why}, exit code {done.returncode}\n{last}".rstrip())
    plan = told["plan"]
    scale = Scale(
        replicas=plan["replicas"],
        virtual_replicas=plan["virtual_replicas"],
        num_images=plan["num_images"],
        on_gpu=told["on_gpu"],
        first_size=plan["virtual_batch_size"],
    )
    fits = "step_seconds" in told
    return Attempt(scale.first_size, fits, told.get("step_seconds", 0.0), told.get("memory", 0)), scale


def _devices(scale: Scale) -> str:
    return f"{scale.replicas} {'GPU' if scale.on_gpu else 'CPU device'}{'s' * (scale.replicas > 1)}"
