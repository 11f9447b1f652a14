"""Augmentation operations that users add, for `config.augment.ops`. Does not import TensorFlow.

@register_operation("noise", draws=1, strength=(0, 1))
def noise(pixels, draws, strength: float = 0.1):
    ...

The name can then be used as that of a built-in operation: `crop | noise(0.3)`. An operation in a file or a module that
nothing has imported is `FILE.py:noise(0.3)` or `package.module:noise(0.3)`.
"""

import inspect
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from convoy.core.errors import UsageError, did_you_mean
from convoy.core.registry import Found, Registry
from convoy.input_pipeline.augment.signatures import OPERATIONS, Parameter, Signature
from convoy.input_pipeline.tf_startup import start_tensorflow

Function = Callable[..., Any]  # (pixels, draws, **arguments) -> pixels

REGISTERED: Registry[Function] = Registry("operation", field="config.augment.ops")

_SIGNATURE = "convoy_signature"  # attribute of a decorated function
_KINDS: dict[Any, dict[str, bool]] = {float: {}, int: {"is_whole": True}, tuple[float, float]: {"is_range": True}}


def register_operation(
    name: str, *, draws: int, on_device: bool = True, **ranges: tuple[float, float]
) -> Callable[[Function], Function]:
    """Returns a decorator that makes a function an operation of `config.augment.ops`.

    The function is `(pixels, draws, **arguments) -> pixels`:

    - `pixels`: [batch, height, width, 3] float32 in [0, 255], on the device; height and width are those of training.
    - `draws`: [batch, n] float32 in [0, 1), each image's own random numbers. They depend on the seed of the run, the
      image and the epoch only, so that a run is the same on any number of devices.
    - result: as `pixels`, and clipped to [0, 255].

    It is written in TensorFlow operations, as in a `tf.function` without AutoGraph, and must be pure: the result for an
    image depends on its pixels, draws and arguments only; not on the other images of the batch, on `tf.random`, on
    variables, or on when it is called. `checks.check_operations` refuses others before training as far as it can see.

    Arguments are the parameters after `draws`: numbers (`x: float`), integers (`x: int`) or ranges that are written as
    `0.5..1` (`x: tuple[float, float]`). Those without a default are required.

    Args:
      name: name in the pipeline: letters, digits and underscores.
      draws: random numbers per image.
      on_device: whether it may run in the training step, on its device, if no operation of the reader follows. False
        for functions that a GPU or XLA cannot compute.
      ranges: smallest and largest valid value of parameters, by name; any number is valid for the others.

    Raises:
      UsageError: the name is taken or not valid, or the function has parameters of other kinds.

    Example:
      @convoy.register_operation("noise", draws=1, strength=(0, 1))
      def noise(pixels, draws, strength: float = 0.1):
          return pixels * (1.0 + strength * (2.0 * draws[:, 0] - 1.0))[:, None, None, None]

      convoy.load_config("convnet", augment={"ops": "crop | flip | noise(0.2)"}).augment.ops
    """
    place = f"operation {name!r}: "
    if name in OPERATIONS:
        raise UsageError(f"{place}is built in. Register yours under another name.")
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise UsageError(f"{place}a name has letters, digits and underscores only. Register it under another name.")
    if not isinstance(draws, int) or isinstance(draws, bool) or draws < 0:
        raise UsageError(f"{place}draws={draws!r}: must be an integer of at least 0.")
    add = REGISTERED.register(name)

    def decorate(function: Function) -> Function:
        about = (inspect.getdoc(function) or "").partition("\n")[0].rstrip(".")
        signature = Signature(about, draws, tuple(_parameters(function, ranges, place)), on_device)
        setattr(function, _SIGNATURE, signature)
        return add(function)

    return decorate


@dataclass(frozen=True)
class UserOperation:
    """An operation that was found by its name in a pipeline."""

    found: Found[Function]
    signature: Signature


def find_operation(name: str, place: str) -> UserOperation:
    """Returns the operation of a user with this name.

    Args:
      name: a registered name, `FILE.py:NAME`, or `package.module:NAME`.
      place: start of an error message.

    Raises:
      UsageError: there is none, the file that defines it fails, or it is not decorated.
    """
    if ":" not in name and name not in REGISTERED.names:
        known = [*OPERATIONS, *REGISTERED.names]
        raise UsageError(
            f"{place}unknown operation{did_you_mean(name, known)}. Operations: {', '.join(known)}, FILE.py:NAME and "
            "package.module:NAME."
        )
    if ":" in name and "tensorflow" not in sys.modules:  # which the user's file imports, with messages
        start_tensorflow()
    found = REGISTERED.find(name)
    if signature := getattr(found.value, _SIGNATURE, None):
        return UserOperation(found, signature)
    raise UsageError(f"{place}is not an operation. Decorate it with @register_operation(NAME, draws=N).")


def _parameters(function: Function, ranges: dict[str, tuple[float, float]], place: str) -> Sequence[Parameter]:
    try:
        _, _, *others = inspect.signature(function, eval_str=True).parameters.values()
    except (NameError, TypeError, ValueError) as error:
        raise UsageError(f"{place}must be a function of pixels, draws and arguments ({error}).") from None
    if unknown := ranges.keys() - {parameter.name for parameter in others}:
        raise UsageError(f"{place}has no parameter {min(unknown)!r}, for which a range is given.")
    return [_parameter(parameter, ranges.get(parameter.name, (-math.inf, math.inf)), place) for parameter in others]


def _parameter(parameter: inspect.Parameter, ends: tuple[float, float], place: str) -> Parameter:
    kind, default = parameter.annotation, parameter.default
    if kind is inspect.Parameter.empty:
        kind = tuple[float, float] if isinstance(default, tuple) else float
    is_argument = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    if not is_argument or kind not in _KINDS:
        raise UsageError(
            f"{place}parameter {str(parameter)!r} must be annotated as float, int or tuple[float, float], not as "
            f"{getattr(kind, '__name__', kind)}."
        )
    found = Parameter(parameter.name, float(ends[0]), float(ends[1]), **_KINDS[kind])
    if default is parameter.empty:
        return found
    values = default if isinstance(default, tuple) else (default,)
    is_legal = (
        len(values) == 1 + found.is_range
        and all(isinstance(value, (int, float)) and found.low <= value <= found.high for value in values)
        and not (found.is_whole and default % 1)
    )
    if not is_legal:
        raise UsageError(f"{place}default {str(parameter)!r}: must be {found.legal}.")
    value = (float(values[0]), float(values[1])) if found.is_range else float(values[0])
    return replace(found, default=value)
