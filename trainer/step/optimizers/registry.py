"""Optimizers by name: built in, registered, or a factory in a user's file or module.

found = find_optimizer(config.optimizer.name, config.optimizer)
found.value.formula, found.digests

A factory takes the fields of config.optimizer that it names, and returns an `Optimizer`:

@convoy.register_optimizer("signsgd")
def signsgd(weight_decay):
    def formula(weight, slots, gradient, learning_rate, step, decays): ...
    return Optimizer((), formula)
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from convoy.core.errors import failure
from convoy.core.registry import Found, Registry, accepted
from convoy.trainer.step.optimizers.contract import fault
from convoy.trainer.step.optimizers.optimizer import Optimizer

_OF_STEP = ("name", "learning_rate", "clip_norm")  # fields that no optimizer gets: the step applies them

Factory = Callable[..., Optimizer]
OPTIMIZERS: Registry[Factory] = Registry(
    "optimizer",
    field="config.optimizer.name",
    contract="a function of fields of config.optimizer returns Optimizer(slots, formula), and formula(weight, slots, "
    "gradient, learning_rate, step, decays) returns (weight, slots) in the same float32 shapes, finite, and equal at "
    "each call",
)


def make_optimizer(name: str, **fields: Any) -> Optimizer:  # noqa: ANN401 (a config value)
    """Returns the optimizer called `name`, as `find_optimizer` does; fields that are not given have their defaults."""
    return find_optimizer(name, fields).value


def find_optimizer(name: str, fields: Mapping[str, Any]) -> Found[Optimizer]:
    """Returns an optimizer, and the code that defines it; one that is not built in has been tried.

    Args:
      name: a registered name, `FILE.py:NAME`, or `package.module:NAME`.
      fields: fields of config.optimizer. The factory gets those that it names; the learning rate and the norm for
        clipping belong to the step.

    Raises:
      UsageError: there is no such optimizer, or it breaks the contract.
    """
    found = OPTIMIZERS.find(name)
    given = {field: value for field, value in fields.items() if field not in _OF_STEP}
    if not callable(found.value):
        raise OPTIMIZERS.breach(name, "is not a function")
    options = accepted(found.value, given)
    try:
        inspect.signature(found.value).bind(**options)
    except TypeError as error:
        raise OPTIMIZERS.breach(name, f"{error}, and the fields are {', '.join(given)}") from None
    try:
        optimizer = found.value(**options)
    except Exception as error:
        raise OPTIMIZERS.breach(name, f"fails: {failure(error)}") from error
    if found.digests and (reason := fault(optimizer)):
        raise OPTIMIZERS.breach(name, reason)
    return Found(name, optimizer, found.code, found.digests)
