"""`convoy bench NAME`: runs Convoy and other libraries in turn and prints a table.

convoy bench step
convoy bench input --data=data --json=input.json
convoy bench augment
convoy bench order --virtual_replicas=8,64,512
convoy bench convert --images=photos/train
convoy bench scaling --model=baseline_cnn
convoy bench monitoring
convoy bench generalization --seeds=3
convoy bench resize
convoy bench imbalance
convoy bench gpu --models=resnet50
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from absl import flags as absl_flags

from convoy.core.errors import UsageError, did_you_mean

TAKES_ARGUMENTS = True
_CHECKOUT = Path(__file__).resolve().parents[2]

_BENCHMARKS = (
    *("step", "input", "augment", "index", "order", "convert", "scaling", "monitoring"),
    *("generalization", "resize", "imbalance", "gpu"),
)
_KNOWN = f"Benchmarks: {', '.join(_BENCHMARKS)}. Example: convoy bench step"


def define_flags(flags: absl_flags.FlagValues, arguments: Sequence[str]) -> None:
    """Defines the flags of the requested benchmark, or of all benchmarks if none is given.

    Raises:
      UsageError: unknown benchmark, or Convoy is not running from a checkout.
    """
    _find_benchmarks()
    from benchmarks import measure

    measure.define_common_flags(flags)
    named = [argument for argument in arguments if argument in _BENCHMARKS]
    other = [argument for argument in arguments if not argument.startswith("-")]
    if other and not named:
        raise UsageError(f"unknown benchmark {other[0]!r}{did_you_mean(other[0], _BENCHMARKS)}. {_KNOWN}")
    for name in named[:1] or _BENCHMARKS:
        _module(name).define_flags(flags)


def run(flags: absl_flags.FlagValues, arguments: Sequence[str]) -> None:
    """Runs one benchmark.

    Raises:
      UsageError: no benchmark was given, or more than one.
    """
    if len(arguments) != 1:
        problem = f"{' '.join(arguments)!r}: give one benchmark at a time" if arguments else "no benchmark given"
        raise UsageError(f"{problem}. {_KNOWN}")
    from benchmarks import measure

    measure.check_flags(flags)
    _module(arguments[0]).run(flags)


def _find_benchmarks() -> None:
    """Puts the checkout first on `sys.path`, ahead of any other package called `benchmarks`."""
    if not (_CHECKOUT / "benchmarks" / "measure.py").is_file():
        raise UsageError(
            f"the benchmarks are not part of the installed package, and {_CHECKOUT} is not a checkout of Convoy. "
            "Clone the repository, run `pip install -e '.[bench]'` there, then `convoy bench`."
        )
    sys.path.insert(0, str(_CHECKOUT))


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.{name}")
