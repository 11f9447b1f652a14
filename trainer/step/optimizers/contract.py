"""The checks that an optimizer of a user keeps its contract, on small weights, before training."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from convoy.core.errors import failure
from convoy.trainer.step.optimizers.optimizer import Optimizer, Slots, decays_weight

_SHAPES = ((4,), (4, 3), (3, 3, 2, 4))
_STEPS = 3
_RATE = 0.01

_Update = tuple[tf.Tensor, Slots]


class _FaultError(Exception):
    """Why an optimizer breaks its contract."""


def fault(optimizer: Any) -> str:  # noqa: ANN401 (whatever a user's function returned)
    """Returns how what a factory returned breaks the contract of `Optimizer`, or ""."""
    if not isinstance(optimizer, Optimizer):
        return f"returns {'None' if optimizer is None else f'a {type(optimizer).__name__}'} instead of an Optimizer"
    if optimizer.others and (reason := fault(optimizer.others)):
        return f"others: {reason}"
    if optimizer.others and (optimizer.others.average != optimizer.average or optimizer.others.others):
        return "others has another average, or others of its own"
    names = optimizer.slots
    if not isinstance(names, tuple) or not all(isinstance(name, str) and name and "/" not in name for name in names):
        return f"slots={names!r} is not a tuple of names without '/'"
    special = {*optimizer.scalars, *optimizer.copies, *filter(None, [optimizer.average])}
    if unknown := sorted(special - set(names)):
        return f"{unknown[0]!r} is not one of its slots ({', '.join(names) or 'none'})"
    try:
        for shape in _SHAPES:
            for gradients in (_random(shape, 1), [tf.zeros(shape)] * _STEPS):  # a dead unit has no gradient
                _check(optimizer, shape, gradients)
        _check_compiled(optimizer)
    except _FaultError as error:
        return str(error)
    except Exception as error:
        return f"formula fails, on weights of {', '.join(str(list(shape)) for shape in _SHAPES)}: {failure(error)}"
    return ""


def _random(shape: tuple[int, ...], seed: int) -> list[tf.Tensor]:
    random = np.random.default_rng(seed)
    return [tf.constant(random.normal(0.0, 0.1, shape), tf.float32) for _ in range(_STEPS)]


def _check(optimizer: Optimizer, shape: tuple[int, ...], gradients: list[tf.Tensor]) -> None:
    """Raises a _FaultError if some updates of a weight are not as promised."""
    start = _random(shape, 0)[0]
    slots = {slot: optimizer.initial(slot, start) for slot in optimizer.slots}
    shapes = {slot: value.shape for slot, value in slots.items()}
    first, again = (list(_updates(optimizer, start, slots, gradients)) for _ in range(2))
    for update, other in zip(first, again, strict=True):
        if [value.numpy().tobytes() for value in tf.nest.flatten(update)] != [
            value.numpy().tobytes() for value in tf.nest.flatten(other)
        ]:
            raise _FaultError("formula is not a pure function: two calls with the same values differ")
    for update in first:
        if any(update[1][slot].shape != shapes[slot] for slot in slots):
            raise _FaultError("formula changes the shape of a slot")
    if optimizer.in_place:
        _check_in_place(optimizer, start, slots, gradients, first)


def _updates(optimizer: Optimizer, weight: tf.Tensor, slots: Slots, gradients: list[tf.Tensor]) -> Iterator[_Update]:
    for number, gradient in enumerate(gradients, start=1):
        weight, slots = _update(optimizer, weight, slots, gradient, number)
        yield weight, slots


def _update(optimizer: Optimizer, weight: tf.Tensor, slots: Slots, gradient: tf.Tensor, number: int) -> _Update:
    """Returns an update by the formula. Raises a _FaultError if it is not one of this weight."""
    options = (tf.constant(_RATE), tf.constant(float(number)), decays_weight(tuple(weight.shape)))
    result = optimizer.formula(weight, dict(slots), gradient, *options)
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
        raise _FaultError("formula does not return (weight, slots)")
    if result[1].keys() != slots.keys():
        names = [", ".join(map(str, each)) or "none" for each in (result[1], slots)]
        raise _FaultError(f"formula returns the slots {names[0]} instead of {names[1]}")
    before = {"weight": weight, **{f"slot {slot}": slots[slot] for slot in slots}}
    for name, value in zip(before, [result[0], *(result[1][slot] for slot in slots)], strict=True):
        expected = before[name]
        if not tf.is_tensor(value) or value.dtype != tf.float32 or value.shape != expected.shape:
            found = f"{value.dtype.name} {list(value.shape)}" if tf.is_tensor(value) else type(value).__name__
            raise _FaultError(f"formula returns a {name} of {found} instead of float32 {list(expected.shape)}")
        if tf.executing_eagerly() and not np.isfinite(value.numpy()).all():
            kind = "without gradient" if not np.any(gradient.numpy()) else "with an ordinary gradient"
            raise _FaultError(f"formula returns NaN or infinity in a {name} {kind}, at update {number}")
    return result


def _check_in_place(
    optimizer: Optimizer, start: tf.Tensor, slots: Slots, gradients: list[tf.Tensor], expected: list[_Update]
) -> None:
    """Raises a _FaultError if `in_place` gives something else than `formula`."""
    weight, variables = tf.Variable(start), {slot: tf.Variable(value) for slot, value in slots.items()}
    for number, (gradient, update) in enumerate(zip(gradients, expected, strict=True), start=1):
        options = (tf.constant(_RATE), tf.constant(float(number)), decays_weight(tuple(start.shape)))
        optimizer.in_place(weight, variables, gradient, *options)  # type: ignore[misc]
        pairs = [(weight, update[0]), *((variables[slot], update[1][slot]) for slot in slots)]
        if not all(np.allclose(own.numpy(), value.numpy(), 1e-3, 1e-6) for own, value in pairs):
            raise _FaultError(f"in_place and formula differ, at update {number}")


def _check_compiled(optimizer: Optimizer) -> None:
    """Raises whatever XLA raises if it cannot compile the formula."""

    @tf.function(jit_compile=True, autograph=False)
    def update_all() -> None:
        for shape in _SHAPES:
            weight = _random(shape, 0)[0]
            slots = {slot: optimizer.initial(slot, weight) for slot in optimizer.slots}
            _update(optimizer, weight, slots, _random(shape, 1)[0], 1)

    update_all()
