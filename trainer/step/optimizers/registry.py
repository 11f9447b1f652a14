"""Optimizers by name: built in, registered, or a factory in a user's file or module.

found = find_optimizer(config.optimizer.name, config.optimizer)
found.value.formula, found.digests

A factory takes the fields of config.optimizer that it names, and returns an `Optimizer`:

@register_optimizer("signsgd")
def signsgd(weight_decay):
    def formula(weight, slots, gradient, learning_rate, step, decays): ...
    return Optimizer((), formula)
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from convoy.core.errors import UsageError
from convoy.core.registry import Found, Registry
from convoy.trainer.step.optimizers.contract import fault, one_line
from convoy.trainer.step.optimizers.optimizer import Optimizer

_OF_STEP = ("name", "learning_rate", "clip_norm")  # fields that no optimizer gets: the step applies them
_CONTRACT = (
    "a function of fields of config.optimizer returns Optimizer(slots, formula), and formula(weight, slots, gradient, "
    "learning_rate, step, decays) returns (weight, slots) in the same float32 shapes, finite, and equal at each call"
)

Factory = Callable[..., Optimizer]
OPTIMIZERS: Registry[Factory] = Registry("optimizer", field="config.optimizer.name")
register_optimizer = OPTIMIZERS.register


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

    def refused(reason: str) -> UsageError:
        return UsageError(f"config.optimizer.name={name!r}: {reason}. The contract: {_CONTRACT}.")

    given = {field: value for field, value in fields.items() if field not in _OF_STEP}
    if not callable(found.value):
        raise refused("is not a function")
    names, needed = _parameters(found.value, given)
    if unknown := [parameter for parameter in needed if parameter not in given]:
        raise refused(f"takes {unknown[0]}, which is not one of {', '.join(given)}")
    try:
        optimizer = found.value(**{field: value for field, value in given.items() if field in names})
    except Exception as error:
        raise refused(f"fails: {one_line(error)}") from error
    if found.digests and (reason := fault(optimizer)):
        raise refused(reason)
    return Found(name, optimizer, found.code, found.digests)


def _parameters(factory: Factory, fields: Iterable[str]) -> tuple[list[str], list[str]]:
    """Returns the parameters of a factory, and those that it needs. `**others` stands for all fields."""
    parameters = inspect.signature(factory).parameters.values()
    others = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    named = [parameter for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    needed = [parameter.name for parameter in named if parameter.default is parameter.empty]
    return [*(fields if others else ()), *(parameter.name for parameter in named)], needed
